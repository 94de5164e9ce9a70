"""kvit/iterators/banks.py: the emulated banks, on accesses whose cost is known."""

import pytest

from kvit.errors import LayoutError, ShapeError
from kvit.iterators import IDENTITY, RakedThreadMap, SmemLayout, bank_conflicts, copy_conflicts, matrix_conflicts


@pytest.mark.parametrize(
    ("addresses", "access_bytes", "turns"),
    [
        (range(0, 128, 4), 4, 1),  # neighbours
        ([0] * 32, 4, 1),  # one word is broadcast
        (range(0, 32 * 8, 8), 4, 2),  # every other bank
        (range(0, 32 * 128, 128), 4, 32),  # one bank
        (range(0, 32 * 16, 16), 16, 1),  # eight lanes at a time
        (range(0, 32 * 32, 32), 16, 2),
        (range(0, 32 * 128, 128), 16, 8),
        (range(0, 32 * 8, 8), 8, 1),  # sixteen lanes at a time
        (range(0, 32), 1, 1),  # bytes of the same words
        ([], 16, 1),
    ],
)
def test_turns_of_known_accesses(addresses, access_bytes, turns):
    assert bank_conflicts(list(addresses), access_bytes) == turns


@pytest.mark.parametrize(
    ("addresses", "access_bytes", "error", "words"),
    [
        ([1], 4, LayoutError, "1 is no address of 4 bytes; addresses must be multiples of 4"),
        (range(8, 8 + 8 * 16, 16), 16, LayoutError, "8 is no address of 16 bytes"),
        ([-4], 4, LayoutError, "-4 is no address"),
        (range(0, 96, 3), 3, ShapeError, "access_bytes is 3; a lane moves 1, 2, 4, 8, 16 bytes"),
        ([0], 0, ShapeError, "access_bytes is 0"),
        ([0], -4, ShapeError, "access_bytes is -4"),
        ([0], 32, ShapeError, "access_bytes is 32"),
        (range(0, 33 * 4, 4), 4, ShapeError, r"shape \[33\]; give one for each lane, 32 at most"),
        ([[0, 4]], 4, ShapeError, r"shape \[1, 2\]"),
        ([0.5, 4.0], 4, ShapeError, "addresses are float64"),
        ([0], 4.0, ShapeError, "access_bytes is 4.0"),
        ([0], "4", ShapeError, "access_bytes is '4'"),
        ([[0], [4, 8]], 4, ShapeError, "addresses are no plain list"),
        ([2**64 - 16], 16, LayoutError, "18446744073709551600 is no address"),
        ([2**40], 4, LayoutError, "1099511627776 is no address"),
    ],
)
def test_what_no_warp_can_access_is_refused(addresses, access_bytes, error, words):
    with pytest.raises(error, match=words):
        bank_conflicts(list(addresses), access_bytes)


@pytest.mark.parametrize("tokens", [4, 12])
def test_a_tile_without_whole_matrices_is_refused(tokens):
    with pytest.raises(ShapeError, match="no whole number of matrices of 8 tokens by 8 channels of 16 bits"):
        matrix_conflicts(SmemLayout(tokens, 64, 4, 64, IDENTITY), 16)


def test_rows_of_128_bytes_without_a_swizzle_read_eight_tokens_in_eight_turns():
    layout = SmemLayout(64, 64, 64, 64, IDENTITY)
    assert copy_conflicts(RakedThreadMap(64, 64, 8, 4), layout, 16) == 1
    assert matrix_conflicts(layout, 16) == 8
