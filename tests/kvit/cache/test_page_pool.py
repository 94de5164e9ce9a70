"""kvit.PagePool: the sequences of a pool, what each has, and growth that changes nothing where it is refused."""

import gc

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import kvit
from kvit._native.page_changes import PageChange
from kvit.errors import CacheFull, KvitError, SequenceFreed, ShapeError


def grown(pool, *counts):
    """New sequences of so many tokens."""
    sequences = [pool.sequence() for _ in counts]
    pool.grow(sequences, counts).keep()
    return sequences


def snapshot(pool, *sequences):
    of_each = [(seq.pages, len(seq)) for seq in sequences]
    return of_each, [pool.owners(page) for page in range(pool.num_pages)], pool.num_free


def test_a_fresh_pool_hands_out_pages_from_zero_and_then_those_released_last():
    pool = kvit.PagePool(8, page_size=4)
    first, second = grown(pool, 5, 4)
    assert [(seq.pages, len(seq)) for seq in (first, second)] == [((0, 1), 5), ((2,), 4)]
    assert (pool.num_free, pool.used()) == (5, [0, 1, 2])
    first.free()
    [third] = grown(pool, 12)
    assert third.pages == (1, 0, 3)


def test_growth_is_not_seen_before_it_is_kept_and_leaves_nothing_when_closed_or_dropped():
    pool = kvit.PagePool(8, page_size=4)
    [sequence] = grown(pool, 3)
    twin = sequence.fork()
    before = snapshot(pool, sequence, twin)
    growth = pool.grow([sequence, twin], [2, 1])
    assert snapshot(pool, sequence, twin)[0] == before[0] and pool.num_free == 5 and growth.lengths == [5, 4]
    growth.close()
    growth.close()
    assert snapshot(pool, sequence, twin) == before
    growth = pool.grow([sequence, twin], 7)
    del growth
    assert snapshot(pool, sequence, twin) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda sequence: sequence.truncate(1),
        lambda sequence: sequence.free(),
        lambda sequence: setattr(*sequence.pool.renaming({0: 7})),
    ],
    ids=["truncated", "freed", "moved"],
)
def test_growth_of_a_sequence_that_was_changed_meanwhile_is_refused_and_changes_nothing(change):
    pool = kvit.PagePool(8, page_size=4)
    sequence, twin = grown(pool, 3, 3)
    growth = pool.grow([sequence, twin], [2, 1])
    change(sequence)
    with pytest.raises(KvitError, match="the cache was changed while it appended"):
        growth.keep()
    growth.close()
    used = {page for seq in (sequence, twin) if not seq.is_freed for page in seq.pages}
    assert pool.used() == sorted(used) and len(twin) == 3
    pool.grow([twin], 1).keep()


def test_pages_of_an_open_growth_go_to_nobody_else():
    pool = kvit.PagePool(4, page_size=4)
    sequence, other = grown(pool, 3, 4)
    growth = pool.grow([sequence], 5)
    other.fork()
    [third] = grown(pool, 4)
    assert third.pages == (3,)
    growth.keep()
    assert sequence.pages == (0, 2) and pool.num_free == 0
    with pytest.raises(KvitError, match="the step has ended"):
        growth.keep()


def test_a_sequence_is_in_one_growth_at_a_time():
    pool = kvit.PagePool(8, page_size=4)
    [sequence] = grown(pool, 3)
    growth = pool.grow([sequence], 1)
    with pytest.raises(KvitError, match=r"seqs\[0\] is in a step that is still open; commit that one, or close it"):
        pool.grow([sequence], 1)
    growth.close()
    pool.grow([sequence], 1).keep()
    assert len(sequence) == 4


def test_a_sequence_that_nobody_has_gives_its_pages_back():
    pool = kvit.PagePool(8, page_size=4)
    [sequence] = grown(pool, 9)
    circle = [sequence]
    circle.append(circle)
    del sequence, circle
    gc.collect()
    assert (pool.num_free, pool.used(), pool.all_pages()) == (8, [], [])


def test_a_shared_full_page_is_kept_and_a_shared_part_full_page_is_copied():
    pool = kvit.PagePool(8, page_size=4)
    [sequence] = grown(pool, 5)
    twin = sequence.fork()
    growth = pool.grow([twin], 1)
    assert growth.copies == [(1, 2)]
    growth.keep()
    assert (sequence.pages, twin.pages) == ((0, 1), (0, 2))
    assert [pool.owners(page) for page in range(3)] == [2, 1, 1]
    growth = pool.grow([sequence, twin], [1, 0])  # nobody shares the last page any more
    assert growth.copies == []


