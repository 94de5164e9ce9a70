"""Launches of every family of kernels on small inputs, the same bits whatever runs beside what.

Run by itself it compares fibers with OS threads. tests/hardening/test_sanitizers.py runs it under ThreadSanitizer.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit._native import host
from support.caches import BFLOAT16, FLOAT16
from support.stored import full_stored, new_stored
from support.tolerances import assert_within

PAIRS = [(None, None), ("int8", "int8"), ("int4", "int4"), ("int8", "int4"), ("float8_e4m3", "float8_e4m3"),
         ("float8_e5m2", "float8_e5m2"), (None, "int8"), ("float8_e4m3", "int4")]  # fmt: skip
COPIES = ("cp_async", "tma", "tma_packed", "registers")


@pytest.fixture
def settings():
    before = host.configure()
    yield lambda rng: host.configure(workers=int(rng.integers(1, 3)), seed=int(rng.integers(1 << 30)))
    host.configure(**before)


class Scene:
    """Full pages, three sequences of which some are shared out among CTAs, and rows."""

    def __init__(self, rng):
        self.rng, self.dtype = rng, [BFLOAT16, FLOAT16][rng.integers(2)]
        pair = tuple(name or self.dtype.name for name in PAIRS[rng.integers(len(PAIRS))])
        self.page_size, self.heads = int(rng.choice([8, 16, 32])), int(rng.integers(1, 3))
        self.stored = full_stored(
            rng, pair, self.dtype, "host", pages=12, page_size=self.page_size, kv_heads=self.heads, layout="HND"
        )
        order = rng.permutation(12).astype(np.int32)
        slots = [0, int(rng.integers(3, 9)), int(rng.integers(1, 4))]
        self.lengths = [0] + [int(rng.integers(n * self.page_size - 3, n * self.page_size + 1)) for n in slots[1:]]
        pages = np.zeros((3, 9), np.int32)
        pages[1, : slots[1]], pages[2, : slots[2]] = order[: slots[1]], order[slots[1] : sum(slots)]
        self.pages = pages
        self.table = kvit.PageTable(pages, lengths=np.array(self.lengths, np.int32))
        self.view = self.stored.view

    def rows(self, heads, tokens=3):
        return self.rng.standard_normal((tokens, heads, 64)).astype(self.dtype)

    def attention(self):
        q = self.rows(4 * self.heads)
        copies = str(self.rng.choice(COPIES))
        options = {"launch": str(self.rng.choice(["direct", "graph"]))}
        try:
            op = kvit.Attention(self.view, 4 * self.heads, kernel={"copies": copies}, **options)
        except kvit.KernelMissing:  # not built for every way of storing
            op = kvit.Attention(self.view, 4 * self.heads, **options)
        if self.rng.integers(2):
            options["split_tokens"] = op.kernel.facts["tile_tokens"]
            op = kvit.Attention(self.view, 4 * self.heads, kernel=op.kernel.symbol, **options)
        out = op(q, self.view, self.table)
        op.check()
        found = out.numpy()
        plain = reference.Table([self.pages[i] for i in range(3)], self.lengths)
        state = reference.paged_attention(q, self.stored.cache, plain)
        spread = 0.05 * (1 + np.abs(state.out))  # the exact bounds are other tests': races are looked for here
        assert_within(found, state.out, spread)
        return [found]

    def append(self):
        op = kvit.Append(self.view, rope=kvit.Rope(64) if self.rng.integers(2) else None)
        counts = [0, int(self.rng.integers(1, 4)), 1]
        rows = [self.rows(self.heads, sum(counts)) for _ in "kv"]
        op(*rows, self.view, self.table, query_indptr=np.cumsum([0, *counts]).astype(np.int32))
        op.check()
        return [buffer.numpy() for buffer in self.stored.buffers.values()]

    def gather(self):
        op, total = kvit.Gather(self.view), sum(self.lengths)
        outs = [self.rows(self.heads, total) for _ in "kv"]
        op(self.view, self.table, out=outs, query_indptr=np.cumsum([0, *self.lengths]).astype(np.int32))
        op.check()
        return outs

    def copy_pages(self):
        order = self.rng.permutation(12).astype(np.int32)
        op = kvit.CopyPages(self.view)
        op(self.view, order[[1, 2, 0, 4]], order[[0, 1, 2, 3]], chains=np.array([0, 3, 4], np.int32))
        op.check()
        return [buffer.numpy() for buffer in self.stored.buffers.values()]

    def convert(self):
        T = self.dtype.name
        change = {T: "int8", "int8": "int4", "int4": T, "float8_e4m3": T, "float8_e5m2": "float8_e5m2"}
        names = tuple(change[name] for name in self.stored.names)
        if "float8_e5m2" in names:
            return []
        shape = {"pages": 12, "page_size": self.page_size, "kv_heads": self.heads}
        target = new_stored(names, self.dtype, "host", layout="NHD", **shape)
        op = kvit.ConvertPages(self.view, target.view)
        op(self.view, target.view)
        op.check()
        return [buffer.numpy() for buffer in target.buffers.values()]

    def merge(self):
        outs, lses = self.rng.standard_normal((3, 5, 4, 64)), self.rng.standard_normal((3, 5, 4)).astype("f4")
        return [x.numpy() for x in kvit.merge_states(list(outs.astype(self.dtype)), list(lses))]


@pytest.mark.hunt(share=1, short=6)
def test_a_launch_has_the_same_bits_on_any_number_of_workers_and_either_scheduler(hunt, settings):
    scheduler = host.configure()["scheduler"]
    for rng in hunt.rounds():
        kind = ["attention", "attention", "append", "gather", "copy_pages", "convert", "merge"][rng.integers(7)]
        seed = int(rng.integers(1 << 30))
        found = []
        for each in ("fibers", "threads"):
            settings(rng)
            # Kernels of many shuffles take seconds on OS threads: a short run is one of fibers alone.
            host.configure(scheduler=each if hunt.is_long else "fibers")
            found.append(getattr(Scene(np.random.default_rng(seed)), kind)())
            hunt.count("launches")
        host.configure(scheduler=scheduler)
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
        hunt.count(kind)
