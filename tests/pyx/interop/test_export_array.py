"""pyx/interop/export_array: kvit.Buffer as a DLPack producer."""

import ctypes
import gc
import weakref

import numpy as np
import pytest

from kvit._native.buffer import Buffer
from kvit._native.stream import Stream
from kvit.dtypes import dtype_of


def name_of(capsule):
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return name(capsule)


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "float64", "uint8", "int8", "uint16", "uint32", "int32", "int64"]
)
def test_numpy_reads_a_buffer_through_dlpack_in_place(dtype):
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)
    buffer = Buffer.from_numpy(array, "host")
    view = np.from_dlpack(buffer)
    assert view.dtype == array.dtype and (view == array).all()
    assert view.ctypes.data == buffer.pointer and view.flags.writeable


def test_a_consumer_keeps_the_memory():
    view = np.from_dlpack(Buffer.from_numpy(np.full(1 << 16, 7, np.uint8), "host"))
    gc.collect()
    others = [Buffer.empty(1 << 16, "uint8", "host") for _ in range(4)]
    assert len(others) == 4 and (view == 7).all()


@pytest.mark.parametrize(
    ("max_version", "name"), [(None, b"dltensor"), ((0, 8), b"dltensor"), ((1, 0), b"dltensor_versioned")]
)
def test_the_capsule_has_the_form_that_was_asked_for(device, max_version, name):
    capsule = Buffer.empty(4, "bfloat16", device).__dlpack__(max_version=max_version)
    assert name_of(capsule) == name


def test_a_capsule_that_nobody_takes_lets_go_of_the_memory():
    class Owner:
        pass

    owner = Owner()
    gone = weakref.ref(owner)
    buffer = Buffer.from_numpy(np.zeros(4, np.float32), "host")
    references = [buffer.__dlpack__(max_version=version) for version in (None, (1, 0))]
    owner.references = references
    before = len(gc.get_referrers(buffer))
    del owner, references
    gc.collect()
    assert gone() is None and len(gc.get_referrers(buffer)) <= before


def test_the_device_is_dlpacks(device):
    assert Buffer.empty(4, "float32", device).__dlpack_device__() == ((1, 0) if device == "host" else (2, 0))


def test_copies_and_other_devices_are_not_given(device):
    buffer = Buffer.empty(4, "float32", device)
    with pytest.raises(BufferError, match="does not copy"):
        buffer.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="not \\(2, 77\\)"):
        buffer.__dlpack__(dl_device=(2, 77))


@pytest.mark.gpu
@pytest.mark.parametrize("consumer", [None, -1, 0, 1, 2, "own"])
def test_a_consumers_stream_is_made_to_wait(consumer):
    stream = Stream("cuda:0")
    buffer = Buffer.empty(1 << 20, "uint8", "cuda:0", stream)
    buffer.fill_bytes(7)
    handle = stream.handle if consumer == "own" else consumer
    assert name_of(buffer.__dlpack__(stream=handle)) == b"dltensor"
    assert dtype_of("uint8") is buffer.dtype and (buffer.numpy() == 7).all()
