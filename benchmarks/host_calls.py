"""How long a call keeps the host: kvit's, from Python and from C, beside others that launch one kernel.

python benchmarks/host_calls.py [--device cuda:0] [--idle FOLDER]     prints {name: microseconds or why not} as JSON
"""

from __future__ import annotations

import argparse
import ctypes
import json
import lzma
import statistics
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import host_arrays
import measure
from cuda.bindings import driver
from host_case import (
    BATCH,
    HEAD_DIM,
    KV_HEADS,
    NUM_CALLS,
    PAGE_SIZE,
    QUERY_HEADS,
    SLOTS,
    Burst,
    CacheCase,
    Case,
    burst_of,
    c_module,
)
from idle_driver import pretend_kernels

import kvit
from kvit.selection import registry

_BURSTS = 30
# Where other work has the cores too: short, so that some are not interrupted.
_SHORT_BURSTS, _SHORT_CALLS = 500, 20


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
    call_us = c_module("host_call").call_us
    ordinal = kvit.Device.of(case.stream.device).ordinal
    buffers = (case.pool[0], case.pool[1], case.pages, case.lengths, case.q, case.out, case.lse)
    memory = (*(buffer.pointer for buffer in buffers), case.stream.handle)
    shapes = case.pool.shape[1:], (BATCH, QUERY_HEADS, SLOTS)
    return lambda calls=NUM_CALLS: call_us(ordinal, memory, *shapes, by_graph, calls)


def cuda_bindings(case: Case) -> Burst:
    """cuda.bindings.driver.cuLaunchKernel of kvit's `read` on 16 bytes, its arguments packed beforehand."""
    entry = registry.candidates("read")[0]
    path = entry.file(entry.target(kvit.Device.of(case.stream.device).compute_capability))
    image = lzma.decompress(path.read_bytes()) + b"\0"  # PTX ends with a zero byte, and a cubin may
    library = measure.call(driver.cuLibraryLoadData, image, [], [], 0, [], [], 0)
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

    def on_stream(*calls: int) -> float:
        with cp.cuda.ExternalStream(case.stream.handle):
            return burst(*calls)

    return on_stream


def flashinfer(case: Case) -> Burst:
    """FlashInfer's paged decode of the same step: wrapper.run(q, (k, v), out=out), planned beforehand."""
    import torch
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    k, v, q, out = (torch.from_dlpack(buffer) for buffer in (case.pool[0], case.pool[1], case.q, case.out))
    workspace = torch.zeros(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2", use_tensor_cores=True)
    indptr, indices = (torch.arange(n, dtype=torch.int32, device=q.device) for n in (BATCH + 1, BATCH * SLOTS))
    last = torch.ones(BATCH, dtype=torch.int32, device=q.device)
    heads = (QUERY_HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE)
    wrapper.plan(indptr, indices[::SLOTS].contiguous(), last, *heads, q_data_type=q.dtype, kv_data_type=q.dtype)
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


def measure_all(device: str, is_idle: bool, is_busy: bool = False) -> dict[str, float | str]:
    """Each of CALLS, and others' arrays: the median of its bursts, which take turns, or why it has no time.

    is_busy  other work has the cores too: the least of many short bursts, which was disturbed least
    """
    measure.make_current(kvit.Device.of(device))
    case = Case(device)
    bursts: dict[str, Burst] = {}
    found: dict[str, float | str] = {}
    for name, call in {**CALLS, **host_arrays.rows(is_idle)}.items():
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
    for _ in range(_SHORT_BURSTS if is_busy else _BURSTS):
        for name, burst in bursts.items():
            times[name].append(burst(_SHORT_CALLS if is_busy else NUM_CALLS))
    middle = min if is_busy else statistics.median
    return found | {name: round(middle(taken), 3) for name, taken in times.items()}


def main() -> int:
    """Measure in this process, whose driver was chosen when it started. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="host_calls", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--idle", type=Path, metavar="FOLDER", help="the driver is the idle one; FOLDER may be written")
    parser.add_argument("--busy", action="store_true", help="the least of many short bursts, not a median")
    options = parser.parse_args()
    try:
        measure.need_gpu(options.device)
    except kvit.KvitError as error:
        hint = " (--idle is for host.py, which starts this program on the idle driver)" if options.idle else ""
        return measure.refuse("host_calls", type(error)(f"{error}{hint}"))
    if options.idle is not None:
        pretend_kernels(options.idle)
    print(json.dumps(measure_all(options.device, options.idle is not None, options.busy)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
