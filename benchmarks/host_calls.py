"""How long a call keeps the host: kvit's, from Python and from C, beside others that launch one kernel.

python benchmarks/host_calls.py [--device cuda:0] [--idle FOLDER]     prints {name: microseconds or why not} as JSON
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
from cuda.bindings import driver
from idle_driver import compiler, pretend_kernels

import kvit
from kvit.selection import registry

# Short of what a driver queues, or the GPU's time would be counted too.
_CALLS = 200
_BURSTS = 30
_QUERY_HEADS, _KV_HEADS, _HEAD_DIM, _PAGE_SIZE, _SLOTS, _BATCH = 32, 8, 128, 16, 4, 4


class Case:
    """A decode step so small that the GPU is done with it as soon as the host."""

    def __init__(self, device: str):
        self.stream = kvit.Stream(device)
        pool = (_BATCH * _SLOTS, _PAGE_SIZE, _KV_HEADS, _HEAD_DIM)
        rows, new = (_BATCH, _QUERY_HEADS, _HEAD_DIM), (_BATCH, _KV_HEADS, _HEAD_DIM)
        self.pool, self.q, self.out, self.k, self.v = (
            self._zeros(shape, "bfloat16") for shape in ((2, *pool), rows, rows, new, new)
        )
        self.lse = self._zeros(rows[:2], "float32")
        self.pages = self._integers(np.arange(_BATCH * _SLOTS).reshape(_BATCH, _SLOTS))
        self.lengths = self._integers(np.full(_BATCH, 1))
        self.view = kvit.CacheView(self.pool[0], self.pool[1])
        self.table = kvit.PageTable(self.pages, lengths=self.lengths)
        self.attention = kvit.Attention(self.view, _QUERY_HEADS)
        self.append = kvit.Append(self.view)
        self.attention_by_graph = kvit.Attention(self.view, _QUERY_HEADS, launch="graph")
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
        shape = (_PAGE_SIZE, _KV_HEADS, _HEAD_DIM)
        pages = sequences * (_SLOTS + 2 + _CALLS // _PAGE_SIZE)  # for the calls of a burst
        self.cache = kvit.PagedCache(pages, *shape, device=device)
        self.seqs = [self.cache.sequence() for _ in range(sequences)]
        self.cache.append(self.seqs, *self._rows(_SLOTS * _PAGE_SIZE * sequences, _KV_HEADS, 2), stream=self.stream)
        self.k, self.v = self._rows(sequences, _KV_HEADS, 2)
        self.q, self.out = self._rows(sequences, _QUERY_HEADS, 2)

    def reset(self) -> None:
        """Drop the tokens of a burst, and wait for it."""
        for seq in self.seqs:
            seq.truncate(_SLOTS * _PAGE_SIZE)
        self.stream.synchronize()

    def _rows(self, tokens: int, heads: int, count: int) -> list[kvit.Buffer]:
        shape = (tokens, heads, _HEAD_DIM)
        return [kvit.Buffer.empty(shape, "bfloat16", self.stream.device, self.stream) for _ in range(count)]


Burst = Callable[[], float]
"""Microseconds that one call keeps its caller: the mean of calls that a driver queues without waiting."""


def burst_of(statement: str, wait: Callable[[], object], **names: Any) -> Burst:
    """Of a statement that makes the call, in terms of `names`. It is made once before, and everything waited for."""
    timer = timeit.Timer(statement, globals=names)
    timer.timeit(1)

    def burst() -> float:
        wait()
        us = timer.timeit(_CALLS) / _CALLS * 1e6
        wait()
        return us

    return burst


def kvit_attention(case: Case) -> Burst:
    """op(q, view, table, out=out, lse=lse, stream=stream), as a program writes it."""
    return _attention(case, case.attention)


def kvit_attention_by_graph(case: Case) -> Burst:
    """The same of an operation with launch="graph"."""
    return _attention(case, case.attention_by_graph)


def _attention(case: Case, op: kvit.Attention) -> Burst:
    names = {"q": case.q, "view": case.view, "table": case.table, "out": case.out, "lse": case.lse}
    call = "op(q, view, table, out=out, lse=lse, stream=stream)"
    return burst_of(call, case.stream.synchronize, op=op, stream=case.stream, **names)


def kvit_attention_of_fewest_words(case: Case) -> Burst:
    """op(q, view, table, out=out): on the default stream."""
    return _attention_of_fewest_words(case, case.attention)


def kvit_attention_of_fewest_words_by_graph(case: Case) -> Burst:
    """The same of an operation with launch="graph"."""
    return _attention_of_fewest_words(case, case.attention_by_graph)


def _attention_of_fewest_words(case: Case, op: kvit.Attention) -> Burst:
    names = {"q": case.q, "view": case.view, "table": case.table, "out": case.out}
    return burst_of("op(q, view, table, out=out)", kvit.Stream.default(case.stream.device).synchronize, op=op, **names)


def kvit_append(case: Case) -> Burst:
    """append(k, v, view, table, stream=stream)."""
    return _append(case, case.append)


def kvit_append_by_graph(case: Case) -> Burst:
    """The same of an operation with launch="graph"."""
    return _append(case, case.append_by_graph)


def _append(case: Case, append: kvit.Append) -> Burst:
    names = {"k": case.k, "v": case.v, "view": case.view, "table": case.table, "stream": case.stream}
    return burst_of("append(k, v, view, table, stream=stream)", case.stream.synchronize, append=append, **names)


def kvit_graph(case: Case) -> Burst:
    """graph.launch() of a graph of one such attention."""
    with kvit.Graph.capture(case.stream) as graph:
        case.attend()
    return burst_of("graph.launch()", case.stream.synchronize, graph=graph)


def kvit_c(case: Case) -> Burst:
    """The same attention through the table of kvit.h, by host_call.c."""
    return _attention_from_c(case, by_graph=False)


def kvit_c_by_graph(case: Case) -> Burst:
    """The same of an operation with KVIT_LAUNCH_GRAPH."""
    return _attention_from_c(case, by_graph=True)


def _attention_from_c(case: Case, by_graph: bool) -> Burst:
    with tempfile.TemporaryDirectory() as folder:
        call_us = _compile(Path(folder)).call_us
    ordinal = kvit.Device.of(case.stream.device).ordinal
    buffers = (case.pool[0], case.pool[1], case.pages, case.lengths, case.q, case.out, case.lse)
    memory = (*(buffer.pointer for buffer in buffers), case.stream.handle)
    shapes = case.pool.shape[1:], (_BATCH, _QUERY_HEADS, _SLOTS)
    return partial(call_us, ordinal, memory, *shapes, by_graph, _CALLS)


def cuda_bindings(case: Case) -> Burst:
    """cuda.bindings.driver.cuLaunchKernel of kvit's `read` on 16 bytes, its arguments packed beforehand."""
    entry = registry.candidates("read")[0]
    path = entry.file(entry.target(kvit.Device.of(case.stream.device).compute_capability))
    library = measure.call(driver.cuLibraryLoadFromFile, str(path).encode(), [], [], 0, [], [], 0)
    kernel = measure.call(driver.cuLibraryGetKernel, library, entry.symbol.encode())
    params = ctypes.create_string_buffer(struct.pack("<QqQ", case.pool.pointer, 16, case.lse.pointer))  # KvitReadParams
    address = (ctypes.c_void_p * 1)(ctypes.addressof(params))
    return burst_of(
        f"launch(kernel, 1, 1, 1, {entry.threads}, 1, 1, {entry.shared_bytes}, stream, at, 0)",
        case.stream.synchronize,
        launch=driver.cuLaunchKernel,
        kernel=driver.CUfunction(int(kernel)),
        stream=driver.CUstream(case.stream.handle),
        at=ctypes.addressof(address),
        held=(params, address),
    )


