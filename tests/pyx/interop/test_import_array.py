"""pyx/interop/import_array: every protocol by which somebody's memory comes in, none of which copies."""

import array
import gc

import numpy as np
import pytest

from kvit._native.buffer import Buffer
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.dtypes import DTYPES, numpy_dtype
from kvit.errors import DeviceError, DtypeError, LayoutError


class DlpackOnly:
    """A producer that knows DLPack alone, and remembers what it was asked."""

    def __init__(self, source, *, versioned=True, device=None):
        self.source, self.versioned, self.device, self.asked = source, versioned, device, []

    def __dlpack_device__(self):
        return self.device or self.source.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **keywords):
        if keywords and not self.versioned:
            raise TypeError("unexpected keyword argument")
        self.asked.append(stream)
        return self.source.__dlpack__(stream=stream, **keywords)


class CudaArray:
    """A producer of __cuda_array_interface__ with made-up fields; nothing is read through the address."""

    def __init__(self, **fields):
        self.__cuda_array_interface__ = {
            "shape": (2, 4), "typestr": "<f2", "data": (4096, False), "version": 3, "strides": None, **fields
        }  # fmt: skip


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.bits >= 8], ids=str)
def test_a_numpy_array_of_every_dtype(dtype):
    source = np.zeros((2, 3, 4), numpy_dtype(dtype))
    tensor = Tensor.wrap(source)
    assert (tensor.pointer, tensor.shape, tensor.strides) == (source.ctypes.data, source.shape, source.strides)
    assert (tensor.dtype, tensor.device, tensor.readonly) == (dtype, "host", False)


def test_numpy_strides_are_honoured_and_never_copied_away():
    source = np.zeros((4, 6, 8), np.float32)
    for view in (source.transpose(2, 0, 1), source[::-1, ::2, 3:], np.broadcast_to(source[0], (5, 6, 8))):
        tensor = Tensor.wrap(view)
        assert (tensor.pointer, tensor.shape, tensor.strides) == (view.ctypes.data, view.shape, view.strides)
        assert tensor.readonly != view.flags.writeable


def test_numpys_unpacked_uint4_is_refused_with_the_way_out():
    with pytest.raises(LayoutError, match="one per byte, kvit two; use Buffer.from_numpy"):
        Tensor.wrap(np.zeros(4, numpy_dtype(DTYPES[4])))


@pytest.mark.parametrize(
    ("format", "dtype"), [("f", "float32"), ("d", "float64"), ("b", "int8"), ("I", "uint32"), ("q", "int64")]
)
def test_an_object_with_the_buffer_protocol(format, dtype):
    source = array.array(format, [1, 2, 3])
    tensor = Tensor.wrap(source)
    assert (tensor.pointer, tensor.shape, tensor.dtype.name) == (source.buffer_info()[0], (3,), dtype)
    with pytest.raises(BufferError):  # the view holds on to the memory, so it cannot be moved
        source.append(4)
    del tensor
    source.append(4)


def test_bytes_are_readonly_and_can_be_declared_to_be_anything():
    tensor = Tensor.wrap(bytes(16), "uint4")
    assert tensor.readonly and tensor.shape == (32,)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dlpack_of_every_dtype(device, dtype, versioned):
    source = Buffer.empty((2, 3, 4), dtype, device)
    tensor = Tensor.wrap(DlpackOnly(source, versioned=versioned))
    assert (tensor.pointer, tensor.shape, tensor.strides) == (source.pointer, source.shape, source.strides)
    # Without a version it cannot say that it is read-only: only known libraries are taken to be writable then.
    assert (tensor.dtype, tensor.device, tensor.readonly) == (dtype, device, not versioned)


def test_dlpack_strides_and_readonly_come_through():
    source = np.arange(24, dtype=np.int32).reshape(4, 6)[::2, ::-1]
    tensor = Tensor.wrap(DlpackOnly(source))
    assert (tensor.pointer, tensor.strides) == (source.ctypes.data, source.strides)
    source.flags.writeable = False
    assert Tensor.wrap(DlpackOnly(source)).readonly


