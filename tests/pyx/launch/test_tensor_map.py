"""pyx/launch/tensor_map: a map that the caller packs. That kernels copy by it is tested with the probes of boxes."""

import ctypes
from ctypes import c_int32, c_int64

import pytest

from kvit._native.tensor_map import pack_tensor_map
from kvit.errors import LayoutError, ShapeError
from kvit.selection import registry
from kvit.selection.cards import Card
from kvit.selection.rules import L2_PROMOTION, Rule
from kvit.selection.tuning import text_of
from support.processes import run_idle


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


# CUtensorMapL2promotion of cuda.h.
PROMOTION = {0: 0, 128: 2, 256: 3}
MAPS = """
from kvit._native.tensor_map import pack_tensor_map
pool = {"row_bytes": 256, "num_pages": 7, "page_size": 24, "num_heads": 3, "box_tokens": 8}
for token_stride in (256, 768):
    pack_tensor_map("cuda:0", 4096, (24 * 768, token_stride, 256), **pool)
    found.append(count("promotion"))
pack_tensor_map("cuda:0", 4096, (24 * 64, 128, 64), **(pool | {"row_bytes": 64}))
found.append(count("promotion"))
"""


# An H100 has 3352 GB/s for 132 multiprocessors, and an H200 4917, as its driver tells it; 0: the driver says nothing.
@pytest.mark.parametrize(("gbps", "promoted"), [(3352, 256), (3960, 128), (4917, 128), (0, 256)])
def test_l2_fetches_what_the_rules_for_the_card_say_and_no_more_than_lies_together(tmp_path, gbps, promoted):
    found = run_idle(tmp_path, MAPS, IDLE_DRIVER_GBPS=str(gbps))
    # Tokens one after the other; of other heads between them, whose 256 bytes are a row; rows of 64 bytes apart.
    assert found == [PROMOTION[promoted], PROMOTION[promoted], PROMOTION[0]]


def test_a_measured_rule_for_what_l2_fetches_goes_before_the_others(tmp_path):
    path, rule = tmp_path / "file.json", Rule(L2_PROMOTION, (128, 256), "measured")
    card = Card("idle driver", (9, 0), 132, None)
    path.write_text(text_of(registry.installed().kvit, card, "580", "2026-11-30", [rule]))
    assert run_idle(tmp_path, MAPS, KVIT_TUNING=str(path))[0] == PROMOTION[128]
