"""kvit/iterators/gmem_iterator.py: the model against the plain meaning of a tile, and how it draws itself."""

import numpy as np
import pytest

from kvit.errors import LayoutError
from kvit.iterators import (
    GmemIterator,
    RakedThreadMap,
    SmemLayout,
    Swizzle,
    kv_layout,
    kv_thread_map,
    param_layout,
    param_thread_map,
)

# 4-bit 64 x 32: warps without tokens; 8-bit 192: several accesses along a row.
ITERATORS = [
    GmemIterator(kv_thread_map(bits, head_dim, tokens, 4), kv_layout(bits, head_dim, tokens), bits)
    for bits, head_dim, tokens in [(16, 128, 64), (8, 192, 64), (4, 64, 32)]
]
PARAMS = GmemIterator(param_thread_map(ITERATORS[2].thread_map), param_layout(32), 16)


def random_rows(rng, iterator):
    return rng.integers(0, 256, (iterator.layout.s, iterator.row_bytes), np.uint8)


@pytest.mark.parametrize("iterator", [*ITERATORS, PARAMS], ids=str)
def test_every_byte_of_the_tile_is_where_the_layout_says(iterator, rng):
    rows = random_rows(rng, iterator)
    shared = np.full(iterator.tile_bytes * 2, 0xFF, np.uint8)
    iterator.save(iterator.load(rows), shared, stage=1)
    # In steps of whole bytes: one element, or two of four bits.
    step = max(1, 8 // iterator.bits)
    for s in range(iterator.layout.s):
        for c in range(0, iterator.layout.c, step):
            place = iterator.layout.index(s, c, iterator.layout.size) * iterator.bits // 8
            first = c * iterator.bits // 8
            size = step * iterator.bits // 8
            assert (shared[place : place + size] == rows[s, first : first + size]).all()
    assert (shared[: iterator.tile_bytes] == 0xFF).all()


@pytest.mark.parametrize("iterator", [*ITERATORS, PARAMS], ids=str)
def test_reading_back_gives_what_was_loaded(iterator, rng):
    fragments = iterator.load(random_rows(rng, iterator))
    shared = np.zeros(iterator.tile_bytes * 3, np.uint8)
    iterator.save(fragments, shared, stage=2)
    np.testing.assert_array_equal(iterator.read_back(shared, stage=2), fragments)


def test_threads_outside_the_tile_hold_zeros(rng):
    iterator = ITERATORS[2]
    fragments = iterator.load(random_rows(rng, iterator) | 1)
    assert fragments[:64].any(axis=(1, 2, 3)).all()  # two warps have the 32 tokens
    assert not fragments[64:].any()


@pytest.mark.parametrize(
    ("thread_map", "layout", "bits", "words"),
    [
        (kv_thread_map(16, 128, 64, 4), kv_layout(16, 64, 64), 16, "different tiles"),
        (RakedThreadMap(64, 64, 16, 4), kv_layout(16, 64, 64), 16, "must be 1, 2, 4, 8 or 16 bytes"),
        # The shape that faults in the original: vectors of 32 codes, moved by 16 codes.
        (kv_thread_map(4, 64, 64, 4), SmemLayout(64, 64, 32, 64, Swizzle(3, 4, 3)), 4, "misaligns accesses of 32"),
    ],
)
def test_what_cpp_refuses_the_model_refuses(thread_map, layout, bits, words):
    with pytest.raises(LayoutError, match=words):
        GmemIterator(thread_map, layout, bits)


def test_a_drawing_shows_lanes_and_banks():
    iterator = GmemIterator(kv_thread_map(8, 128, 32, 4), kv_layout(8, 128, 32), 8)
    lines = iterator.draw(rows=3).splitlines()
    assert lines[0] == "RakedThreadMap<128, 32, 16, 4, 8>: warp.lane of every access"
    assert lines[1].split() == ["s", "0", *(f"0.{lane:02}" for lane in range(8))]
    assert lines[2].split() == ["s", "1", *(f"0.{lane:02}" for lane in range(8, 16))]
    assert lines[4] == "  ... 29 more rows"
    assert lines[5].startswith("SmemLayout<32, 128, 16, 128, Swizzle<3, 4, 3>>, 8-bit elements")
    # Row s of an atom is XORed by s: each column has eight different bank groups in eight rows.
    assert [line.split()[2:] for line in lines[6:9]] == [list("01234567"), list("10325476"), list("23016745")]


def test_a_drawing_separates_atoms_and_marks_what_nobody_moves():
    assert kv_layout(16, 128, 32).draw(16, rows=1).splitlines()[1] == "  s   0  0 1 2 3 4 5 6 7 |0 1 2 3 4 5 6 7"
    assert str(ITERATORS[0]).startswith("GmemIterator(16 bits, RakedThreadMap<128, 64, 8, 4, 16>, SmemLayout<")
