"""Array libraries as the interop tests need them: an array of each, where its memory is, and what it makes of ours."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import kvit
from support import exchange


def need(module: str, name: str) -> Any:
    """The module, or a skip that says how to get it."""
    return pytest.importorskip(module, reason=f"needs {name}: pip install 'kvit[test-interop]'")


class Numpy:
    """numpy, with ml_dtypes for what it has no type of its own for."""

    devices = ("host",)
    is_writable = True
    knows_bfloat16 = True

    def __init__(self, device: str):
        self.device = device

    def array(self, source: np.ndarray) -> Any:
        """A copy of `source` that the library owns, in dense memory on the device."""
        return source.copy()

    def address(self, array: Any) -> int:
        """Where its first element lies."""
        return array.ctypes.data

    def numpy(self, array: Any, dtype: np.dtype) -> np.ndarray:
        """Its bytes, as numpy reads them."""
        return np.array(array).view(dtype)

    def adopt(self, buffer: kvit.Buffer) -> Any:
        """What the library makes of a kvit.Buffer."""
        return np.asarray(buffer)


class Torch(Numpy):
    """PyTorch: DLPack both ways."""

    devices = ("host", "cuda:0")

    def __init__(self, device: str):
        super().__init__(device)
        self.torch = need("torch", "PyTorch")
        if device != "host" and not self.torch.cuda.is_available():
            pytest.skip("needs a PyTorch that is built with CUDA")

    def array(self, source: np.ndarray) -> Any:
        dtype = getattr(self.torch, source.dtype.name)
        raw = self.torch.from_numpy(np.ascontiguousarray(source).view(np.uint8)).clone()
        return raw.to(self.device.replace("host", "cpu")).view(dtype)

    def address(self, array: Any) -> int:
        return array.data_ptr()

    def numpy(self, array: Any, dtype: np.dtype) -> np.ndarray:
        return array.cpu().contiguous().view(self.torch.uint8).numpy().view(dtype)

    def adopt(self, buffer: kvit.Buffer) -> Any:
        return self.torch.from_dlpack(buffer)


class Jax(Numpy):
    """JAX: DLPack both ways; its arrays never change, which its DLPack does not say everywhere."""

    devices = ("host", "cuda:0")
    is_writable = False

    def __init__(self, device: str):
        super().__init__(device)
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # or it takes three quarters of the GPU's memory
        self.jax = need("jax", "JAX")
        platform = "cpu" if device == "host" else "gpu"
        try:
            self.place = self.jax.devices(platform)[0]
        except RuntimeError as error:
            pytest.skip(f"needs a JAX that is built with CUDA: {error}")

    def array(self, source: np.ndarray) -> Any:
        return self.jax.device_put(source, self.place)

    def address(self, array: Any) -> int:
        return array.unsafe_buffer_pointer()

    def numpy(self, array: Any, dtype: np.dtype) -> np.ndarray:
        return np.asarray(array).view(dtype)

    def adopt(self, buffer: kvit.Buffer) -> Any:
        return self.jax.dlpack.from_dlpack(buffer)


class Cupy(Numpy):
    """CuPy: DLPack and the CUDA array interface. What it has no type for travels as integers."""

    devices = ("cuda:0",)
    knows_bfloat16 = False

    def __init__(self, device: str):
        super().__init__(device)
        self.cupy = need("cupy", "CuPy")

    def array(self, source: np.ndarray) -> Any:
        return self.cupy.asarray(plain(source))

    def address(self, array: Any) -> int:
        return array.data.ptr

    def numpy(self, array: Any, dtype: np.dtype) -> np.ndarray:
        return self.cupy.asnumpy(array).view(dtype)

    def adopt(self, buffer: kvit.Buffer) -> Any:
        return self.cupy.from_dlpack(buffer)


class Numba(Numpy):
    """numba.cuda: the CUDA array interface, whose arrays do not say which GPU they are on."""

    devices = ("cuda:0",)
    knows_bfloat16 = False

    def __init__(self, device: str):
        super().__init__(device)
        need("numba", "Numba")
        self.cuda = need("numba.cuda", "Numba")
        if not self.cuda.is_available():
            pytest.skip("needs a Numba that finds the CUDA toolkit")

    def array(self, source: np.ndarray) -> Any:
        return self.cuda.to_device(plain(source))

    def address(self, array: Any) -> int:
        return array.__cuda_array_interface__["data"][0]

    def numpy(self, array: Any, dtype: np.dtype) -> np.ndarray:
        return array.copy_to_host().view(dtype)

    def adopt(self, buffer: kvit.Buffer) -> Any:
        return self.cuda.as_cuda_array(buffer)


class CudaCore(Numpy):
    """cuda.core: its StridedMemoryView of memory that somebody else owns."""

    devices = ("host", "cuda:0")
    knows_bfloat16 = False

    def __init__(self, device: str):
        super().__init__(device)
        self.view = need("cuda.core.utils", "cuda.core").StridedMemoryView

    def array(self, source: np.ndarray) -> Any:
        if self.device == "host":
            return self.view.from_dlpack(plain(source).copy(), stream_ptr=-1)
        return self.view.from_dlpack(kvit.Buffer.from_numpy(plain(source), self.device), stream_ptr=-1)

    def address(self, array: Any) -> int:
        return array.ptr

    def numpy(self, array: Any, dtype: np.dtype) -> np.ndarray:
        shape, kind = array.shape, str(array.dtype)
        seen = kvit.Tensor.from_pointer(array.ptr, shape, kind, self.device, owner=array)
        copy = kvit.Buffer.empty(shape, kind, self.device)
        copy.copy_from(seen)
        return copy.numpy().view(dtype)

    def adopt(self, buffer: kvit.Buffer) -> Any:
        return self.view.from_dlpack(buffer, stream_ptr=-1)


class Pointers(Numpy):
    """No library: an address, a shape and a dtype."""

    devices = ("host", "cuda:0")

    def array(self, source: np.ndarray) -> Any:
        owner = kvit.Buffer.from_numpy(source, self.device)
        return kvit.Tensor.from_pointer(owner.pointer, owner.shape, owner.dtype, self.device, owner=owner)

    def address(self, array: Any) -> int:
        return array.pointer

    def numpy(self, array: Any, dtype: np.dtype) -> np.ndarray:
        copy = kvit.Buffer.empty(array.shape, array.dtype, self.device)
        copy.copy_from(array)
        return copy.numpy().view(dtype)

    def adopt(self, buffer: kvit.Buffer) -> Any:
        return kvit.Tensor.from_pointer(buffer.pointer, buffer.shape, buffer.dtype, buffer.device, owner=buffer)


class Exchange(Pointers):
    """A library in C whose type has DLPack's C exchange API and nothing else."""

    def array(self, source: np.ndarray) -> Any:
        owner = kvit.Buffer.from_numpy(source, self.device)
        given = dict(
            code=exchange.code_of(source.dtype),
            bits=8 * source.itemsize,
            device=owner.__dlpack_device__(),
            context=owner,
        )
        return exchange.lender_type()(owner.pointer, source.shape, **given)

    def address(self, array: Any) -> int:
        return super().address(kvit.Tensor.wrap(array))

    def numpy(self, array: Any, dtype: np.dtype) -> np.ndarray:
        return super().numpy(kvit.Tensor.wrap(array), dtype)


LIBRARIES = (Numpy, Torch, Jax, Cupy, Numba, CudaCore, Exchange, Pointers)


def plain(source: np.ndarray) -> np.ndarray:
    """The same bits in a type that every library knows: integers in place of ml_dtypes'."""
    return source if source.dtype.isbuiltin == 1 else source.view(f"u{source.dtype.itemsize}")
