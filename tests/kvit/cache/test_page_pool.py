"""kvit/cache/page_pool.py: the sequences of a pool, what each has, and what becomes of it when pages move."""

import pytest

from kvit.cache.page_pool import PagePool
from kvit.errors import CacheFull, KvitError, SequenceFreed, ShapeError


def new_sequence(pool):
    number = pool.new_number()
    pool.add(number)
    return number


def fork(pool, sequence):
    number = pool.new_number()
    pool.fork(sequence, number)
    return number


def grown(pool, *counts):
    """New sequences of so many tokens."""
    sequences = [new_sequence(pool) for _ in counts]
    pool.keep(pool.grow(sequences, counts))
    return sequences


def snapshot(pool, sequences):
    return pool.pages_of_all(sequences), [pool.owners(page) for page in range(pool.num_pages)], pool.num_free


def test_sequences_have_numbers_of_their_own_and_grow_together():
    pool = PagePool(8, page_size=4)
    first, second = grown(pool, 5, 4)
    assert first != second
    assert pool.pages_of_all([second, first]) == [((2,), 4), ((0, 1), 5)]
    assert (pool.num_free, pool.used()) == (5, [0, 1, 2])


def test_growth_is_not_seen_before_it_is_kept_and_leaves_nothing_when_dropped():
    pool = PagePool(8, page_size=4)
    [sequence] = grown(pool, 3)
    twin = fork(pool, sequence)
    before = snapshot(pool, [sequence, twin])
    growth = pool.grow([sequence, twin], [2, 1])
    assert pool.pages_of_all([sequence, twin]) == before[0]
    assert growth.taken and snapshot(pool, [sequence, twin]) == before


@pytest.mark.parametrize(
    "between",
    [
        lambda pool, sequence, twin: pool.truncate(sequence, 1),
        lambda pool, sequence, twin: pool.free(twin),
        lambda pool, sequence, twin: grown(pool, 4),
    ],
    ids=["truncated", "freed", "another took the page"],
)
def test_growth_of_what_was_changed_meanwhile_is_refused_and_changes_nothing(between):
    pool = PagePool(8, page_size=4)
    sequence, twin = grown(pool, 3, 3)
    growth = pool.grow([sequence, twin], [2, 1])
    between(pool, sequence, twin)
    before = pool.num_free, pool.used(), pool.pages_of(sequence)
    with pytest.raises(KvitError, match="the cache was changed while it appended"):
        pool.keep(growth)
    assert (pool.num_free, pool.used(), pool.pages_of(sequence)) == before


def test_pages_that_are_freed_meanwhile_do_not_disturb_a_growth():
    pool = PagePool(8, page_size=4)
    sequence, other = grown(pool, 3, 8)
    growth = pool.grow([sequence], [6])
    pool.free(other)
    pool.keep(growth)
    assert pool.pages_of(sequence) == ((0, 3, 4), 9) and (pool.used(), pool.num_free) == ([0, 3, 4], 5)


class User:
    """Whoever uses a sequence."""


def test_a_sequence_is_freed_when_its_user_has_gone():
    pool = PagePool(8, page_size=4)
    user = User()
    number = pool.new_number(user)
    pool.add(number)
    pool.keep(pool.grow([number], [9]))
    assert pool.num_free == 5
    del user
    assert pool.num_free == 8 and pool.is_freed(number)


def test_a_user_that_goes_before_its_sequence_came_or_after_it_went_leaves_nothing():
    pool = PagePool(8, page_size=4)
    never, freed = User(), User()
    pool.new_number(never)
    number = pool.new_number(freed)
    pool.add(number)
    pool.keep(pool.grow([number], [9]))
    pool.free(number)
    del never, freed
    assert (pool.num_free, pool.used()) == (8, [])


def test_a_kept_growth_lets_go_of_the_page_that_was_copied():
    pool = PagePool(8, page_size=4)
    [sequence] = grown(pool, 3)
    twin = fork(pool, sequence)
    growth = pool.grow([twin], [1])
    [(source, target)] = growth.copies
    pool.keep(growth)
    assert pool.pages_of_all([sequence, twin]) == [((source,), 3), ((target,), 4)]
    assert (pool.owners(source), pool.owners(target)) == (1, 1)


def test_a_growth_that_finds_too_few_pages_changes_nothing():
    pool = PagePool(2, page_size=4)
    sequences = grown(pool, 4, 4)
    before = snapshot(pool, sequences)
    with pytest.raises(CacheFull, match="needs 2 more pages and has 0 free of 2"):
        pool.grow(sequences, [1, 1])
    assert snapshot(pool, sequences) == before


@pytest.mark.parametrize("use", [PagePool.pages_of, fork, lambda pool, number: pool.truncate(number, 0)])
def test_a_freed_sequence_is_refused_and_freeing_again_does_nothing(use):
    pool = PagePool(2, page_size=4)
    [sequence] = grown(pool, 5)
    pool.free(sequence)
    pool.free(sequence)
    assert pool.is_freed(sequence) and pool.num_free == 2
    with pytest.raises(SequenceFreed, match=r"take a new one from cache.sequence\(\)"):
        use(pool, sequence)


def test_a_number_is_not_given_again():
    pool = PagePool(2, page_size=4)
    freed = new_sequence(pool)
    pool.free(freed)
    assert new_sequence(pool) != freed


def test_truncating_releases_pages_that_hold_no_token_any_more():
    pool = PagePool(4, page_size=4)
    [sequence] = grown(pool, 9)
    pool.truncate(sequence, 5)
    assert pool.pages_of(sequence) == ((0, 1), 5) and pool.num_free == 2
    with pytest.raises(ShapeError, match="cannot truncate a sequence of 5 tokens to 6; give 0 to 5"):
        pool.truncate(sequence, 6)


@pytest.mark.parametrize("by_sequence", [False, True])
def test_pages_get_new_ids_in_every_sequence_that_has_them(by_sequence):
    pool = PagePool(8, page_size=4)
    gone, first, second = grown(pool, 8, 4, 8)  # pages 0 and 1, 2, 3 and 4
    twin = fork(pool, second)
    pool.keep(pool.grow([first], [4]))  # page 5
    pool.free(gone)
    moves = pool.moves_to_front(by_sequence)
    setattr(*pool.renaming(moves))
    # As few moves as possible fill the holes 0 and 1; by sequence, the pages of `first` come first, side by side.
    expected = [((0, 1), 8), ((2, 3), 8)] if by_sequence else [((2, 1), 8), ((3, 0), 8)]
    assert moves == ({2: 0, 5: 1, 3: 2, 4: 3} if by_sequence else {4: 0, 5: 1})
    assert pool.pages_of_all([first, second, twin]) == [*expected, expected[1]]
    assert [pool.owners(page) for page in range(8)].count(2) == 2 and pool.used() == [0, 1, 2, 3]
