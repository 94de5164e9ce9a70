"""kvit/iterators/box_iterator.py: the model against the hardware's definitions, and how it draws itself."""

import numpy as np
import pytest

from kvit.errors import LayoutError, ShapeError
from kvit.iterators import BoxIterator, TensorLayout, box_sizes
from kvit.iterators.banks import bank_conflicts

# Every swizzle, and rows of one, two and four chunks.
ITERATORS = [BoxIterator(TensorLayout(row_bytes, 32)) for row_bytes in (32, 64, 128, 256, 512)]
ALL = pytest.mark.parametrize("iterator", ITERATORS, ids=str)


def random_rows(rng, iterator):
    return rng.integers(0, 256, (iterator.layout.tokens, iterator.row_bytes), np.uint8)


def filled(rng, iterator, stage=1):
    rows = random_rows(rng, iterator)
    shared = np.full(2 * iterator.tile_bytes, 0xFF, np.uint8)
    for s in range(0, iterator.layout.tokens, 8):
        iterator.prefetch(rows[s : s + 8], shared, s, stage)
    return rows, shared


@ALL
def test_a_box_lies_as_the_swizzle_of_its_mode_is_defined(iterator, rng):
    # CUtensorMapSwizzle: of an address, bits 6..4 ^= 9..7 (128 bytes), 5..4 ^= 8..7 (64), 4 ^= 7 (32).
    rows, shared = filled(rng, iterator)
    layout, tile = iterator.layout, shared[iterator.tile_bytes :]
    mask = {128: 7, 64: 3, 32: 1}[layout.span]
    for chunk in range(layout.chunks):
        dense = np.ascontiguousarray(rows[:, chunk * layout.span :][:, : layout.span]).ravel()
        for at in range(0, len(dense), 16):
            address = chunk * layout.chunk_bytes + at
            place = address ^ ((address >> 7 & mask) << 4)
            np.testing.assert_array_equal(tile[place : place + 16], dense[at : at + 16])
    assert (shared[: iterator.tile_bytes] == 0xFF).all()


@ALL
def test_rows_are_what_was_copied(iterator, rng):
    rows, shared = filled(rng, iterator)
    np.testing.assert_array_equal(iterator.rows(shared, stage=1), rows)


@pytest.mark.parametrize("s", [-8, 25, 32])
def test_a_box_that_reaches_past_the_tile_is_refused(s):
    # What it would overwrite is the next chunk, or another slot.
    shared = np.zeros(2 * ITERATORS[2].tile_bytes, np.uint8)
    with pytest.raises(ShapeError, match=f"8 tokens from token {s} on; the tile has 32"):
        ITERATORS[2].prefetch(np.ones((8, 128), np.uint8), shared, s)
    assert not shared.any()


@pytest.mark.parametrize("s", [-3, 0, 9, 31, 32])
@ALL
def test_clear_zeroes_rows_of_its_own_slot_from_a_token_on(iterator, s, rng):
    rows, shared = filled(rng, iterator)
    iterator.clear(shared, s, stage=1)
    kept = max(s, 0)
    np.testing.assert_array_equal(iterator.rows(shared, 1), np.where(np.arange(32)[:, None] < kept, rows, 0))
    assert (shared[: iterator.tile_bytes] == 0xFF).all()


def matrix_load(rows_16_bytes, transposed):
    """ldmatrix.x4 as the PTX ISA has it: lane l names row l % 8 of matrix l / 8. Returns 16-bit [lane, matrix, 2]."""
    matrices = np.stack(rows_16_bytes).view(np.uint16).reshape(4, 8, 8)
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    return np.stack([matrices[:, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2] for lane in range(32)])


@pytest.mark.parametrize("transposed", [False, True])
@ALL
def test_matrix_loads_deal_a_tile_as_ldmatrix_does(iterator, transposed, rng):
    rows, shared = filled(rng, iterator)
    found = iterator.load_matrices(shared, 1, transposed=transposed)
    assert found.size == 32 * iterator.fragment_bytes == rows.size
    for step in range(2):
        for load in range(iterator.row_bytes // 32):
            named = []
            for lane in range(32):
                # Tokens and vectors that the lanes name: kernels/attention/key_product.cuh, value_product.cuh.
                s, vector = (lane // 16 * 8 + lane % 8, lane // 8 % 2) if transposed else (lane % 16, lane // 16)
                named.append(rows[step * 16 + s, load * 32 + vector * 16 :][:16])
            expected = matrix_load(named, transposed).view(np.uint8).reshape(32, 4, 4)
            np.testing.assert_array_equal(found[:, step, load], expected)


@ALL
def test_matrix_loads_have_no_bank_conflicts(iterator):
    for s in range(0, iterator.layout.tokens, 8):
        for byte in range(0, iterator.row_bytes, 16):
            assert bank_conflicts(iterator.layout.offset(np.arange(s, s + 8), byte), 16) == 1


def test_a_tile_of_8_tokens_is_less_than_a_matrix_load():
    iterator = BoxIterator(TensorLayout(128, 8))
    with pytest.raises(LayoutError, match="reads 16 tokens"):
        iterator.load_matrices(np.zeros(iterator.tile_bytes, np.uint8))


@pytest.mark.parametrize(
    ("page_size", "tile", "sizes"),
    [
        (8, 64, [8]),
        (24, 64, [8]),
        (48, 64, [8, 16]),
        (256, 64, [8, 16, 32, 64]),
        (256, 128, [8, 16, 32, 64]),
        (64, 16, [8, 16]),
        (12, 64, []),
        (1, 64, []),
    ],
)
def test_a_box_divides_page_and_tile(page_size, tile, sizes):
    assert box_sizes(page_size, tile) == sizes


def test_a_drawing_shows_who_asks_for_what_and_the_banks():
    lines = BoxIterator(TensorLayout(256, 64)).draw(16, rows=2).splitlines()
    assert lines[0].startswith("BoxIterator(TensorLayout<256 bytes, 64>), boxes of 16 tokens")
    # The third box begins with token 32, which lane 0 looks after again, and goes to line 32 of each chunk.
    assert lines[3].split() == ["lane", "0", "s", "32..47", "4096..6143", "12288..14335"]
    assert [line.split()[2:] for line in lines[6:8]] == [
        [*"01234567", "|0", *"1234567"],
        [*"10325476", "|1", *"0325476"],
    ]
    assert lines[8] == "  ... 62 more rows"
