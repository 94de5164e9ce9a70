"""pyx/runtime/buffer: owned memory, in and out of numpy, for every dtype."""

import ctypes
import gc

import numpy as np
import pytest

from kvit._native.buffer import Buffer
from kvit._native.stream import Stream
from kvit.dtypes import DTYPES, dtype_of, numpy_dtype
from kvit.errors import DeviceError, DtypeError, LayoutError, ShapeError

WITH_FORMAT = [d for d in DTYPES if d.name not in ("bfloat16", "uint4", "float8_e4m3fn", "float8_e5m2")]


def every_byte(dtype, shape):
    """An array in which each byte value occurs: NaN patterns, infinities and denormals travel unchanged."""
    count = int(np.prod(shape)) * numpy_dtype(dtype).itemsize
    raw = np.arange(count, dtype=np.uint8)
    if dtype.bits == 4:
        raw &= 15
    return raw.view(numpy_dtype(dtype)).reshape(shape)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 6, 32), (256,), (3, 0, 2), (1, 2)], ids=str)
def test_an_array_comes_back_bit_for_bit(device, dtype, shape):
    array = every_byte(dtype, shape)
    buffer = Buffer.from_numpy(array, device)
    assert (buffer.shape, buffer.dtype, buffer.device) == (shape, dtype, device)
    assert buffer.nbytes == dtype.bytes_for(array.size)
    assert same_bits(buffer.numpy(), array)


def test_a_scalar_and_a_strided_array_are_copied_too(device):
    scalar = np.array(1.5, np.float32)
    assert same_bits(Buffer.from_numpy(scalar, device).numpy(), scalar)
    strided = np.arange(24, dtype=np.int32).reshape(4, 6)[::-2, ::3]
    assert same_bits(Buffer.from_numpy(strided, device).numpy(), np.ascontiguousarray(strided))


def test_uint4_is_packed_with_element_0_in_the_low_half(device):
    buffer = Buffer.from_numpy(np.array([[1, 2, 15, 0]], numpy_dtype(dtype_of("uint4"))), device)
    assert (buffer.strides, buffer.nbytes) == ((2, 0), 2)
    raw = Buffer.empty(2, "uint8", "host")
    raw.copy_from(Buffer.from_numpy(np.array([0x21, 0x0F], np.uint8), "host"))
    packed = Buffer.empty((1, 4), "uint4", device)
    packed.copy_from(as_uint4(raw))
    assert packed.numpy().tolist() == buffer.numpy().tolist() == [[1, 2, 15, 0]]


def as_uint4(raw):
    from kvit._native.tensor import Tensor

    return Tensor.from_pointer(raw.pointer, (1, 4), "uint4", "host", owner=raw)


def test_memory_nobody_wrote_is_nan_on_the_host():
    for dtype in ("float32", "float16", "bfloat16", "float8_e4m3fn", "float64"):
        assert np.isnan(Buffer.empty((5, 3), dtype, "host").numpy().astype(np.float64)).all()


def test_memory_is_aligned_for_any_vector(device):
    assert all(Buffer.empty(length, "uint8", device).pointer % 256 == 0 for length in (1, 3, 1000))


def test_fill_sets_every_byte(device):
    buffer = Buffer.empty((3, 5), "float32", device)
    buffer.fill_bytes(0xFF)
    assert np.isnan(buffer.numpy()).all()
    buffer.fill_bytes(0)
    assert not buffer.numpy().any()
    with pytest.raises(ShapeError, match="value is 256; it must be 0 to 255"):
        buffer.fill_bytes(256)


@pytest.mark.parametrize("own_streams", [False, True])
def test_copies_between_buffers_follow_their_streams(device, own_streams):
    streams = [Stream(device) if own_streams else None for _ in range(3)]
    # Large enough that a copy which does not wait for the fill would read some of the old bytes on a GPU.
    source = Buffer.empty(1 << 24, "uint8", device, streams[0])
    target = Buffer.empty(1 << 24, "uint8", device, streams[1])
    for value in (1, 2, 3):
        source.fill_bytes(value)
        target.copy_from(source, streams[2])
        assert (target.numpy() == value).all()


@pytest.mark.gpu
@pytest.mark.parametrize("source_device", ["host", "cuda:0"])
@pytest.mark.parametrize("target_device", ["host", "cuda:0"])
def test_copies_cross_devices(source_device, target_device):
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    target = Buffer.empty((3, 4), "int32", target_device)
    target.copy_from(Buffer.from_numpy(array, source_device))
    assert same_bits(target.numpy(), array)


def test_a_copy_that_does_not_fit_is_refused_and_writes_nothing(device):
    target = Buffer.from_numpy(np.zeros((2, 3), np.float32), device)
    with pytest.raises(ShapeError, match=r"shape \(3, 2\), the buffer \(2, 3\)"):
        target.copy_from(np.ones((3, 2), np.float32))
    with pytest.raises(DtypeError, match="the source is float64, the buffer float32"):
        target.copy_from(np.ones((2, 3)))
    with pytest.raises(LayoutError, match="C-contiguous"):
        target.copy_from(np.ones((3, 2), np.float32).T)
    assert not target.numpy().any()