def test_the_last_of_the_holders_that_grow_together_keeps_the_original():
    pool = kvit.PagePool(8, page_size=4)
    [sequence] = grown(pool, 1)
    twin = sequence.fork()
    growth = pool.grow([sequence, twin], 1)
    assert growth.copies == [(0, 1)] and pool.pages_needed([twin], 0) == 0
    growth.keep()
    assert (sequence.pages, twin.pages) == ((1,), (0,))


def test_pages_needed_are_those_that_a_growth_takes_and_none_is_taken():
    pool = kvit.PagePool(6, page_size=4)
    [sequence] = grown(pool, 5)
    twin = sequence.fork()
    before = snapshot(pool, sequence, twin)
    # Two tokens fit behind the fifth; one of the two copies the page that they share.
    assert [pool.pages_needed([sequence, twin], n) for n in (0, 1, 3, 4, [3, 20])] == [0, 1, 1, 3, 6]
    assert snapshot(pool, sequence, twin) == before
    with pytest.raises(CacheFull, match="needs 6 more pages and has 4 free of 6"):
        pool.grow([sequence, twin], [3, 20])
    assert snapshot(pool, sequence, twin) == before
    pool.grow([sequence, twin], 4).keep()
    assert pool.num_free == 1


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ShapeError, r"new_tokens is -1; give 0 or more", lambda pool, a, b: pool.grow([a], -1)),
        (ShapeError, r"new_tokens are \[1\]; they must be one number", lambda pool, a, b: pool.grow([a, b], [1])),
        (ShapeError, r"new_tokens\[1\] is 1.5; it must be a whole", lambda pool, a, b: pool.grow([a, b], [1, 1.5])),
        (ShapeError, r"seqs\[1\] is seqs\[0\] again", lambda pool, a, b: pool.pages_needed([a, a], 1)),
        (ShapeError, r"seqs\[0\] is a int", lambda pool, a, b: pool.grow([7], 1)),
        (ShapeError, "another cache", lambda pool, a, b: kvit.PagePool(1, 1).grow([a], 1)),
        (ShapeError, "a sequence would have 2147483652 tokens", lambda pool, a, b: pool.grow([a], 2**31 - 1)),
        (ShapeError, "page is 8; it must be 0 to 7", lambda pool, a, b: pool.owners(8)),
        (ShapeError, "num_pages is 0; it must be 1", lambda pool, a, b: kvit.PagePool(0, 1)),
        (ShapeError, "cannot truncate a sequence of 5 tokens to 6; give 0 to 5", lambda pool, a, b: a.truncate(6)),
        (KvitError, "in a pool already", lambda pool, a, b: pool.enter(a)),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(error, match, call):
    pool = kvit.PagePool(8, page_size=4)
    a, b = grown(pool, 5, 2)
    before = snapshot(pool, a, b)
    with pytest.raises(error, match=match):
        call(pool, a, b)
    assert snapshot(pool, a, b) == before


@pytest.mark.parametrize(
    "use",
    [
        lambda pool, seq: seq.pages,
        lambda pool, seq: seq.fork(),
        lambda pool, seq: seq.truncate(0),
        lambda pool, seq: pool.grow([seq], 1),
        lambda pool, seq: pool.pages_needed([seq], 1),
    ],
)
def test_a_freed_sequence_is_refused_and_freeing_again_does_nothing(use):
    pool = kvit.PagePool(2, page_size=4)
    [sequence] = grown(pool, 5)
    sequence.free()
    sequence.free()
    assert sequence.is_freed and len(sequence) == 0 and pool.num_free == 2
    with pytest.raises(SequenceFreed, match=r"take a new one from cache.sequence\(\)"):
        use(pool, sequence)


def test_truncating_releases_pages_that_hold_no_token_any_more():
    pool = kvit.PagePool(4, page_size=4)
    [sequence] = grown(pool, 9)
    sequence.truncate(5)
    assert (sequence.pages, len(sequence)) == ((0, 1), 5) and pool.num_free == 2


