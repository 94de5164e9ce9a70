"""kvit.cache.page_shift: whatever is dropped, no row that is written is read, and no page of others is written."""

import itertools

import pytest

import kvit
from kvit._native.page_changes import PageChange
from kvit.cache.page_shift import move_to_front

PAGES = 60


def pool_of(num_pages, page_lists):
    """A pool whose sequences, which must be kept, have these pages."""
    pool = kvit.PagePool(num_pages, 1)
    seqs = tuple(pool.sequence() for _ in page_lists)
    PageChange(pool, sequences=seqs, after=[(pages, len(pages)) for pages in page_lists]).is_made = True
    return pool, seqs


def rows_of(sequence, page_size):
    """(page, row) of every token."""
    pages, length = sequence
    return [(pages[token // page_size], token % page_size) for token in range(length)]


@pytest.mark.parametrize("page_size", [1, 3, 4])
def test_what_is_written_is_read_by_nobody_and_had_by_nobody_else(page_size):
    # All numbers of two sequences that share some pages, none or all, with a third one that stays.
    checked = 0
    for length, shared in itertools.product([5, 9, 12], [0, 1, 3]):
        count = -(-length // page_size)
        common = tuple(range(min(shared, count)))
        first = (*common, *range(30, 30 + count - len(common)))
        others = [(*common, *range(10, 10 + count - len(common))), common]
        owners, _kept = pool_of(PAGES, [first, *others])
        for keep in range(length + 1):
            for drop in range(length - keep + 1):
                before = [(first, length), (others[0], length)]
                after = move_to_front(owners, before, [keep, 0], [drop, 3], page_size)
                read, written = set(), set()
                for old, new, begin, gone in zip(before, after, [keep, 0], [drop, 3], strict=True):
                    assert new[1] == length - gone and len(new[0]) == -(-new[1] // page_size)
                    source = rows_of(old, page_size)
                    source = source[:begin] + source[begin + gone :]
                    for here, there in zip(source, rows_of(new, page_size), strict=True):
                        if here != there:
                            read.add(here)
                            written.add(there)
                        elif gone and there[0] in common:  # a key that turned in place would turn for others too
                            assert rows_of(new, page_size).index(there) < begin
                assert not read & written
                assert not {page for page, _ in written} & set(common)
                taken = [page for pages, _ in after for page in pages if page not in common]
                assert len(taken) == len(set(taken))
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("drop", [4, 8])
def test_pages_that_are_shared_stay_where_no_key_turns(drop):
    pages = (3, 1, 4, 5)
    owners, _kept = pool_of(PAGES, [pages, pages])
    [after] = move_to_front(owners, [(pages, 15)], [4], [drop], 4, turns=False)
    assert after == ((3, *pages[1 + drop // 4 :]), 15 - drop)
    [turned] = move_to_front(owners, [(pages, 15)], [4], [drop], 4)
    assert turned[0][0] == 3 and not {*turned[0][1:]} & {*pages}


def test_as_few_pages_are_taken_as_the_dropped_ones_leave():
    owners, _kept = pool_of(8, [(0, 1, 2, 3, 4)])
    # By whole pages: none. Else those between the last kept token and the first that moves, then free ones.
    assert move_to_front(owners, [((0, 1, 2, 3, 4), 19)], [4], [8], 4) == [((0, 3, 4), 11)]
    assert move_to_front(owners, [((0, 1, 2, 3, 4), 19)], [4], [9], 4) == [((0, 1, 2), 10)]
    assert move_to_front(owners, [((0, 1, 2, 3, 4), 19)], [4], [5], 4) == [((0, 1, 5, 6), 14)]
    assert move_to_front(owners, [((0, 1, 2, 3, 4), 19)], [3], [16], 4) == [((0,), 3)]
    assert move_to_front(owners, [((0, 1, 2, 3, 4), 19)], [3], [0], 4) == [((0, 1, 2, 3, 4), 19)]