def cupy(case: Case) -> Burst:
    """cupy.RawKernel that does nothing, with one array as its argument."""
    import cupy as cp

    kernel = cp.RawKernel('extern "C" __global__ void nothing(float* x) {}', "nothing")
    burst = burst_of("kernel((1,), (128,), (array,))", case.stream.synchronize, kernel=kernel, array=cp.zeros(1, "f4"))

    def on_stream() -> float:
        with cp.cuda.ExternalStream(case.stream.handle):
            return burst()

    return on_stream


def flashinfer(case: Case) -> Burst:
    """FlashInfer's paged decode of the same step: wrapper.run(q, (k, v), out=out), planned beforehand."""
    import torch
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    k, v, q, out = (torch.from_dlpack(buffer) for buffer in (case.pool[0], case.pool[1], case.q, case.out))
    workspace = torch.zeros(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2", use_tensor_cores=True)
    indptr, indices = (torch.arange(n, dtype=torch.int32, device=q.device) for n in (_BATCH + 1, _BATCH * _SLOTS))
    last = torch.ones(_BATCH, dtype=torch.int32, device=q.device)
    heads = (_QUERY_HEADS, _KV_HEADS, _HEAD_DIM, _PAGE_SIZE)
    wrapper.plan(indptr, indices[::_SLOTS].contiguous(), last, *heads, q_data_type=q.dtype, kv_data_type=q.dtype)
    return burst_of("run(q, pair, out=out)", torch.cuda.synchronize, run=wrapper.run, q=q, pair=(k, v), out=out)


def cache_append(case: Case, sequences: int) -> Burst:
    """cache.append(seqs, k, v, stream=stream): a token of each sequence."""
    own = CacheCase(case.stream.device, sequences)
    names = {"cache": own.cache, "seqs": own.seqs, "k": own.k, "v": own.v, "stream": own.stream, "own": own}
    return burst_of("cache.append(seqs, k, v, stream=stream)", own.reset, **names)


def cache_attention(case: Case, sequences: int) -> Burst:
    """kvit.attention(q, cache, seqs, out=out, stream=stream), between appends: the table is there."""
    own = CacheCase(case.stream.device, sequences)
    names = {"cache": own.cache, "seqs": own.seqs, "q": own.q, "out": own.out, "stream": own.stream, "own": own}
    call = "attention(q, cache, seqs, out=out, stream=stream)"
    return burst_of(call, own.reset, attention=kvit.attention, **names)


def batch_step(case: Case, sequences: int) -> Burst:
    """A step of a kvit.Batch without its launches: `with batch.step(): pass`."""
    own = CacheCase(case.stream.device, sequences)
    batch = kvit.Batch(own.cache, own.seqs, stream=own.stream)
    return burst_of("with batch.step(): pass", own.reset, batch=batch)


CALLS: dict[str, Callable[[Case], Burst]] = {
    "kvit.Attention": kvit_attention,
    "kvit.Attention, by graph": kvit_attention_by_graph,
    "kvit.Attention, out alone": kvit_attention_of_fewest_words,
    "kvit.Attention, out alone, by graph": kvit_attention_of_fewest_words_by_graph,
    "kvit.Append": kvit_append,
    "kvit.Append, by graph": kvit_append_by_graph,
    "cache.append, 8 sequences": partial(cache_append, sequences=8),
    "cache.append, 256 sequences": partial(cache_append, sequences=256),
    "kvit.attention of a cache, 8 sequences": partial(cache_attention, sequences=8),
    "kvit.attention of a cache, 256 sequences": partial(cache_attention, sequences=256),
    "kvit.Batch step, 8 sequences": partial(batch_step, sequences=8),
    "kvit.Batch step, 256 sequences": partial(batch_step, sequences=256),
    "kvit.Graph of one attention": kvit_graph,
    "kvit.h attention, from C": kvit_c,
    "kvit.h attention, from C, by graph": kvit_c_by_graph,
    "cuda.bindings cuLaunchKernel": cuda_bindings,
    "cupy.RawKernel": cupy,
    "FlashInfer decode": flashinfer,
}
"""Name -> what times a burst of it. Each raises whatever says that it cannot be had here, ImportError foremost."""

# What compiles or reads kernels finds nothing behind the idle driver.
_NEEDS_GPU = {"cupy.RawKernel", "FlashInfer decode"}


def measure_all(device: str, is_idle: bool) -> dict[str, float | str]:
    """Each of CALLS: the median of its bursts, which take turns with those of the others, or why it has no time."""
    measure.make_current(kvit.Device.of(device))
    case = Case(device)
    bursts: dict[str, Burst] = {}
    found: dict[str, float | str] = {}
    for name, call in CALLS.items():
        if is_idle and name in _NEEDS_GPU:
            continue
        try:
            bursts[name] = call(case)
            bursts[name]()
            found[name] = 0.0  # keeps its place
        except Exception as error:  # one that is missing or fails must not end the run; the table says why
            bursts.pop(name, None)
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    times: dict[str, list[float]] = {name: [] for name in bursts}
    for _ in range(_BURSTS):
        for name, burst in bursts.items():
            times[name].append(burst())
    return found | {name: round(statistics.median(taken), 3) for name, taken in times.items()}


def _compile(folder: Path) -> Any:
    """host_call.c as a module."""
    source, target = Path(__file__).with_name("host_call.c"), folder / "host_call.so"
    include = [f"-I{path}" for path in (sysconfig.get_paths()["include"], kvit.get_include())]
    command = [compiler(), "-shared", "-fPIC", "-O2", "-std=gnu11", *include, "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"host_call.c does not compile: {done.stderr}")
    spec = importlib.util.spec_from_file_location("host_call", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Measure in this process, whose driver was chosen when it started. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="host_calls", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--idle", type=Path, metavar="FOLDER", help="the driver is the idle one; FOLDER may be written")
    options = parser.parse_args()
    try:
        measure.need_gpu(options.device)
    except kvit.KvitError as error:
        hint = " (--idle is for host.py, which starts this program on the idle driver)" if options.idle else ""
        print(f"host_calls: {error}{hint}", file=sys.stderr)
        return 1
    if options.idle is not None:
        pretend_kernels(options.idle)
    print(json.dumps(measure_all(options.device, options.idle is not None)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
