"""Pages in vLLM's layout, against its description in numpy; and what cannot be such pages, which is refused."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, poisoned, to_device
from support.stored import full_stored

K, V = np.zeros((3, 2, 8, 4, 8), BFLOAT16), np.zeros((3, 2, 64, 4), BFLOAT16)


def vllm_view(k, v, kv, device, params=(None, None), **shape):
    """VllmPages of poison that fit rows k, v [pages, page_size, heads, bytes]."""
    pages, page_size, heads, _ = k.shape
    sides = []
    for rows, name, is_k in zip((k, v), kv, (True, False), strict=True):
        dtype = BFLOAT16 if name == "bfloat16" else np.dtype(np.uint8)
        elements = rows.shape[3] // dtype.itemsize
        x = 16 // dtype.itemsize
        lengths = (elements // x, page_size, x) if is_k else (elements, page_size)
        sides.append(to_device(poisoned((pages, heads, *lengths), dtype), device))
    extras = {f"{side}_params": given for side, given in zip("kv", params, strict=True) if given is not None}
    return sides, kvit.VllmPages(*sides, kv=kv, dtype="bfloat16", **extras)


@pytest.mark.parametrize("page_size", [1, 5, 33])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("pair", [("bfloat16", "bfloat16"), ("int8", "int4"), ("int4", "bfloat16")], ids=str)
@pytest.mark.parametrize("head_dim", [64, 320])  # 640 bytes are more than a piece of 512
def test_pages_go_to_vllms_layout_and_come_back(rng, device, head_dim, pair, layout, page_size):
    shape = {"pages": 3, "page_size": page_size, "layout": layout, "head_dim": head_dim}
    source = full_stored(rng, pair, BFLOAT16, device, **shape)
    k, v = (np.ascontiguousarray(pool).view(np.uint8) for pool in source.cache.pools())
    params = [
        None if pool.params is None else to_device(poisoned((3, 2, page_size, 2), BFLOAT16), device)
        for pool in source.cache.stores()
    ]
    sides, vllm = vllm_view(k, v, pair, device, params)
    there = kvit.ConvertPages(source.view, vllm)
    there(source.view, vllm)
    there.check()
    expected = reference.to_vllm(k, v, 2 if pair[1] == "bfloat16" else 1)
    for got, want in zip(sides, expected, strict=True):
        np.testing.assert_array_equal(got.numpy().view(np.uint8).reshape(want.shape), want)
    for ours, theirs in zip(reference.from_vllm(*expected), (k, v), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    back = full_stored(rng, pair, BFLOAT16, device, **shape)
    kvit.ConvertPages(vllm, back.view)(vllm, back.view)
    for name, array in source.host.items():
        np.testing.assert_array_equal(back.buffers[name].numpy().view(np.uint8), array.view(np.uint8), err_msg=name)


def test_float8_in_vllms_layout_keeps_its_bytes(rng, device):
    pair, scale = ("float8_e4m3", "float8_e4m3"), np.array([0.5, 2], np.float32)
    source = full_stored(rng, pair, BFLOAT16, device, pages=2, page_size=4, scales=(scale, scale))
    k, v = (np.ascontiguousarray(pool).view(np.uint8) for pool in source.cache.pools())
    split = to_device(np.zeros((2, 2, 4, 4, 16), np.uint8), device)
    turned = to_device(np.zeros((2, 2, 64, 4), np.uint8), device)
    scales = {f"{side}_scale": source.buffers[f"{side}_params"] for side in "kv"}
    vllm = kvit.VllmPages(split, turned, kv="float8_e4m3", dtype="bfloat16", **scales)
    kvit.ConvertPages(source.view, vllm)(source.view, vllm)
    for got, want in zip((split, turned), reference.to_vllm(k, v, 1), strict=True):
        np.testing.assert_array_equal(got.numpy().reshape(want.shape), want)


def test_vllms_first_words_lie_where_vllm_says(device):
    # K [pages, heads, head_dim / x, page_size, x], V [pages, heads, head_dim, page_size]: channel 9 of token 1, head 1.
    rows = np.zeros((1, 2, 2, 64), np.uint16)
    rows[0, 1, 1, 9] = 0x1234
    source = kvit.CacheView(*(to_device(rows, device) for _ in range(2)), kv="bfloat16")
    split, turned = (to_device(np.zeros(shape, np.uint16), device) for shape in ((1, 2, 8, 2, 8), (1, 2, 64, 2)))
    vllm = kvit.VllmPages(split, turned, kv="bfloat16")
    kvit.ConvertPages(source, vllm)(source, vllm)
    assert split.numpy()[0, 1, 1, 1, 1] == 0x1234 and np.count_nonzero(split.numpy()) == 1
    assert turned.numpy()[0, 1, 9, 1] == 0x1234 and np.count_nonzero(turned.numpy()) == 1


@pytest.mark.parametrize(
    ("error", "match", "k", "v", "options"),
    [
        (kvit.ShapeError, r"k has shape \[3, 2, 16, 4, 4\]; .*x = 8", K.reshape(3, 2, 16, 4, 4), V, {}),
        (kvit.ShapeError, r"v has shape \[3, 2, 4, 64\].*units = 64", K, V.swapaxes(2, 3).copy(), {}),
        (kvit.LayoutError, "k has channels", K[..., ::-1], V, {}),
        (kvit.ShapeError, "k is int8 and needs k_params", np.zeros((3, 2, 4, 4, 16), np.uint8), V, {}),
        (kvit.DtypeError, "v is float16; it must be bfloat16", K, V.astype(np.float16), {}),
    ],
    ids=["x", "v", "strides", "params", "dtype"],
)
def test_memory_that_is_not_vllms_is_refused(error, match, k, v, options):
    with pytest.raises(error, match=match):
        kvit.VllmPages(k, v, **options)


def test_operations_on_rows_say_that_vllms_pages_must_be_converted():
    pages, view = (
        kvit.VllmPages(K, V),
        kvit.CacheView(np.zeros((3, 4, 2, 64), BFLOAT16), np.zeros((3, 4, 2, 64), BFLOAT16)),
    )
    table = kvit.PageTable(np.zeros((1, 3), np.int32), lengths=np.ones(1, np.int32))
    rows = np.zeros((1, 2, 64), BFLOAT16)
    for call in (
        lambda: kvit.Append(view)(rows, rows, pages, table),
        lambda: kvit.Attention(view, 2)(rows, pages, table),
        lambda: kvit.CopyPages(view)(pages, np.zeros(1, np.int32), np.ones(1, np.int32)),
    ):
        with pytest.raises(TypeError, match=r"VllmPages.* give a kvit.CacheView"):
            call()


def test_codec_and_vllms_layout_change_one_after_the_other():
    params = np.zeros((3, 4, 2, 2), BFLOAT16)
    narrow = kvit.CacheView(
        *(np.zeros((3, 4, 2, 64), np.uint8) for _ in range(2)), kv="int8", k_params=params, v_params=params.copy()
    )
    with pytest.raises(kvit.LayoutError, match="layout to NHD or HND in one ConvertPages and the codec in another"):
        kvit.ConvertPages(kvit.VllmPages(K, V), narrow)
