"""kvit/iterators/banks.py: the emulated banks, on accesses whose cost is known."""

import pytest

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


def test_rows_of_128_bytes_without_a_swizzle_read_eight_tokens_in_eight_turns():
    layout = SmemLayout(64, 64, 64, 64, IDENTITY)
    assert copy_conflicts(RakedThreadMap(64, 64, 8, 4), layout, 16) == 1
    assert matrix_conflicts(layout, 16) == 8
