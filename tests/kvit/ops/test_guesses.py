"""Whatever append and gather find before the launch in front has ended: the same rows, and the same faults.

The host backend makes up what is old, by a seed. Of a table of a few numbers many seeds try every combination of right
and wrong ones; no result may depend on them.
"""

import numpy as np
import pytest

import kvit
from kvit._native import host
from support.caches import BFLOAT16, poisoned, to_device

SEEDS = range(400)
PAGES, PAGE, HEADS, DIM = 6, 8, 1, 64
LARGEST, SMALLEST = 2**31 - 1, -(2**31)

# Name -> (pages, indptr or None, lengths, offsets of tokens or None, rows of k). Sequences have up to three pages.
TABLES = {
    "one sequence": ([[4, 1, 3]], None, [17], None, 1),
    "two sequences": ([[4, 1, 3], [0, 5, 2]], None, [24, 9], [0, 1, 3], 3),
    "ragged": ([4, 1, 3, 0], [0, 3, 4], [20, 3], [0, 2, 3], 3),
    "no page of the cache": ([[4, 6, 3]], None, [12], None, 1),
    "a negative page": ([[4, SMALLEST, 3]], None, [12], None, 1),
    "the largest page": ([[4, LARGEST, 3]], None, [12], None, 1),
    "a length of more than its slots": ([[4, 1, 3], [0, 5, 2]], None, [9, 25], None, 2),
    "the largest length": ([[4, 1, 3]], None, [LARGEST], None, 1),
    "a negative length": ([[4, 1, 3]], None, [-1], None, 1),
    "the smallest length": ([[4, 1, 3]], None, [SMALLEST], None, 2),
    "fewer tokens than rows": ([[4, 1, 3]], None, [1], None, 2),
    "an indptr that falls": ([4, 1, 3, 0], [3, 0], [9], None, 1),
    "an indptr beyond the pages": ([4, 1, 3, 0], [0, 5], [9], None, 1),
    "the largest indptr": ([4, 1, 3, 0], [0, LARGEST], [9], None, 1),
    "the smallest indptr": ([4, 1, 3, 0], [SMALLEST, 2], [9], None, 1),
    "offsets that fall": ([[4, 1, 3], [0, 5, 2]], None, [9, 9], [0, 2, 1], 2),
    "the largest offset": ([[4, 1, 3], [0, 5, 2]], None, [9, 9], [0, 1, LARGEST], 2),
    "the smallest offset": ([[4, 1, 3], [0, 5, 2]], None, [9, 9], [SMALLEST, 1, 2], 2),
    "rows of nobody": ([[4, 1, 3], [0, 5, 2]], None, [9, 9], [1, 2, 2], 4),
}


@pytest.fixture
def seeds():
    """Sets the seed of what launches find; one worker, so that the first of several faults is always the same."""
    before = host.configure(workers=1)
    yield lambda seed: host.configure(seed=seed)
    host.configure(**before)


@pytest.fixture(params=TABLES)
def scene(request):
    return Scene(*TABLES[request.param])


class Scene:
    """A cache between guards, a table, and rows."""

    def __init__(self, pages, indptr, lengths, offsets, rows):
        lengths = to_device(np.array(lengths, np.int32), "host")
        pages = np.array(pages, np.int32)
        if indptr is None:
            self.table = kvit.PageTable(pages, lengths=lengths)
        else:
            self.table = kvit.PageTable(indptr=np.array(indptr, np.int32), indices=pages, lengths=lengths)
        self.query_indptr = None if offsets is None else np.array(offsets, np.int32)
        self.rows = rows
        self.memory = [poisoned((PAGES + 2, HEADS, PAGE, DIM), BFLOAT16) for _ in "kv"]
        self.view = kvit.CacheView(*(x[1:-1] for x in self.memory), layout="HND", page_size=PAGE, dtype="bfloat16")

    def fill(self, rng):
        for memory in self.memory:
            memory[1:-1] = rng.standard_normal(memory[1:-1].shape).astype(BFLOAT16)


def outcome(op, arrays):
    """The bits of some arrays, and the words of the fault."""
    words = ""
    try:
        op.check()
    except kvit.PageTableError as error:
        words = str(error)
    return [array.tobytes() for array in arrays], words


@pytest.mark.parametrize("rope", [None, kvit.Rope(DIM)], ids=["plain", "rope"])
def test_append_writes_the_same_rows_after_any_guess(scene, seeds, rng, rope):
    append = kvit.Append(scene.view, rope=rope)
    k, v = rng.standard_normal((2, scene.rows, HEADS, DIM)).astype(BFLOAT16)
    found = set()
    for seed in SEEDS:
        for memory in scene.memory:
            memory.view(np.uint8)[...] = 0xFF
        seeds(seed)
        append(k, v, scene.view, scene.table, query_indptr=scene.query_indptr)
        bits, words = outcome(append, scene.memory)
        found.add((*bits, words))
    assert len(found) == 1, {words for *_, words in found}


def test_gather_finds_the_same_rows_after_any_guess(scene, seeds, rng):
    scene.fill(rng)
    gather = kvit.Gather(scene.view)
    k, v = (poisoned((scene.rows, HEADS, DIM), BFLOAT16) for _ in "kv")
    found = set()
    for seed in SEEDS:
        for rows in (k, v):
            rows.view(np.uint8)[...] = 0x55
        seeds(seed)
        gather(scene.view, scene.table, out=(k, v), query_indptr=scene.query_indptr)
        bits, words = outcome(gather, (k, v))
        found.add((*bits, words))
    assert len(found) == 1, {words for *_, words in found}
