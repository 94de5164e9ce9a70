"""Rows of host_calls.py: the same call with arrays of other libraries, and what it takes to see one array."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from host_case import Burst, Case, burst_of, c_module

import kvit

CALL = "op(q, view, table, out=out, stream=stream)"
CALL_WITH_INDPTR = "op(q, view, table, out=out, query_indptr=indptr, stream=stream)"
CALL_WITH_ALL_NEW = (
    "op(q, CacheView(k, v), PageTable(pages, lengths=lengths), out=out, query_indptr=indptr, stream=stream)"
)
_FORMS = {"": CALL, " and query_indptr": CALL_WITH_INDPTR, ", a new view and table": CALL_WITH_ALL_NEW}


class Kvit:
    """Buffers, as they are. Others give a library's array over the memory of a buffer, and its own stream."""

    needs_gpu = False

    def __init__(self, stream: kvit.Stream):
        self.stream: Any = stream

    def array(self, buffer: kvit.Buffer) -> Any:
        return buffer

    def output(self, buffer: kvit.Buffer) -> Any:
        return self.array(buffer)


class Torch(Kvit):
    """Its tensors, and its stream as the current one."""

    def __init__(self, stream: kvit.Stream):
        import torch

        self.torch = torch
        self.stream = torch.cuda.ExternalStream(stream.handle)
        torch.cuda.set_stream(self.stream)

    def array(self, buffer: kvit.Buffer) -> Any:
        return self.torch.from_dlpack(buffer)


class IdleTorch(Torch):
    """Tensors of a PyTorch without CUDA, which lie on the host as the idle driver's memory does, and say otherwise."""

    def __init__(self, stream: kvit.Stream):
        import torch

        class Stream:
            __cuda_stream__ = torch.cuda.Stream.__cuda_stream__
            cuda_stream = stream.handle

        self.torch, self.stream = torch, Stream()
        _on_gpu().set_stream(stream.handle)

    def array(self, buffer: kvit.Buffer) -> Any:
        dtype = getattr(self.torch, str(buffer.dtype))
        return _on_gpu().OnGpu(self.torch.from_numpy(_bytes_of(buffer)).view(dtype).view(buffer.shape))


class Cupy(Kvit):
    """Its arrays, and its stream as the current one."""

    needs_gpu = True

    def __init__(self, stream: kvit.Stream):
        import cupy

        self.cupy = cupy
        self.stream = cupy.cuda.ExternalStream(stream.handle)
        self.stream.use()

    def array(self, buffer: kvit.Buffer) -> Any:
        return self.cupy.from_dlpack(buffer)


class Jax(Kvit):
    """Its arrays, into which nobody writes: the output is a buffer."""

    needs_gpu = True

    def array(self, buffer: kvit.Buffer) -> Any:
        import jax

        return jax.dlpack.from_dlpack(buffer)

    def output(self, buffer: kvit.Buffer) -> Any:
        return buffer


class Numba(Kvit):
    """Its arrays, by __cuda_array_interface__."""

    needs_gpu = True

    def array(self, buffer: kvit.Buffer) -> Any:
        from numba import cuda

        return cuda.as_cuda_array(buffer)


class CudaCore(Kvit):
    """Its views of memory."""

    def array(self, buffer: kvit.Buffer) -> Any:
        from cuda.core.utils import StridedMemoryView

        return StridedMemoryView.from_dlpack(buffer, stream_ptr=-1)


class IdleCudaCore(CudaCore):
    """Its views of the host's memory, which say otherwise."""

    def array(self, buffer: kvit.Buffer) -> Any:
        from cuda.core.utils import StridedMemoryView

        array = _bytes_of(buffer).view(str(buffer.dtype)).reshape(buffer.shape)
        return _on_gpu().OnGpu(StridedMemoryView.from_dlpack(array, stream_ptr=-1))


_LIBRARIES = {"kvit": Kvit, "torch": Torch, "cupy": Cupy, "jax": Jax, "numba": Numba, "cuda.core": CudaCore}
_IDLE = {"torch": IdleTorch, "cuda.core": IdleCudaCore}


def _call(library: type[Kvit], statement: str, case: Case) -> Burst:
    case = _case(case.stream.device)
    theirs = library(case.stream)
    named = {"q": case.q, "k": case.pool[0], "v": case.pool[1], "pages": case.pages, "lengths": case.lengths}
    arrays = {name: theirs.array(buffer) for name, buffer in {**named, "indptr": case.indptr}.items()}
    return burst_of(
        statement,
        case.stream.synchronize,
        op=case.attention,
        view=case.view,
        table=case.table,
        out=theirs.output(case.out),
        stream=theirs.stream,
        CacheView=kvit.CacheView,
        PageTable=kvit.PageTable,
        **arrays,
    )


def _wrap(make: Callable[[], Any], case: Case) -> Burst:
    return burst_of("wrap(array)", lambda: None, wrap=kvit.Tensor.wrap, array=make())


def numpy_array() -> Any:
    """On the host, like all that only Tensor.wrap is timed for."""
    return np.zeros((4, 32, 128), np.float16)


def torch_array() -> Any:
    """Its functions lend it: DLPack's C exchange API."""
    import torch

    return torch.zeros(4, 32, 128, dtype=torch.float16)


def jax_array() -> Any:
    """Its __dlpack__ is written in Python."""
    import jax

    return jax.numpy.zeros((4, 32, 128), "float16")


def cuda_core_array() -> Any:
    """Its functions lend it too."""
    from cuda.core.utils import StridedMemoryView

    return StridedMemoryView.from_dlpack(numpy_array(), stream_ptr=-1)


def rows(is_idle: bool) -> dict[str, Callable[[Case], Burst]]:
    """Name -> what times a burst of it; on the idle driver those alone that need no GPU."""
    found: dict[str, Callable[[Case], Burst]] = {}
    for name, library in {**_LIBRARIES, **(_IDLE if is_idle else {})}.items():
        if not (is_idle and library.needs_gpu):
            for words, statement in _FORMS.items():
                found[f"arrays of {name}{words}"] = functools.partial(_call, library, statement)
    arrays = {"numpy": numpy_array, "torch": torch_array, "jax": jax_array, "cuda.core": cuda_core_array}
    for name, make in arrays.items():
        found[f"Tensor.wrap of {name}'s array on the host"] = functools.partial(_wrap, make)
    return found


@functools.cache
def _case(device: str) -> Case:
    """In float16, which every library knows."""
    return Case(device, "float16")


@functools.cache
def _on_gpu() -> Any:
    return c_module("on_gpu")


def _bytes_of(buffer: kvit.Buffer) -> np.ndarray:
    """What the idle driver calls memory of a GPU is the host's."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * buffer.nbytes).from_address(buffer.pointer))
