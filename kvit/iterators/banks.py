"""Shared-memory banks, emulated: how many turns an access of a warp takes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from kvit.errors import LayoutError, ShapeError
from kvit.iterators.raked_thread_map import WARP, RakedThreadMap
from kvit.iterators.smem_layout import SmemLayout

BANKS = 32
BANK_BYTES = 4
_ACCESSES = (1, 2, 4, 8, 16)
_MOST_ADDRESS = 2**31 - 1  # far behind the end of any shared memory


def bank_conflicts(addresses: Sequence[int] | np.ndarray, access_bytes: int) -> int:
    """Turns that the worst part of one warp access takes; 1 is free of conflicts.

    addresses     byte address of each lane that takes part, in lane order
    access_bytes  bytes per lane. The hardware serves 128 bytes at a time: 16-byte accesses by eight lanes, 8-byte ones
                  by sixteen, smaller ones all together.

    Lanes that touch the same 4-byte word share it. No lanes take one turn.

    Raises ShapeError (more lanes than a warp has, an access that no instruction makes), LayoutError (an address that is
    no multiple of the access: the hardware refuses it).
    """
    if not isinstance(access_bytes, Integral) or access_bytes not in _ACCESSES:
        raise ShapeError(
            f"access_bytes is {access_bytes!r}; a lane moves {', '.join(map(str, _ACCESSES))} bytes at once"
        )
    try:
        found = np.asarray(addresses)
    except ValueError:  # lists of several lengths
        raise ShapeError("addresses are no plain list; give one for each lane") from None
    if found.ndim != 1 or len(found) > WARP:
        raise ShapeError(f"addresses have shape {list(found.shape)}; give one for each lane, {WARP} at most")
    if len(found) and found.dtype.kind not in "iu":
        raise ShapeError(f"addresses are {found.dtype}; they must be integers, in bytes")
    wrong = found[(found < 0) | (found % access_bytes != 0) | (found > _MOST_ADDRESS)]
    if len(wrong):
        raise LayoutError(
            f"{wrong[0]} is no address of {access_bytes} bytes; addresses must be multiples of {access_bytes} from 0 on"
        )
    found = found.astype(np.int64)
    lanes = min(WARP, BANKS * BANK_BYTES // max(access_bytes, BANK_BYTES))
    worst = 1
    for first in range(0, len(found), lanes):
        part = found[first : first + lanes]
        steps = np.arange(0, max(access_bytes, BANK_BYTES), BANK_BYTES)
        words = np.unique((part[:, None] + steps) // BANK_BYTES)
        worst = max(worst, int(np.bincount(words % BANKS).max()))
    return worst


def copy_conflicts(thread_map: RakedThreadMap, layout: SmemLayout, bits: int) -> int:
    """Turns of the worst warp access with which `thread_map` writes a tile of `bits`-bit elements into `layout`."""
    s, c, covered = thread_map.coordinates()
    access_bytes = thread_map.access_c * bits // 8
    worst = 1
    for warp in range(thread_map.warp_count):
        lanes = slice(warp * WARP, (warp + 1) * WARP)
        for i in range(thread_map.iter_s):
            for j in range(thread_map.iter_c):
                wanted = covered[lanes, i, j]
                if wanted.any():
                    elements = layout.index(s[lanes, i, j][wanted], c[lanes, i, j][wanted])
                    worst = max(worst, bank_conflicts(elements * bits // 8, access_bytes))
    return worst


def matrix_conflicts(layout: SmemLayout, bits: int) -> int:
    """Turns of the worst 8 x 16-byte matrix that ldmatrix reads from `layout`: eight tokens at the
    same 16-byte vector, from a multiple of eight on.

    Raises ShapeError for a tile that is no whole number of such matrices.
    """
    vector = 128 // bits
    if layout.s % 8 or layout.c % vector:
        raise ShapeError(f"{layout} is no whole number of matrices of 8 tokens by {vector} channels of {bits} bits")
    worst = 1
    for s in range(0, layout.s, 8):
        for c in range(0, layout.c, vector):
            elements = layout.index(np.arange(s, s + 8), np.full(8, c))
            worst = max(worst, bank_conflicts(elements * bits // 8, 16))
    return worst