@pytest.mark.parametrize("by_sequence", [False, True])
def test_pages_get_new_ids_in_every_sequence_that_has_them(by_sequence):
    pool = kvit.PagePool(8, page_size=4)
    gone, first, second = grown(pool, 8, 4, 8)  # pages 0 and 1, 2, 3 and 4
    twin = second.fork()
    pool.grow([first], 4).keep()  # page 5
    gone.free()
    moves = pool.moves_to_front(by_sequence)
    setattr(*pool.renaming(moves))
    # As few moves as possible fill the holes 0 and 1; by sequence, the pages of `first` come first, side by side.
    expected = [(0, 1), (2, 3)] if by_sequence else [(2, 1), (3, 0)]
    assert moves == ({2: 0, 5: 1, 3: 2, 4: 3} if by_sequence else {4: 0, 5: 1})
    assert [seq.pages for seq in (first, second, twin)] == [*expected, expected[1]]
    assert [pool.owners(page) for page in range(8)].count(2) == 2 and pool.used() == [0, 1, 2, 3]


def test_a_change_that_is_made_again_changes_nothing_and_one_of_a_freed_sequence_leaves_it_freed():
    pool = kvit.PagePool(8, page_size=4)
    first, second = grown(pool, 4, 8)
    change = PageChange(pool, sequences=(first, second), after=[((6,), 2), ((7, 0), 5)])
    second.free()
    assert not change.is_made
    change.is_made = True
    change.is_made = True
    assert (first.pages, len(first), second.is_freed, pool.used()) == ((6,), 2, True, [6])


class Pages(RuleBasedStateMachine):
    """Sequences fork, grow, shrink and end in any order, next to a plain model: a list of token ids per sequence."""

    page_size = 3

    def __init__(self):
        super().__init__()
        self.pool = kvit.PagePool(12, self.page_size)
        self.sequences = []  # (sequence, token ids)
        self.content = {}  # (page, row) -> token id, as the kernels would leave it
        self.next_token = 0

    @rule()
    def start(self):
        self.sequences.append((self.pool.sequence(), []))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data):
        seq, tokens = data.draw(st.sampled_from(self.sequences))
        self.sequences.append((seq.fork(), list(tokens)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), is_kept=st.booleans())
    def extend(self, data, is_kept):
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.sequences))), unique=True, min_size=1))
        counts = [data.draw(st.integers(0, 5)) for _ in chosen]
        seqs = [self.sequences[i][0] for i in chosen]
        before = snapshot(self.pool, *(seq for seq, _ in self.sequences))
        needed = self.pool.pages_needed(seqs, counts)
        try:
            growth = self.pool.grow(seqs, counts)
        except CacheFull:
            assert needed > self.pool.num_free
            assert snapshot(self.pool, *(seq for seq, _ in self.sequences)) == before
            return
        assert self.pool.num_free == before[2] - needed
        if not is_kept:
            growth.close()
            after = snapshot(self.pool, *(seq for seq, _ in self.sequences))
            assert after == before
            return
        for source, target in growth.copies:
            for row in range(self.page_size):
                self.content[target, row] = self.content.get((source, row))
        growth.keep()
        for i, count in zip(chosen, counts, strict=True):
            seq, tokens = self.sequences[i]
            for _ in range(count):
                self.content[seq.pages[len(tokens) // self.page_size], len(tokens) % self.page_size] = self.next_token
                tokens.append(self.next_token)
                self.next_token += 1

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def truncate(self, data):
        seq, tokens = data.draw(st.sampled_from(self.sequences))
        length = data.draw(st.integers(0, len(tokens)))
        seq.truncate(length)
        del tokens[length:]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data):
        self.sequences.pop(data.draw(st.sampled_from(range(len(self.sequences)))))[0].free()

    @precondition(lambda self: self.sequences)
    @rule(by_sequence=st.booleans())
    def tidy(self, by_sequence):
        moves = self.pool.moves_to_front(by_sequence)
        setattr(*self.pool.renaming(moves))
        self.content = {(moves.get(page, page), row): token for (page, row), token in self.content.items()
                        if page in moves or page not in moves.values()}  # fmt: skip

    @invariant()
    def every_sequence_still_reads_its_own_tokens(self):
        for seq, tokens in self.sequences:
            assert len(seq) == len(tokens) and len(seq.pages) == -(-len(tokens) // self.page_size)
            for t, token in enumerate(tokens):
                assert self.content[seq.pages[t // self.page_size], t % self.page_size] == token

    @invariant()
    def owners_and_free_pages_add_up(self):
        held = [page for seq, _ in self.sequences for page in seq.pages]
        assert [self.pool.owners(page) for page in range(12)] == [held.count(page) for page in range(12)]
        assert self.pool.num_free == 12 - len(set(held))


TestPages = Pages.TestCase
