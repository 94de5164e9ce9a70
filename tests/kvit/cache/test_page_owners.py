"""The page bookkeeping of a cache, without any memory: who owns what, and that a refused growth changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvit.cache.page_owners import PageOwners, grow, num_pages
from kvit.errors import CacheFull


def take(pool, count):
    """The pages that are taken next, taken."""
    pages = pool.next_free(count)
    pool.take(pages)
    return pages


def snapshot(pool):
    return [pool.owners(page) for page in range(pool.num_pages)], pool.num_free


def test_a_fresh_pool_hands_out_pages_from_zero():
    pool = PageOwners(4)
    assert take(pool, 3) == [0, 1, 2]
    assert pool.num_free == 1


def test_taking_too_many_says_how_many_are_needed_and_free_and_takes_none():
    pool = PageOwners(5)
    take(pool, 3)
    before = snapshot(pool)
    with pytest.raises(CacheFull, match="needs 3 more pages and has 2 free of 5"):
        take(pool, 3)
    assert snapshot(pool) == before


def test_pages_that_are_next_stay_free_until_they_are_taken():
    pool = PageOwners(4)
    assert pool.next_free(3) == pool.next_free(3) == [0, 1, 2] and pool.num_free == 4


def test_pages_can_be_taken_after_others_were_released():
    pool = PageOwners(4)
    take(pool, 2)
    chosen = pool.next_free(1)
    pool.release([0, 1])
    pool.take(chosen)
    assert snapshot(pool) == ([0, 0, 1, 0], 3) and pool.next_free(3) == [1, 0, 3]


def test_owners_are_counted_from_the_pages_of_sequences():
    pool = PageOwners.counted(5, [(3, 1), (), (1,)])
    assert snapshot(pool) == ([0, 2, 0, 1, 0], 3) and pool.next_free(3) == [0, 2, 4]


def test_a_page_is_free_again_only_when_its_last_owner_leaves():
    pool = PageOwners(1)
    [page] = take(pool, 1)
    pool.share([page])
    pool.release([page])
    assert pool.num_free == 0
    pool.release([page])
    assert pool.num_free == 1


def test_growth_within_the_last_page_takes_nothing():
    pool = PageOwners(2)
    [page] = take(pool, 1)
    growth = grow(pool, [(page,)], [3], [5], page_size=8)
    assert (growth.pages, growth.lengths, growth.copies, growth.taken) == ([(page,)], [8], [], [])


def test_a_shared_full_page_is_kept_and_a_shared_part_full_page_is_copied():
    pool = PageOwners(8)
    full, part = take(pool, 2)
    pool.share([full, part])
    growth = grow(pool, [(full, part)], [5], [1], page_size=4)
    [private] = growth.taken
    assert growth.pages == [(full, private)]
    assert growth.copies == [(part, private)]


def test_the_last_of_the_holders_that_grow_together_keeps_the_original():
    pool = PageOwners(8)
    [part] = take(pool, 1)
    pool.share([part])
    growth = grow(pool, [(part,), (part,)], [1, 1], [1, 1], page_size=4)
    [private] = growth.taken
    assert growth.pages == [(private,), (part,)]
    assert growth.copies == [(part, private)]


def test_a_sequence_that_gets_no_token_copies_nothing():
    pool = PageOwners(2)
    [part] = take(pool, 1)
    pool.share([part])
    assert grow(pool, [(part,)], [1], [0], page_size=4).copies == []


def test_growth_counts_the_copies_too_before_it_takes_anything():
    pool = PageOwners(2)
    part, _ = take(pool, 2)
    pool.share([part])
    before = snapshot(pool)
    with pytest.raises(CacheFull, match="needs 1 more pages"):
        grow(pool, [(part,)], [1], [1], page_size=4)
    assert snapshot(pool) == before


@given(st.integers(0, 10**12), st.integers(1, 1000))
def test_the_number_of_pages_is_the_least_that_holds_the_tokens(tokens, page_size):
    assert (num_pages(tokens, page_size) - 1) * page_size < tokens <= num_pages(tokens, page_size) * page_size


class Pages(RuleBasedStateMachine):
    """Sequences fork, grow, shrink and end in any order, next to a plain model: a list of token ids per sequence."""

    page_size = 3

    def __init__(self):
        super().__init__()
        self.pool = PageOwners(12)
        self.sequences = []  # (pages, token ids)
        self.content = {}  # (page, row) -> token id, as the kernels would leave it
        self.next_token = 0

    @rule()
    def start(self):
        self.sequences.append(((), []))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data):
        pages, tokens = data.draw(st.sampled_from(self.sequences))
        self.pool.share(pages)
        self.sequences.append((pages, list(tokens)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def extend(self, data):
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.sequences))), unique=True, min_size=1))
        counts = [data.draw(st.integers(0, 5)) for _ in chosen]
        pages, tokens = zip(*(self.sequences[i] for i in chosen), strict=True)
        before = snapshot(self.pool)
        try:
            growth = grow(self.pool, pages, [len(t) for t in tokens], counts, self.page_size)
        except CacheFull:
            assert snapshot(self.pool) == before
            return
        for source, target in growth.copies:
            for row in range(self.page_size):
                self.content[target, row] = self.content.get((source, row))
        self.pool.take(growth.taken)
        self.pool.release([source for source, _ in growth.copies])
        for i, held, length in zip(chosen, growth.pages, growth.lengths, strict=True):
            grown = list(self.sequences[i][1])
            while len(grown) < length:
                self.content[held[len(grown) // self.page_size], len(grown) % self.page_size] = self.next_token
                grown.append(self.next_token)
                self.next_token += 1
            self.sequences[i] = (held, grown)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def truncate(self, data):
        i = data.draw(st.sampled_from(range(len(self.sequences))))
        pages, tokens = self.sequences[i]
        tokens = tokens[: data.draw(st.integers(0, len(tokens)))]
        kept = num_pages(len(tokens), self.page_size)
        self.pool.release(pages[kept:])
        self.sequences[i] = (pages[:kept], tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data):
        pages, _ = self.sequences.pop(data.draw(st.sampled_from(range(len(self.sequences)))))
        self.pool.release(pages)

    @invariant()
    def every_sequence_still_reads_its_own_tokens(self):
        for pages, tokens in self.sequences:
            for t, token in enumerate(tokens):
                assert self.content[pages[t // self.page_size], t % self.page_size] == token

    @invariant()
    def owners_are_the_sequences_that_hold_a_page(self):
        held = [page for pages, _ in self.sequences for page in pages]
        assert [self.pool.owners(page) for page in range(12)] == [held.count(page) for page in range(12)]
        assert self.pool.num_free == 12 - len(set(held))


TestPages = Pages.TestCase
