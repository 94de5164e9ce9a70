"""kvit.iterators.report: counted lane by lane in plain Python, for kvit's layouts and for layouts of one's own."""

import numpy as np
import pytest

from kvit.errors import LayoutError, ShapeError
from kvit.iterators import RakedThreadMap, SmemLayout, Swizzle, kv_layout, kv_thread_map, report


def counted(layout, threads, bits, row_stride, base=0):
    """(turns, least, sectors) of all accesses, one lane and one byte at a time."""
    size = threads.access_c * bits // 8
    turns = least = sectors = 0
    for warp in range(threads.warp_count):
        steps = {}
        for lane in range(32):
            for access in threads.accesses(warp, lane):
                steps.setdefault((access.i, access.j), []).append(access.at)
        for ats in steps.values():
            lanes = min(32, 128 // max(size, 4))
            for first in range(0, len(ats), lanes):
                words = set()
                for at in ats[first : first + lanes]:
                    begin = int(layout(at.s, at.c)) * bits // 8
                    words |= {byte // 4 for byte in range(begin, begin + size)}
                banks = [word % 32 for word in words]
                turns += max(banks.count(bank) for bank in banks)
                least += 1
            places = (base + at.s * row_stride + at.c * bits // 8 for at in ats)
            sectors += len({byte // 32 for place in places for byte in range(place, place + size)})
    return turns, least, sectors


# Rows of one line, of several, of half a line; dense rows, and rows in a page of eight heads.
@pytest.mark.parametrize("row_stride", [None, 4096])
@pytest.mark.parametrize(("bits", "channels", "tokens"), [(16, 64, 32), (16, 128, 64), (8, 64, 64), (4, 128, 32)])
def test_kvits_own_layouts_are_free_of_conflicts_and_waste_nothing(bits, channels, tokens, row_stride):
    layout, threads = kv_layout(bits, channels, tokens), kv_thread_map(bits, channels, tokens, 4)
    found = report(layout, threads, bits, row_stride=row_stride)
    stride = channels * bits // 8 if row_stride is None else row_stride
    assert (found.turns, found.least_turns, found.sectors) == counted(layout.index, threads, bits, stride)
    assert found.turns == found.least_turns and found.worst_turns == 1
    assert found.used == 1 and found.is_legal
    assert found.accesses * 32 * 16 == tokens * channels * bits // 8


OWN = {
    "rows in columns": lambda s, c: c * 64 + s,
    "tokens two lines apart": lambda s, c: s * 128 + c,
    "a pad": lambda s, c: s * 72 + c,
    "swizzled by the wrong bits": SmemLayout(64, 64, 64, 64, Swizzle(2, 3, 6)).index,
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("access", [2, 4, 8])
def test_layouts_of_ones_own_are_counted_as_one_counts_by_hand(name, access):
    threads = RakedThreadMap(64, 64, access, 2, 4)  # four lanes along a row: eight rows below each other
    found = report(OWN[name], threads, 16, row_stride=256, base=64)
    if name == "rows in columns":
        assert found.broken_runs == 64 * 64 // access and not found.is_legal
        assert "broken" in str(found)
        return
    turns, least, sectors = counted(OWN[name], threads, 16, 256, 64)
    assert (found.turns, found.least_turns, found.sectors) == (turns, least, sectors)
    assert found.broken_runs == 0


def test_a_map_of_ones_own_is_asked_for_its_coordinates():
    class Columns:  # lane l has token l, a channel at a time
        access_c = 1

        def coordinates(self):
            s = np.repeat(np.arange(32)[:, None], 8, axis=1)
            c = np.repeat(np.arange(8)[None], 32, axis=0)
            return s, c, c < 7

    dense = report(lambda s, c: s * 32 + c, Columns(), 32, row_stride=128)
    assert (dense.accesses, dense.turns, dense.least_turns, dense.worst_turns) == (7, 7 * 32, 7, 32)
    assert dense.sectors == 7 * 32 and dense.used == 4 / 32
    spread = report(lambda s, c: s * 33 + c, Columns(), 32, row_stride=4)
    assert (spread.turns, spread.sectors) == (7, sum(-(-(4 * 32 + 4 * c) // 32) - 4 * c // 32 for c in range(7)))


def test_what_the_hardware_refuses_is_counted():
    threads = kv_thread_map(16, 64, 32, 1)
    odd = report(kv_layout(16, 64, 32), threads, 16, row_stride=136)
    assert odd.misaligned == 32 * 8 // 2 and "misaligned" in str(odd)  # every other row begins at 8 of 16 bytes
    assert report(kv_layout(16, 64, 32), threads, 16, base=4).misaligned == 32 * 8
    assert report(lambda s, c: s * 64 + c + 1, threads, 16).misaligned == 32 * 8


def test_what_no_instruction_moves_is_refused():
    threads = kv_thread_map(16, 64, 32, 1)
    with pytest.raises(ShapeError, match="bits is 12; elements have 4, 8, 16 or 32"):
        report(kv_layout(16, 64, 32), threads, 12)
    with pytest.raises(ShapeError, match="an access of 8 channels of 32 bits has 32 bytes; a lane moves 1, 2, 4, 8 or"):
        report(kv_layout(16, 64, 32), threads, 32)
    with pytest.raises(ShapeError, match="an access of 1 channels of 4 bits has 0.5 bytes"):
        report(kv_layout(16, 64, 32), RakedThreadMap(32, 32, 1, 1), 4)
    with pytest.raises(LayoutError, match="the layout puts an element at -64; offsets begin at 0"):
        report(lambda s, c: s * 64 + c - 64, threads, 16)
