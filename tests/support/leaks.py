"""What calls keep: how much every window of many calls leaves behind, of each kind of thing that a process can lose.

A leak grows in every window. A cache that fills, or a table that doubles, grows in one of them, so that the window that
grew least says what is lost.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from support.hunts import Hunt
from support.memory import mapped_memory, used_memory

CALLS = 20  # between two looks
WINDOWS = 4
# What is a leak, if every window grows by it: what every second call loses, a block of Python's at least, or 32 bytes
# of malloc's, of which some come from its own caches.
LEAST = {
    "blocks of Python's": CALLS // 2,
    "bytes of malloc's": 8 * CALLS,
    "bytes that are mapped": CALLS // 2 * os.sysconf("SC_PAGE_SIZE"),
    "bytes of a GPU's pool": 1,
    "open files": 1,
    "threads": 1,
}


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


# CPython keeps the names of the attributes that were looked up last, up to 4096 of them, which some calls make anew.
_forget_names = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _Mallinfo


def windows_of(hunt: Hunt) -> Iterator[int]:
    """Which window each round of a hunt belongs to: parts of its time, or rounds of a short run."""
    window = -1
    for _ in hunt.rounds(at_least=WINDOWS):
        due = WINDOWS - 1 if hunt.seconds is None else int(WINDOWS * (1 - hunt.left() / hunt.seconds))
        window = min(window + 1, due, WINDOWS - 1)
        yield max(window, 0)


def what_calls_keep(call: Callable[[], object], device: str, windows: Iterable[int]) -> dict[str, int]:
    """What each window leaves behind at least, where that is a leak: {"open files": 20}.

    windows  for each round of CALLS calls the window that it belongs to: 0, or 1, 1, or 2, ...
    """
    looks = np.zeros((WINDOWS + 1, len(LEAST)), np.int64)
    _look(looks[0], device)  # what a look makes once
    _repeat(call)
    _look(looks[0], device)
    for window in windows:
        _repeat(call)
        _look(looks[window + 1], device)
    least = np.diff(looks[: window + 2], axis=0).min(axis=0)
    return {what: int(kept) for (what, leak), kept in zip(LEAST.items(), least, strict=True) if kept >= leak}


def where_python_grows(call: Callable[[], object], lines: int = 10) -> str:
    """The lines of Python that allocated what further calls keep."""
    tracemalloc.start(8)
    try:
        _repeat(call)
        gc.collect()
        before = tracemalloc.take_snapshot()
        _repeat(call)
        gc.collect()
        grown = tracemalloc.take_snapshot().compare_to(before, "lineno")
    finally:
        tracemalloc.stop()
    return "\n".join(str(line) for line in grown[:lines] if line.size_diff > 0)


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()


def _look(into: np.ndarray, device: str) -> None:
    """Write how much of everything in LEAST there is; into an array, to keep nothing of its own."""
    _forget_names()
    gc.collect()
    malloc = _libc.mallinfo2()
    into[:] = (
        sys.getallocatedblocks(),
        malloc.uordblks + malloc.hblkhd,
        mapped_memory(),
        0 if device == "host" else used_memory(device),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )
