"""What append and gather read speculatively: the bits of tables that the launch in front has only just written."""

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, to_device

SEQUENCES, SLOTS, PAGE, HEADS, HEAD_DIM, EACH = 8, 32, 8, 2, 128, 3
NUMBERS = 32  # int32 that a row of 64 16-bit channels holds: gathering such rows writes tables


class Tables:
    """Page tables that a gather writes: rows of pages, and one of lengths, in the pages of a cache of their own."""

    def __init__(self, device: str):
        shape = (SEQUENCES + 1, 1, 1, 2 * NUMBERS)
        self.pool = [kvit.Buffer.empty(shape, "float16", device) for _ in range(2)]
        self.view = kvit.CacheView(*self.pool)
        self.gather = kvit.Gather(self.view)
        self.source = kvit.PageTable(
            to_device(np.arange(SEQUENCES + 1, dtype=np.int32)[None], device),
            lengths=to_device(np.array([SEQUENCES + 1], np.int32), device),
        )
        self.rows = to_device(np.zeros((SEQUENCES + 1, NUMBERS), np.int32), device)
        self.spare = kvit.Buffer.empty((SEQUENCES + 1, 1, 2 * NUMBERS), "float16", device)
        self.query_indptr = to_device(np.array([0, SEQUENCES + 1], np.int32), device)
        self.written = kvit.Tensor.from_pointer(
            self.rows.pointer, (SEQUENCES + 1, 1, 2 * NUMBERS), "float16", device, owner=self.rows
        )
        self.table = kvit.PageTable(self.rows[:SEQUENCES], lengths=self._row(SEQUENCES, SEQUENCES))

    def _row(self, row: int, count: int) -> kvit.Tensor:
        at = self.rows.pointer + row * NUMBERS * 4
        return kvit.Tensor.from_pointer(at, (count,), "int32", self.rows.device, owner=self.rows)

    def put(self, pages: np.ndarray, lengths: np.ndarray) -> None:
        """What the next gather writes."""
        numbers = np.zeros((SEQUENCES + 1, NUMBERS), np.int32)
        numbers[:SEQUENCES], numbers[SEQUENCES, :SEQUENCES] = pages, lengths
        for pool in self.pool:
            pool.copy_from(numbers.view(np.float16).reshape(pool.shape))

    def write(self, stream: kvit.Stream) -> None:
        self.gather(
            self.view, self.source, out=(self.written, self.spare), query_indptr=self.query_indptr, stream=stream
        )


def settled(pages: np.ndarray, lengths: np.ndarray, device: str) -> kvit.PageTable:
    """The same table, written long before."""
    return kvit.PageTable(to_device(pages, device), lengths=to_device(lengths, device))


@pytest.mark.parametrize("kv", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("rope", [None, kvit.Rope(HEAD_DIM)], ids=["plain", "rope"])
def test_tables_written_by_the_launch_in_front_are_read_as_they_are_then(rng, device, kv, rope):
    # Every step has other pages and other lengths, so that whoever trusts what it saw too early reads or writes rows
    # of the step before. On the host half of all guesses are wrong, whatever the step.
    steps = 3 if device == "host" else 40
    num_pages = SEQUENCES * SLOTS
    stream = kvit.Stream(device)
    caches = [kvit.PagedCache(num_pages, PAGE, HEADS, HEAD_DIM, k=kv, v=kv, device=device) for _ in range(2)]
    tables = Tables(device)
    append, gather = kvit.Append(caches[0].view, rope=rope), kvit.Gather(caches[0].view)
    attend = kvit.Attention(caches[0].view, HEADS, tokens_per_sequence=EACH)
    ops = (append, gather, attend, tables.gather)
    full = np.arange(num_pages, dtype=np.int32).reshape(SEQUENCES, SLOTS), np.full(SEQUENCES, SLOTS * PAGE, np.int32)
    old = [to_device(rng.standard_normal((num_pages * PAGE, HEADS, HEAD_DIM)).astype(BFLOAT16), device) for _ in "kv"]
    everything = settled(*full, device)
    for cache in caches:
        append(*old, cache.view, everything, stream=stream)
    stream.synchronize()
    total = SEQUENCES * EACH
    shape = (total, HEADS, HEAD_DIM)
    k, v, q = (to_device(np.zeros(shape, BFLOAT16), device) for _ in range(3))
    found, wanted = ([to_device(np.zeros(shape, BFLOAT16), device) for _ in range(3)] for _ in range(2))

    def run(cache, table, out):
        append(k, v, cache.view, table, stream=stream)
        gather(cache.view, table, out=out[:2], stream=stream)
        attend(q, cache.view, table, out=out[2], stream=stream)

    with kvit.Graph.capture(stream) as graph:
        tables.write(stream)
        run(caches[0], tables.table, found)
        tables.write(stream)  # and once more right behind
        gather(caches[0].view, tables.table, out=found[:2], stream=stream)
    for _ in range(steps):
        pages = rng.permutation(num_pages).astype(np.int32).reshape(SEQUENCES, SLOTS)
        lengths = rng.integers(EACH, SLOTS * PAGE + 1, SEQUENCES).astype(np.int32)
        tables.put(pages, lengths)
        for rows in (k, v, q):
            rows.copy_from(rng.standard_normal(shape).astype(BFLOAT16))
        for out in (*found, *wanted):
            out.fill_bytes(0xFF, stream)
        graph.launch()
        stream.synchronize()
        long_there = settled(pages, lengths, device)
        run(caches[1], long_there, wanted)
        stream.synchronize()
        for op in ops:
            op.check(stream)
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(got.numpy().view(np.uint16), want.numpy().view(np.uint16))
