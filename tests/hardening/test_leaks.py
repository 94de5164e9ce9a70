"""Hunts for what calls keep: memory, files and threads, over many calls of each kind, right ones and refused ones."""

import ctypes
import mmap
import os
import threading

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, make_case, new_tokens, to_device
from support.leaks import CALLS, WINDOWS, what_calls_keep, where_python_grows, windows_of


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


@pytest.mark.hunt(share=4, short=WINDOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_calls_keep_nothing(hunt, device, kind, rng):
    call = getattr(Calls(rng, device), kind)
    kept = what_calls_keep(call, device, windows_of(hunt))
    hunt.count("calls", hunt.counts["rounds"] * CALLS)
    assert not kept, f"each window keeps {kept}\n{where_python_grows(call)}"


LIBC = ctypes.CDLL(None)
LIBC.malloc.restype = ctypes.c_void_p


def lose_an_object(lost):
    lost.append([])


def lose_malloc(lost):
    lost.append(LIBC.malloc(1))


def lose_a_page(lost):
    lost.append(mmap.mmap(-1, 1))


def lose_a_file(lost):
    lost.append(os.open(os.devnull, os.O_RDONLY))


def lose_a_thread(lost):
    lost.append(threading.Event())
    threading.Thread(target=lost[-1].wait, daemon=True).start()


LOSSES = {
    "blocks of Python's": (lose_an_object, list.clear),
    "bytes of malloc's": (lose_malloc, lambda one: LIBC.free(ctypes.c_void_p(one))),
    "bytes that are mapped": (lose_a_page, mmap.mmap.close),
    "open files": (lose_a_file, os.close),
    "threads": (lose_a_thread, threading.Event.set),
}


@pytest.mark.parametrize(
    ("kind", "what"), [*((kind, "blocks of Python's") for kind in KINDS), *(("gather", what) for what in LOSSES)]
)
def test_the_least_that_a_call_can_lose_is_found(rng, kind, what):
    calls, (lose, find), lost = Calls(rng, "host"), LOSSES[what], []

    def call():
        getattr(calls, kind)()
        lose(lost)

    try:
        assert what in what_calls_keep(call, "host", range(2))
    finally:
        for one in lost:
            find(one)


def test_what_grows_once_is_no_loss():
    kept, calls = [], iter(range(10**6))

    def call():  # fills a cache in the second window
        if CALLS <= next(calls) - CALLS < 2 * CALLS:
            kept.extend([[], bytes(1000), os.open(os.devnull, os.O_RDONLY)])

    try:
        assert not what_calls_keep(call, "host", range(WINDOWS))
    finally:
        for file in kept[2::3]:
            os.close(file)
    assert len(kept) == 3 * CALLS
