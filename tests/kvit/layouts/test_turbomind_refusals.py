"""Memory that cannot be TurboMind's blocks is refused, with what would do."""

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, on_gpu

SHAPE = {"page_size": 4, "kv_heads": 2, "head_dim": 64}
MEMORY, BLOCKS = np.zeros((3, 4096), np.uint8), np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("error", "match", "memory", "options"),
    [
        (kvit.ShapeError, "blocks of 4096 bytes; the layer takes bytes 4096 to 6144", MEMORY, {"layer": 2}),
        (kvit.ShapeError, "byte -16 of a block", MEMORY, {"offset": -16}),
        (kvit.ShapeError, r"memory has shape \[12288\]", MEMORY.reshape(-1), {}),
        (kvit.LayoutError, "multiples of 16", MEMORY, {"offset": 8, "kv": "int8"}),
        (kvit.DtypeError, "int8 and int4; TurboMind's blocks hold K and V in one", MEMORY, {"kv": ("int8", "int4")}),
        (kvit.DtypeError, "blocks is int32; it must be int64", MEMORY, {"blocks": BLOCKS.astype(np.int32)}),
        (kvit.ShapeError, r"blocks has shape \[3, 1\]", MEMORY, {"blocks": BLOCKS.reshape(3, 1)}),
        (kvit.LayoutError, "float8's scales lie outside", MEMORY, {"blocks": BLOCKS, "kv": "float8_e4m3"}),
        (kvit.LayoutError, "begin 8 and 264 bytes into", MEMORY, {"blocks": BLOCKS, "kv": "int8", "offset": 8}),
        (kvit.DtypeError, "dtype is float32", MEMORY, {"blocks": BLOCKS, "kv": "int8", "dtype": "float32"}),
        (kvit.ShapeError, "page_size is 0", MEMORY, {"page_size": 0}),
        (kvit.DeviceError, r"memory\[0\] is on cuda:0", on_gpu((64,)), {"blocks": BLOCKS}),
    ],
    ids=["layer", "offset", "shape", "alignment", "codecs", "pointers", "table", "float8", "blocks", "dtype", "tokens",
         "device"],
)  # fmt: skip
def test_memory_that_is_no_blocks_is_refused(error, match, memory, options):
    with pytest.raises(error, match=match):
        kvit.TurboMindBlocks(memory, **{**SHAPE, **options})


def test_read_only_blocks_are_read_and_not_written(rng):
    memory = MEMORY.copy()
    memory.setflags(write=False)
    blocks = memory.ctypes.data + np.arange(3, dtype=np.int64) * 4096
    view = kvit.TurboMindBlocks(memory, **SHAPE, blocks=blocks)
    table = view.table(np.array([0, 3], np.int32), np.array([3], np.int32))
    k, v = np.zeros((2, 1, 2, 64), BFLOAT16)
    with pytest.raises(kvit.LayoutError, match="read-only"):
        kvit.Append(view)(k, v, view, table)
    kvit.Gather(view)(view, table, out=(k, v))


def test_blocks_say_what_they_are():
    view = kvit.TurboMindBlocks(MEMORY, **SHAPE, kv="int4", layer=2, blocks=BLOCKS)
    assert view.nbytes == 3 * kvit.TurboMindBlocks.bytes_of_layer(4, 2, 64, "int4") == 3 * 2 * 2 * 4 * 36
    assert repr(view) == (
        "TurboMindBlocks(3 pages of 4 tokens, 2 KV heads, head_dim 64, int4 for bfloat16, HND, host, layer at byte "
        "1152, through pointers)"
    )
