"""What append refuses before anything is launched: the cache stays as it was, and the words say what would do."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import COUNTS, Setup
from support.caches import BFLOAT16, new_cache, on_gpu

TOKENS, HEADS, HEAD_DIM = 4, 2, 64


def rows(heads=HEADS, tokens=TOKENS, head_dim=HEAD_DIM, dtype=BFLOAT16):
    return np.zeros((tokens, heads, head_dim), dtype)


def integers(*shape, dtype=np.int32):
    return np.zeros(shape, dtype)


def frozen(array):
    array.flags.writeable = False
    return array


# Every second row of twice as many: no dense bias.
APART = np.zeros((2 * HEADS, HEAD_DIM), BFLOAT16)[::2]
REFUSALS = {
    "k_bias of other heads": ({"k_bias": np.zeros((3, 64), BFLOAT16)}, kvit.ShapeError, r"k_bias has shape \[3, 64\]"),
    "v_bias of one row": ({"v_bias": np.zeros(64, BFLOAT16)}, kvit.ShapeError, "v_bias has shape"),
    "bias in float32": ({"k_bias": np.zeros((2, 64), np.float32)}, kvit.DtypeError, "k_bias is float32; it must be bf"),
    "bias with gaps": ({"k_bias": APART}, kvit.LayoutError, "k_bias has rows 256 bytes apart"),
    "bias elsewhere": ({"k_bias": on_gpu((2, 64))}, kvit.DeviceError, "k_bias is on cuda:0"),
    "positions of wide integers": ({"positions": integers(4, dtype=np.int64)}, kvit.DtypeError, "positions is int64"),
    "too few positions": ({"positions": integers(3)}, kvit.ShapeError, r"it must be \[tokens = 4\]"),
    "positions with gaps": ({"positions": integers(8)[::2]}, kvit.LayoutError, "positions has entries 8 bytes apart"),
    "positions elsewhere": ({"positions": on_gpu((4,), "int32")}, kvit.DeviceError, "positions is on cuda:0"),
    "prefixes of tokens": ({"prefix_lengths": integers(4)}, kvit.ShapeError, r"it must be \[sequences = 1\]"),
    "q of other channels": ({"q": rows(8, head_dim=128)}, kvit.ShapeError, "q has shape"),
    "q of other tokens": ({"q": rows(8, tokens=5)}, kvit.ShapeError, "q has shape"),
    "q in float16": ({"q": rows(8, dtype=np.float16)}, kvit.DtypeError, "q is float16"),
    "q that is not ours to write": ({"q": frozen(rows(8))}, kvit.LayoutError, "q_out is read-only"),
    "q_out of other heads": ({"q": rows(8), "q_out": rows(4)}, kvit.ShapeError, "q_out has shape"),
    "q_out without q": ({"q_out": rows(8)}, kvit.ShapeError, "q_out and q_bias are of q"),
    "q_bias of other heads": ({"q": rows(8), "q_bias": np.zeros((4, 64), BFLOAT16)}, kvit.ShapeError, "q_bias has sh"),
}


@pytest.mark.parametrize("options, error, message", REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_fit_is_refused_and_nothing_is_written(options, error, message):
    cache = new_cache("host", rope=kvit.Rope(HEAD_DIM))
    cache.view.k.fill_bytes(0xFF)
    seq = cache.sequence()
    cache.append([seq], rows(), rows())
    before = [pool.numpy().view(np.uint8).copy() for pool in (cache.view.k, cache.view.v)]
    append = kvit.Append(cache.view, rope=kvit.Rope(HEAD_DIM))
    with pytest.raises(error, match=message):
        append(rows() + 1, rows() + 1, cache.view, cache.table([seq]), **options)
    for pool, old in zip((cache.view.k, cache.view.v), before, strict=True):
        np.testing.assert_array_equal(pool.numpy().view(np.uint8), old)


@pytest.mark.parametrize("options", [{"positions": integers(4)}, {"q": rows(8)}], ids=["positions", "q"])
def test_what_needs_a_rope_is_refused_without_one(options):
    cache = new_cache("host")
    seq = cache.sequence()
    cache.append([seq], rows(), rows())
    with pytest.raises(kvit.ShapeError, match="give Append a rope"):
        kvit.Append(cache.view)(rows(), rows(), cache.view, cache.table([seq]), **options)


def test_a_rope_of_other_rows_is_refused():
    cache = new_cache("host")
    with pytest.raises(kvit.ShapeError, match="the rope turns rows of 128 channels; the view's have 64"):
        kvit.Append(cache.view, rope=kvit.Rope(128))
    with pytest.raises(kvit.ShapeError, match="the rope turns rows of 128"):
        new_cache("host", rope=kvit.Rope(128))


def test_a_cache_whose_append_is_refused_keeps_its_pages():
    cache = new_cache("host", rope=kvit.Rope(HEAD_DIM))
    seq, free = cache.sequence(), cache.num_free_pages
    with pytest.raises(kvit.ShapeError, match="q has shape"):
        cache.append([seq], rows(), rows(), q=rows(8, tokens=5))
    assert (len(seq), cache.num_free_pages) == (0, free)


def test_scales_of_float8_that_nobody_may_write_are_read(rng):
    # As JAX's arrays are, and a checkpoint's that was mapped from a file. Pools that may not be written are refused.
    case = Setup(rng, ("float8_e4m3", "float8_e4m3"))
    k, v = case.rows()
    scales = [case.host[f"{side}_params"].copy() for side in "kv"]
    for scale in scales:
        scale.setflags(write=False)
    words = {"layout": case.cache.layout, "kv": "float8_e4m3", "k_scale": scales[0], "v_scale": scales[1]}
    case.view = kvit.CacheView(case.buffers["k"], case.buffers["v"], dtype="bfloat16", **words)
    case.append(k, v)
    reference.append(case.cache, case.table, k, v, COUNTS)
    case.assert_same()
    locked = case.host["k"].copy()
    locked.setflags(write=False)
    case.view = kvit.CacheView(locked, case.buffers["v"], dtype="bfloat16", **words)
    with pytest.raises(kvit.LayoutError, match="view.k is read-only"):
        case.append(k, v)
