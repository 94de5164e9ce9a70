"""kvit.layouts.overlap against sets of bytes: whether rows lie over each other."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvit.layouts.overlap import Rows, meet

PERIOD = 64


@st.composite
def rows(draw, page_stride=None):
    tokens, heads, row = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    chunk = draw(st.sampled_from([size for size in range(1, row + 1) if row % size == 0]))
    place = draw(st.integers(0, 300)), draw(st.integers(0, 20)), draw(st.integers(0, 20)), draw(st.integers(0, 9))
    stride = PERIOD if page_stride is None else page_stride
    found = Rows("rows", place[0], stride, place[1], place[2], row, chunk, place[3], tokens, heads, 0, ())
    touched = {
        found.base + page * stride + token * place[1] + head * place[2] + piece * place[3] + byte
        for page in range(3)
        for token in range(tokens)
        for head in range(heads)
        for piece in range(row // chunk)
        for byte in range(chunk)
    }
    return found._replace(spans=((min(touched), max(touched) + 1),)), touched


@settings(max_examples=500)
@given(rows(), rows())
def test_rows_that_share_a_byte_are_never_missed(a, b):
    # The other way round it may err: rows at the same stride are held to meet if any pages of theirs would.
    if a[1] & b[1]:
        assert meet(a[0], b[0])


@given(rows(), rows())
def test_rows_that_no_pages_of_theirs_share_do_not_meet(a, b):
    residues = [{byte % PERIOD for byte in touched} for _, touched in (a, b)]
    if not residues[0] & residues[1]:
        assert not meet(a[0], b[0])


@given(rows(), rows(page_stride=48))
def test_rows_at_different_strides_meet_unless_their_memory_is_apart(a, b):
    (low, high), (other_low, other_high) = a[0].spans[0], b[0].spans[0]
    assert meet(a[0], b[0]) == (low < other_high and other_low < high)
