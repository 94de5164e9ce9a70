"""Hunts for memory that calls keep: Python's blocks and bytes, and those of the process, over many calls.

Right calls and refused ones, each many times after the first few, which make what is made once.
"""

import gc
import sys
import tracemalloc

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, make_case, new_tokens, to_device
from support.memory import used_memory

ROUNDS = 20  # calls between two looks
# What Python may keep: of all calls, and of each. CPython caches up to 4096 names of attributes, which some calls make
# anew, so that the cache fills by and by; an object that a call loses takes 48 bytes or more.
FIXED_BYTES, FIXED_BLOCKS = 6000, 300
BYTES_OF_CALL, BLOCKS_OF_CALL = 16, 0.25
SPARE_BYTES = 1 << 20  # what the C library's allocator may keep of what it was given back


class Calls:
    """Calls on one small cache; each method leaves everything as it found it."""

    def __init__(self, rng, device):
        self.device = device
        self.case = make_case(rng, [20, 3], device=device)
        self.view, self.table = self.case.view, self.case.page_table
        self.q = to_device(self.case.queries(rng, 2, 8), device)
        self.k, self.v = (to_device(x, device) for x in new_tokens(rng, 2))
        self.cache = kvit.PagedCache(8, 4, 2, 64, device=device)
        self.seq = self.cache.sequence()
        self.seq.append(self.k, self.v)
        self.op, self.append_op = kvit.Attention(self.view, 8), kvit.Append(self.view, rope=kvit.Rope(64))
        self.gather_op, self.copy_op = kvit.Gather(self.view), kvit.CopyPages(self.view)
        self.pages = to_device(np.array([0, 1], np.int32), device)
        self.outs = [to_device(np.zeros((2, 2, 64), BFLOAT16), device) for _ in "kv"]

    def attention(self):
        self.op(self.q, self.view, self.table)
        self.op.check()

    def attention_refused(self):
        with pytest.raises(kvit.ShapeError):
            self.op(self.k, self.view, self.table)

    def append(self):
        self.append_op(self.k, self.v, self.view, self.table, q=self.q)

    def gather(self):
        self.gather_op(self.view, self.table, out=self.outs)

    def copy_pages(self):
        self.copy_op(self.view, self.pages[:1], self.pages[1:])

    def new_operations(self):
        kvit.Attention(self.view, 8, launch="graph")
        kvit.Append(self.view, rope=kvit.Rope(64, base=1e6))
        kvit.ConvertPages(self.view, self.view)

    def new_cache(self):
        cache = kvit.PagedCache(4, 4, 2, 64, k="int8", v="int4", device=self.device)
        seq = cache.sequence()
        seq.append(self.k, self.v)
        seq.fork()
        cache.requantise(k="int4")

    def sequences(self):
        fork = self.seq.fork()
        fork.append(self.k, self.v)
        fork.truncate(1)
        kvit.attention(self.q[:1], self.cache, [fork])
        self.cache.gather([fork, self.seq])
        self.cache.defragment()
        fork.free()

    def full(self):
        seqs = [self.cache.sequence() for _ in range(3)]
        with pytest.raises(kvit.CacheFull):
            for _ in range(99):
                self.cache.append([*seqs, self.seq], *[x[:0] for x in (self.k, self.v)], new_tokens=[0] * 4)
                seqs[0].append(self.k, self.v)

    def merge(self):
        lse = np.zeros((2, 8), np.float32)
        kvit.merge_states([self.q, self.q], [to_device(lse, self.device)] * 2)

    def wrong_table(self):
        pages = to_device(np.full((2, 2), 99, np.int32), self.device)
        self.op(self.q, self.view, kvit.PageTable(pages, lengths=self.table.lengths))
        with pytest.raises(kvit.PageTableError):
            self.op.check()

    def arrays(self):
        made = kvit.Buffer.from_numpy(np.zeros((3, 4), np.float32), self.device)
        kvit.Tensor.wrap(made)
        made.__dlpack__(stream=-1 if self.device != "host" else None)
        made.numpy()
        with pytest.raises(kvit.DtypeError):
            kvit.Tensor.wrap(np.zeros(3, object))

    def graph(self):
        stream = kvit.Stream(self.device)
        out = kvit.Buffer.empty((2, 8, 64), "bfloat16", self.device, stream)
        stream.synchronize()
        with kvit.Graph.capture(stream) as graph:
            self.op(self.q, self.view, self.table, out=out, stream=stream)
        graph.launch()
        stream.synchronize()


KINDS = [name for name in vars(Calls) if not name.startswith("_")]


@pytest.mark.hunt(share=4, short=1)
@pytest.mark.parametrize("kind", KINDS)
def test_calls_keep_nothing(hunt, device, kind, rng):
    call = getattr(Calls(rng, device), kind)
    repeat(call)
    before, rounds = look(device), 0
    tracemalloc.start()
    try:
        repeat(call)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        for _ in hunt.rounds(at_least=3):
            repeat(call)
            rounds += 1
            hunt.count("calls", ROUNDS)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - traced
    finally:
        tracemalloc.stop()
    blocks, held = (now - old for now, old in zip(look(device), before, strict=True))
    calls = rounds * ROUNDS
    assert grown < FIXED_BYTES + BYTES_OF_CALL * calls, f"{grown} bytes of Python's, in {calls} calls"
    assert blocks < FIXED_BLOCKS + BLOCKS_OF_CALL * calls, f"{blocks} blocks of Python's, in {calls} calls"
    # Tracing has memory of its own, which it gives back but the process may keep.
    assert held < 8 * SPARE_BYTES, f"{held} bytes of the process's, in {calls} calls"


def repeat(call):
    for _ in range(ROUNDS):
        call()


def look(device):
    """(blocks of Python's allocator, bytes of the process or of the GPU's pool)."""
    gc.collect()
    return sys.getallocatedblocks(), used_memory(device)
