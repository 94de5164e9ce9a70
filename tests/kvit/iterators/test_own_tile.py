"""kvit.iterators.own_tile: the model of a map and a layout of one's own, against the models of kvit's iterators."""

import numpy as np
import pytest

from kvit.errors import LayoutError, ShapeError
from kvit.iterators import GmemIterator, RakedThreadMap, SmemLayout, Swizzle, kv_layout, kv_thread_map
from kvit.iterators.own_tile import OwnTile


# Every width of an element, and a map of which some lanes reach past the row (96 channels) and past the tile (40).
@pytest.mark.parametrize(
    ("bits", "layout", "threads"),
    [
        (16, kv_layout(16, 64, 64), kv_thread_map(16, 64, 64, 4)),
        (8, kv_layout(8, 128, 64), kv_thread_map(8, 128, 64, 4)),
        (4, kv_layout(4, 64, 64), kv_thread_map(4, 64, 64, 4)),
        (32, SmemLayout(40, 96, 8, 32, Swizzle(3, 2, 3)), RakedThreadMap(96, 40, 4, 2, 32)),
    ],
    ids=["16", "8", "4", "32"],
)
@pytest.mark.parametrize("stages", [1, 3])
def test_it_expects_what_the_models_of_the_iterators_do(bits, layout, threads, stages):
    tile, iterator = OwnTile.of(layout, threads, bits, stages), GmemIterator(threads, layout, bits)
    assert (tile.tokens, tile.channels, tile.access_bytes) == (layout.s, layout.c, iterator.access_bytes)
    rows = tile.checked_rows(None)
    image = np.full(iterator.tile_bytes * stages, 0xFF, np.uint8)
    fragments = iterator.load(rows)
    iterator.save(fragments, image, stages - 1)
    shared, found = tile.expected(rows, layout.size)
    np.testing.assert_array_equal(shared, image)
    np.testing.assert_array_equal(found, fragments.reshape(threads.threads, -1))


def test_a_difference_names_the_element_and_the_thread():
    layout, threads = kv_layout(16, 64, 64), kv_thread_map(16, 64, 64, 4)
    tile = OwnTile.of(layout, threads, 16, 2)
    rows = tile.checked_rows(None)
    shared, fragments = tile.expected(rows, layout.size)
    byte = (layout.size + int(layout.index(5, 17))) * 2  # of the stage that the tile lands in
    wrong, other = shared.copy(), fragments.copy()
    wrong[[3, byte]] ^= 1
    other[33, 16] ^= 1  # warp 1, lane 1: the first byte of its second access
    first, second = tile.differences_of_shared(wrong, shared, layout.size)
    assert first.startswith("shared memory, byte 3 (element 1 of stage 0): 0xfe") and "puts nothing" in first
    assert (
        second.endswith("of token 5, channel 17")
        and f"byte {byte} (element {layout.index(5, 17)} of stage 1)" in second
    )
    [words] = tile.differences_of_fragments(other, fragments)
    at = list(threads.accesses(1, 1))[1].at
    assert words.startswith("fragment of warp 1, lane 1, byte 16 (access 1")
    assert f"from token {at.s}, channel {at.c} on" in words
    assert list(tile.differences_of_shared(shared, shared, layout.size)) == []


class Some:
    """A map of one access for each of so many threads."""

    access_c = 8

    def __init__(self, threads, covered=True):
        self.threads, self.covered = threads, covered

    def coordinates(self):
        s = np.arange(self.threads)[:, None]
        return s, 0 * s, np.full(s.shape, self.covered)


def test_models_that_cannot_be_are_refused():
    layout, threads = kv_layout(16, 64, 64), kv_thread_map(16, 64, 64, 4)
    with pytest.raises(ShapeError, match="bits is 12; elements have 4, 8, 16 or 32"):
        OwnTile.of(layout, threads, 12, 1)
    for stages in (0, True, 2.0):
        with pytest.raises(ShapeError, match="stages is .*; it must be a whole number of at least 1"):
            OwnTile.of(layout, threads, 16, stages)
    with pytest.raises(ShapeError, match="an access of 8 channels of 32 bits has 32 bytes"):
        OwnTile.of(layout, threads, 32, 1)
    for wrong in (Some(33), Some(0), Some(32, covered=False)):
        with pytest.raises(ShapeError, match="the thread map has .* give whole warps of 32 threads"):
            OwnTile.of(layout, wrong, 16, 1)
    with pytest.raises(LayoutError, match="the layout puts an element at -64; offsets begin at 0"):
        OwnTile.of(lambda s, c: s * 64 + c - 64, threads, 16, 1)
    with pytest.raises(LayoutError, match=r"puts elements \(0, 8\) and \(1, 0\), token and channel, both at 8"):
        OwnTile.of(lambda s, c: s * 8 + c, threads, 16, 1)
    with pytest.raises(LayoutError, match=r"gives offsets float64 .*; it must give a whole number for each"):
        OwnTile.of(lambda s, c: s * 64.0 + c, threads, 16, 1)
    with pytest.raises(LayoutError, match=r"gives offsets int64 \[\] for elements \[128, 4, 8\]"):
        OwnTile.of(lambda s, c: 3, threads, 16, 1)
    with pytest.raises(LayoutError, match="the layout has 2048 elements and puts one at 4095"):
        OwnTile.of(SmemLayout(32, 64, 16, 64), threads, 16, 1)
    tile = OwnTile.of(layout, threads, 16, 1)
    for wrong in (np.zeros((64, 127), np.uint8), np.zeros((64, 128), np.int8)):
        with pytest.raises(ShapeError, match=r"the map moves uint8 \[tokens = 64, row_bytes = 128\]"):
            tile.checked_rows(wrong)


def test_sizes_that_differ_from_the_models_are_refused():
    tile = OwnTile.of(kv_layout(16, 64, 64), kv_thread_map(16, 64, 64, 4), 16, 1)
    tile.check_sizes(128, 4096, 64)
    for sizes, words in (
        ((64, 4096, 64), "the compiled map has 64 threads and its model 128"),
        ((128, 4096, 32), "the compiled map has 2 accesses of a thread and its model 4"),
        ((128, 4608, 64), "the compiled layout has 4608 elements and its model 4096"),
    ):
        with pytest.raises(LayoutError, match=words):
            tile.check_sizes(*sizes)
    padded = OwnTile.of(lambda s, c: s * 72 + c, kv_thread_map(16, 64, 64, 4), 16, 1)
    padded.check_sizes(128, 4608, 64)  # a function says no size: the compiled one must have room
    with pytest.raises(LayoutError, match="the compiled layout has 4599 elements, and its model puts one at 4599"):
        padded.check_sizes(128, 4599, 64)
