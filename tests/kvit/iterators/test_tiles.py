"""kvit/iterators/tiles.py: rows and faults of a table, worked out by hand."""

import numpy as np
import pytest

from kvit.errors import ShapeError
from kvit.iterators import Fault, FaultKind, Table, linear_rows, paged_rows

# Byte 0 of the row of (page, token, head) spells it out: page * 100 + token * 10 + head.
PAGE_SIZE = 2
POOL = (
    100 * np.arange(2)[:, None, None, None] + 10 * np.arange(PAGE_SIZE)[:, None, None] + np.arange(2)[:, None]
).astype(np.uint8)


def ints(values):
    return np.array(values, np.int32)


def test_rows_follow_the_page_table_and_end_with_the_sequence():
    table = Table(ints([[0, 0], [1, 0]]), ints([0, 3]))
    rows, faults = paged_rows(POOL, table, sequence=1, head=1, tile=0, tokens=5)
    assert rows[:, 0].tolist() == [101, 111, 1, 0, 0]
    assert not faults
    rows, _ = paged_rows(POOL, table, sequence=1, head=1, tile=1, tokens=2)
    assert rows[:, 0].tolist() == [1, 0]
    rows, _ = paged_rows(POOL, table, sequence=1, head=1, tile=0, tokens=5, max_s=1)
    assert rows[:, 0].tolist() == [101, 0, 0, 0, 0]


def test_ragged_rows_begin_at_indptr():
    table = Table(ints([0, 1, 0]), ints([2, 3]), ints([0, 1, 3]))
    rows, faults = paged_rows(POOL, table, sequence=1, head=0, tile=0, tokens=4)
    assert rows[:, 0].tolist() == [100, 110, 0, 0]  # page 0, token 0, head 0 spells 0 too
    assert not faults


def test_what_is_wrong_is_named_and_zero():
    table = Table(ints([[2, 1]]), ints([4]))
    rows, faults = paged_rows(POOL, table, sequence=0, head=1, tile=0, tokens=4)
    assert rows[:, 0].tolist() == [0, 0, 101, 111]
    assert faults == {Fault(FaultKind.PAGE, 0, 0, 2)}
    _, faults = paged_rows(POOL, Table(ints([[1]]), ints([3])), sequence=0, head=0, tile=0, tokens=4)
    assert faults == {Fault(FaultKind.LENGTH, 0, 0, 3)}


def test_linear_rows_are_counted_in_tokens():
    tokens = POOL.reshape(1, 4, 2, 1)
    dense = Table(ints(np.zeros((2, 2))), ints([2, 1]))
    assert linear_rows(tokens, dense, 1, 1, 0, 2)[0][:, 0].tolist() == [101, 0]
    ragged = Table(ints(np.zeros(4)), ints([1, 3]), ints([0, 1, 4]))
    assert linear_rows(tokens, ragged, 1, 1, 1, 2)[0][:, 0].tolist() == [111, 0]
    assert linear_rows(tokens, ragged, 1, 1, 0, 2, max_s=1)[0][:, 0].tolist() == [11, 0]


@pytest.mark.parametrize(
    ("pages", "lengths", "indptr", "words"),
    [
        (np.zeros(4), [1, 1], None, r"dense table is \[sequences, slots\]"),
        (np.zeros((3, 2)), [1, 1], None, r"dense table is \[sequences, slots\]"),
        (np.zeros((2, 2)), [1, 1], [0, 1, 2], r"ragged table is \[entries\]"),
        (np.zeros(4), [1, 1], [0, 1], r"ragged table is \[entries\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(pages, lengths, indptr, words):
    with pytest.raises(ShapeError, match=words):
        Table(ints(pages), ints(lengths), None if indptr is None else ints(indptr))
