"""pyx/launch/tensor_map: a map that the caller packs. That kernels copy by it is tested with the probes of boxes."""

import ctypes
from ctypes import c_int32, c_int64

import pytest

from kvit._native.tensor_map import pack_tensor_map
from kvit.errors import LayoutError, ShapeError


class HostTensorMap(ctypes.Structure):
    """KvitHostTensorMap of kernels/platform/host_api.h."""

    _fields_ = [
        ("base", c_int64),
        ("extents", c_int64 * 5),
        ("strides", c_int64 * 4),
        ("box_bytes", c_int32),
        ("box_tokens", c_int32),
        ("magic", c_int64),
    ]


# Nothing is read while a map is made: any address will do.
POOL = {"row_bytes": 256, "num_pages": 7, "page_size": 24, "num_heads": 3, "box_tokens": 8}
ADDRESS, STRIDES = 4096, (24 * 768, 768, 256)


def pack(device="host", base=ADDRESS, strides=STRIDES, **changes):
    return pack_tensor_map(device, base, strides, **(POOL | changes))


def test_a_map_of_the_host_says_what_it_was_given():
    packed = pack()
    assert len(packed) == 128
    found = HostTensorMap.from_buffer_copy(packed)
    assert found.base == ADDRESS
    assert list(found.extents) == [128, 24, 2, 3, 7]  # byte of a chunk, token, chunk, head, page
    assert list(found.strides) == [768, 128, 256, 24 * 768]
    assert (found.box_bytes, found.box_tokens) == (128, 8)


@pytest.mark.parametrize("row_bytes", [32, 64])
def test_a_short_row_is_one_chunk(row_bytes):
    found = HostTensorMap.from_buffer_copy(pack(row_bytes=row_bytes))
    assert found.extents[0] == found.box_bytes == row_bytes
    assert found.extents[2] == 1


@pytest.mark.gpu
def test_a_map_of_a_gpu_is_the_driver_s():
    packed = pack("cuda:0")
    assert len(packed) == 128
    assert packed != pack() and packed != pack("cuda:0", num_pages=8)


@pytest.mark.parametrize(
    "changes",
    [
        {"row_bytes": 96},
        {"base": ADDRESS + 8},
        {"strides": (24 * 768, 776, 256)},
        {"strides": (24 * 768, -768, 256)},
        {"strides": (1 << 40, 768, 256)},
    ],
    ids=str,
)
def test_a_pool_that_no_map_describes_is_refused(changes):
    with pytest.raises(
        LayoutError, match="cannot be copied by boxes; rows must be 32 or 64 bytes or whole lines of 128"
    ):
        pack(**changes)


@pytest.mark.parametrize("box_tokens", [0, 4, 12, 16, 256])
def test_a_box_that_pages_do_not_hold_is_refused(box_tokens):
    with pytest.raises(ShapeError, match="it must be a power of two from 8 to 128 that divides the page size"):
        pack(box_tokens=box_tokens)