def test_dlpack_memory_is_given_back_with_the_view():
    tensor = Tensor.wrap(DlpackOnly(Buffer.from_numpy(np.full(1 << 16, 7, np.uint8), "host")))
    gc.collect()
    others = [Buffer.empty(1 << 16, "uint8", "host") for _ in range(4)]
    copy = Buffer.empty(1 << 16, "uint8", "host")
    copy.copy_from(tensor)
    assert len(others) == 4 and (copy.numpy() == 7).all()

    class Counted(np.ndarray):
        alive = 1

        def __del__(self):
            Counted.alive -= 1

    tensor = Tensor.wrap(DlpackOnly(np.zeros(4, np.float32).view(Counted)))
    assert Counted.alive == 1
    del tensor
    gc.collect()
    assert Counted.alive == 0


def test_a_producer_on_the_host_is_asked_for_no_stream():
    producer = DlpackOnly(np.zeros(4, np.float32))
    Tensor.wrap(producer, stream=77)
    assert producer.asked == [None]


@pytest.mark.gpu
def test_a_producer_on_a_gpu_is_told_the_stream():
    producer = DlpackOnly(Buffer.empty(4, "float32", "cuda:0"))
    stream = Stream("cuda:0")
    Tensor.wrap(producer)
    Tensor.wrap(producer, stream=stream.handle)
    assert producer.asked == [1, stream.handle]  # 1 is DLPack's word for the legacy default stream


def test_page_locked_memory_is_host_memory():
    assert Tensor.wrap(DlpackOnly(np.zeros(4, np.float32), device=(3, 0))).device == "host"


def test_another_kind_of_device_is_refused():
    with pytest.raises(DeviceError, match="DLPack device type 8 "):
        Tensor.wrap(DlpackOnly(np.zeros(4, np.float32), device=(8, 0)))


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_, np.uint64])
def test_a_dlpack_type_without_a_code_is_refused(dtype):
    with pytest.raises(DtypeError, match="has no dtype; known are float32"):
        Tensor.wrap(DlpackOnly(np.zeros(4, dtype)))


def test_a_producer_that_refuses_is_quoted():
    readonly = np.zeros(4, np.float32)
    readonly.flags.writeable = False
    with pytest.raises(LayoutError, match="the DlpackOnly does not lend its memory: .*readonly"):
        Tensor.wrap(DlpackOnly(readonly, versioned=False))


def test_a_cuda_array_is_read_from_its_interface():
    tensor = Tensor.wrap(CudaArray(strides=(32, 2), data=(8192, True)))
    assert (tensor.pointer, tensor.shape, tensor.strides) == (8192, (2, 4), (32, 2))
    assert (tensor.dtype.name, tensor.device, tensor.readonly) == ("float16", "cuda:0", True)
    assert Tensor.wrap(CudaArray(typestr="<V2"), "bfloat16").dtype.name == "bfloat16"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"typestr": "<V2"}, DtypeError),
        ({"typestr": ">f2"}, DtypeError),
        ({"typestr": "<c8"}, DtypeError),
        ({"mask": "of any kind"}, LayoutError),
        ({"data": (4097, False)}, LayoutError),
        ({"data": (0, False)}, LayoutError),
    ],
    ids=str,
)
def test_a_cuda_array_that_cannot_be_read_is_refused(fields, error):
    with pytest.raises(error):
        Tensor.wrap(CudaArray(**fields))


@pytest.mark.parametrize("other", [[1.0, 2.0], 3, "text", None, object()], ids=lambda other: type(other).__name__)
def test_what_is_no_tensor_is_refused_with_what_would_do(other):
    with pytest.raises(DtypeError, match="is no tensor; give a kvit.Buffer, a numpy array"):
        Tensor.wrap(other)


def test_the_other_byte_order_is_refused():
    with pytest.raises(DtypeError, match="other order"):
        Tensor.wrap(np.zeros(4, ">f4"))
    with pytest.raises(DtypeError, match="buffer format '>f'"):
        Tensor.wrap(memoryview(np.zeros(4, ">f4")))


def test_a_misaligned_array_is_refused():
    source = np.zeros(17, np.uint8)
    start = 1 - source.ctypes.data % 4 % 2  # an odd address, wherever numpy put the array
    with pytest.raises(LayoutError, match="no multiple of 4; copy it first"):
        Tensor.wrap(source[start : start + 16].view(np.float32))