def test_a_part_of_the_leading_axis_shares_memory(device):
    buffer = Buffer.from_numpy(np.arange(24, dtype=np.float32).reshape(4, 3, 2), device)
    buffer[1].fill_bytes(0)
    buffer[-1:].copy_from(np.full((1, 3, 2), 9, np.float32))
    expected = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    expected[1], expected[-1] = 0, 9
    assert same_bits(buffer.numpy(), expected)
    assert same_bits(buffer[2].numpy(), expected[2]) and same_bits(buffer[1:3].numpy(), expected[1:3])
    assert len(buffer) == 4 and buffer[3:1].shape == (0, 3, 2)


def test_a_part_keeps_the_whole_alive():
    part = Buffer.from_numpy(np.full((2, 1 << 16), 7, np.uint8), "host")[1]
    gc.collect()
    # On the host a freed block would be poisoned by the next allocation of its size.
    others = [Buffer.empty((2, 1 << 16), "uint8", "host") for _ in range(4)]
    assert len(others) == 4 and (part.numpy() == 7).all()


@pytest.mark.parametrize(
    ("key", "error"), [(4, IndexError), (-5, IndexError), (slice(0, 4, 2), LayoutError), (1.0, TypeError)]
)
def test_a_part_that_is_not_there_is_refused(key, error):
    with pytest.raises(error):
        Buffer.empty((4, 2), "float32", "host")[key]


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        ((2, -1), "float32", ShapeError),
        ((1 << 40, 1 << 40), "float32", ShapeError),
        ((2, 3), "uint4", LayoutError),
        ((), "uint4", LayoutError),
        ((1,) * 9, "float32", LayoutError),
        ((2, 3), "complex64", DtypeError),
        (2.5, "float32", ShapeError),
    ],
    ids=str,
)
def test_an_impossible_buffer_is_refused(shape, dtype, error):
    with pytest.raises(error):
        Buffer.empty(shape, dtype, "host")


def test_a_buffer_is_made_by_its_functions_alone():
    with pytest.raises(TypeError, match="Buffer.empty"):
        Buffer()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numpy_reads_a_host_buffer_in_place(dtype):
    array = every_byte(dtype, (2, 3, 16))
    buffer = Buffer.from_numpy(array, "host")
    view = np.asarray(buffer)
    assert same_bits(view, array)
    assert dtype.bits == 4 or view.ctypes.data == buffer.pointer


@pytest.mark.parametrize("dtype", WITH_FORMAT, ids=str)
def test_the_buffer_protocol_gives_shape_and_format(dtype):
    array = every_byte(dtype, (2, 16))
    view = memoryview(Buffer.from_numpy(array, "host"))
    assert (view.shape, view.strides, view.itemsize) == (array.shape, array.strides, array.itemsize)
    assert not view.readonly and view.c_contiguous
    assert np.dtype(view.format) == array.dtype and view.tobytes() == array.tobytes()


def test_the_buffer_protocol_refuses_what_it_cannot_name():
    with pytest.raises(BufferError, match="no name for bfloat16"):
        memoryview(Buffer.empty(4, "bfloat16", "host"))


def test_a_view_keeps_the_buffer_alive():
    view = np.asarray(Buffer.from_numpy(np.full(1 << 16, 7, np.uint8), "host"))
    gc.collect()
    others = [Buffer.empty(1 << 16, "uint8", "host") for _ in range(4)]
    assert len(others) == 4 and (view == 7).all()


def test_a_host_buffer_has_no_cuda_array_interface():
    assert not hasattr(Buffer.empty(4, "float32", "host"), "__cuda_array_interface__")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", WITH_FORMAT, ids=str)
def test_the_cuda_array_interface_describes_the_memory(dtype):
    stream = Stream("cuda:0")
    interface = Buffer.empty((3, 4), dtype, "cuda:0", stream).__cuda_array_interface__
    assert (interface["shape"], interface["version"], interface["strides"]) == ((3, 4), 3, None)
    assert np.dtype(interface["typestr"]) == numpy_dtype(dtype)
    assert interface["stream"] == stream.handle
    assert Buffer.empty(4, dtype, "cuda:0").__cuda_array_interface__["stream"] == 1  # 0 would be ambiguous


@pytest.mark.gpu
def test_a_gpu_buffer_is_never_copied_to_the_host_behind_ones_back():
    buffer = Buffer.empty(4, "float32", "cuda:0")
    with pytest.raises(BufferError, match="numpy\\(\\) copies it"):
        memoryview(buffer)
    with pytest.raises(DeviceError, match="numpy\\(\\) copies it"):
        np.asarray(buffer)


@pytest.mark.gpu
def test_gpu_memory_comes_back_when_the_buffer_goes():
    def in_use():
        from cuda.bindings import driver

        pool = driver.cuDeviceGetDefaultMemPool(0)[1]
        return int(driver.cuMemPoolGetAttribute(pool, driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT)[1])

    stream = Stream("cuda:0")
    before = in_use()
    buffer = Buffer.empty(1 << 24, "uint8", "cuda:0", stream)
    assert in_use() - before >= 1 << 24
    del buffer
    stream.synchronize()
    assert in_use() == before


def test_raw_memory_reads_the_same_through_ctypes():
    buffer = Buffer.from_numpy(np.arange(4, dtype=np.int32), "host")
    assert list((ctypes.c_int32 * 4).from_address(buffer.pointer)) == [0, 1, 2, 3]
