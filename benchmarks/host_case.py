"""The decode step that host_calls.py and host_arrays.py call, and how a call of it is timed."""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from idle_driver import compiler

import kvit

# Short of what a driver queues, or the GPU's time would be counted too.
NUM_CALLS = 200
QUERY_HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE, SLOTS, BATCH = 32, 8, 128, 16, 4, 4


class Case:
    """A decode step so small that the GPU is done with it as soon as the host."""

    def __init__(self, device: str, dtype: str = "bfloat16"):
        self.stream = kvit.Stream(device)
        pool = (BATCH * SLOTS, PAGE_SIZE, KV_HEADS, HEAD_DIM)
        rows, new = (BATCH, QUERY_HEADS, HEAD_DIM), (BATCH, KV_HEADS, HEAD_DIM)
        self.pool, self.q, self.out, self.k, self.v = (
            self._zeros(shape, dtype) for shape in ((2, *pool), rows, rows, new, new)
        )
        self.lse = self._zeros(rows[:2], "float32")
        self.pages = self._integers(np.arange(BATCH * SLOTS).reshape(BATCH, SLOTS))
        self.lengths = self._integers(np.full(BATCH, 1))
        self.indptr = self._integers(np.arange(BATCH + 1))
        self.view = kvit.CacheView(self.pool[0], self.pool[1])
        self.table = kvit.PageTable(self.pages, lengths=self.lengths)
        self.attention = kvit.Attention(self.view, QUERY_HEADS)
        self.append = kvit.Append(self.view)
        self.attention_by_graph = kvit.Attention(self.view, QUERY_HEADS, launch="graph")
        self.append_by_graph = kvit.Append(self.view, launch="graph")
        self.stream.synchronize()

    def _zeros(self, shape: tuple[int, ...], dtype: str) -> kvit.Buffer:
        buffer = kvit.Buffer.empty(shape, dtype, self.stream.device, self.stream)
        buffer.fill_bytes(0)
        return buffer

    def _integers(self, array: np.ndarray) -> kvit.Buffer:
        return kvit.Buffer.from_numpy(array.astype(np.int32), self.stream.device, self.stream)

    def attend(self) -> None:
        self.attention(self.q, self.view, self.table, out=self.out, lse=self.lse, stream=self.stream)

    def attend_by_graph(self) -> None:
        self.attention_by_graph(self.q, self.view, self.table, out=self.out, lse=self.lse, stream=self.stream)

    def write(self) -> None:
        self.append(self.k, self.v, self.view, self.table, stream=self.stream)

    def write_by_graph(self) -> None:
        self.append_by_graph(self.k, self.v, self.view, self.table, stream=self.stream)


class CacheCase:
    """Decode steps of a PagedCache: sequences of some pages each, and rows for a token of each."""

    def __init__(self, device: str, sequences: int):
        self.stream = kvit.Stream(device)
        shape = (PAGE_SIZE, KV_HEADS, HEAD_DIM)
        pages = sequences * (SLOTS + 2 + NUM_CALLS // PAGE_SIZE)  # for the calls of a burst
        self.cache = kvit.PagedCache(pages, *shape, device=device)
        self.seqs = [self.cache.sequence() for _ in range(sequences)]
        self.cache.append(self.seqs, *self._rows(SLOTS * PAGE_SIZE * sequences, KV_HEADS, 2), stream=self.stream)
        self.k, self.v = self._rows(sequences, KV_HEADS, 2)
        self.q, self.out = self._rows(sequences, QUERY_HEADS, 2)

    def reset(self) -> None:
        """Drop the tokens of a burst, and wait for it."""
        for seq in self.seqs:
            seq.truncate(SLOTS * PAGE_SIZE)
        self.stream.synchronize()

    def _rows(self, tokens: int, heads: int, count: int) -> list[kvit.Buffer]:
        shape = (tokens, heads, HEAD_DIM)
        return [kvit.Buffer.empty(shape, "bfloat16", self.stream.device, self.stream) for _ in range(count)]


Burst = Callable[..., float]
"""Microseconds that one call keeps its caller: the mean of NUM_CALLS, or of as many as it is given."""


def burst_of(statement: str, wait: Callable[[], object], **names: Any) -> Burst:
    """Of a statement that makes the call, in terms of `names`. It is made once before, and everything waited for."""
    timer = timeit.Timer(statement, globals=names)
    timer.timeit(1)

    def burst(calls: int = NUM_CALLS) -> float:
        wait()
        us = timer.timeit(calls) / calls * 1e6
        wait()
        return us

    return burst


def c_module(name: str) -> Any:
    """The module of a C file beside this one, compiled."""
    source = Path(__file__).with_name(f"{name}.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{name}.so"
        include = [f"-I{path}" for path in (sysconfig.get_paths()["include"], kvit.get_include())]
        command = [compiler(), "-shared", "-fPIC", "-O2", "-std=gnu11", *include, "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile: {done.stderr}")
        spec = importlib.util.spec_from_file_location(name, target)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
