"""Caches of several layers, through the table: what is refused, in which words, and that nothing changes then."""

from ctypes import POINTER, byref, c_int64, c_void_p

import numpy as np
import pytest

from support import capi
from support.capi_layers import LayeredCache, given, handles, numbers, refused, specs


@pytest.fixture
def new(api):
    made = []

    def make(fields, words, device="host"):
        made.append(LayeredCache(api, fields, words, device))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def alike(new, device="host", layers=3, **fields):
    return new({"num_layers": layers, **fields}, {"layers": layers}, device)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"num_layers": -2}, "SHAPE", "layers is -2"),
        ({"num_layers": 5000}, "SHAPE", "layers is 5000; a cache has at most 4096 layers"),
        ({"num_layers": 2, **specs({})}, "ARGUMENT", "num_layers is 2 and num_specs 1; give num_layers 0"),
        ({"num_specs": 2}, "ARGUMENT", "specs is NULL and num_specs 2; give as many specs"),
        ({**specs({}), "num_specs": 0}, "ARGUMENT", "specs is there and num_specs 0"),
        ({**specs({}), "num_specs": -1}, "ARGUMENT", "specs is there and num_specs -1"),
        (specs({}, {"size": 4}), "ARGUMENT", r"kvit_layer_spec.size is 4; set it to sizeof\(kvit_layer_spec\)"),
        (specs({"count": -1}), "SHAPE", r"layers\[0\].count is -1"),
        (specs({}, {"kv_heads": -1}), "SHAPE", r"layers\[1\].kv_heads is -1"),
        (specs({}, {"k_dtype": 77}), "DTYPE", r"specs\[1\].k_dtype has dtype 77"),
        (specs({"v_dtype": capi.HADAMARD}), "DTYPE", r"specs\[0\].v_dtype is 256: KVIT_HADAMARD with no dtype"),
        (specs({"shares_kv": 2}), "ARGUMENT", r"specs\[0\].shares_kv is 2; give 1, -1 for no, or 0"),
        (specs({"is_unturned": 3}), "ARGUMENT", r"specs\[0\].is_unturned is 3; give 0 or 1"),
        (specs({}, {"window_right": -4}), "ARGUMENT", r"specs\[1\].window_right is -4; give how many keys"),
        (specs({"k_dtype": 6, "v_dtype": 6, "k_scale": given(np.zeros(3, np.int32))}), "DTYPE", "int32"),
        ({"shares_kv": 2}, "ARGUMENT", "shares_kv is 2; give 0 or 1"),
        ({"shares_kv": 1, "v_dim": 80}, "SHAPE", "v_dim 80 of rows that K and V share"),
        ({"v_dim": -8}, "SHAPE", "v_dim is -8"),
        ({"storage": 2}, "ARGUMENT", r"storage is 2; give KVIT_STORAGE_LAYERS \(0\) or KVIT_STORAGE_PAGES \(1\)"),
        ({"rope": 12345}, "HANDLE", "is no kvit_rope"),
        (specs({"rope": 12345}), "HANDLE", "is no kvit_rope"),
    ],
)
def test_layers_that_cannot_be_are_refused(new, fields, status, words):
    with pytest.raises(capi.Refused, match=words) as error:
        new(fields, {})
    assert error.value.status == status


def test_a_rope_and_no_rope_at_once_are_refused(api, new):
    rope = api.make("rope_create", capi.options(capi.RopeOptions, head_dim=64))
    with pytest.raises(capi.Refused, match=r"specs\[0\].is_unturned is 1 and specs\[0\].rope is there"):
        new(specs({"rope": rope, "is_unturned": 1}), {})
    api.rope_destroy(rope)


def test_calls_for_one_layer_say_what_to_call_instead(new, rng):
    cache = alike(new)
    a = cache.sequence()
    one = cache.chosen([a])
    k, v = map(given, cache.rows(rng, 0, 1))
    q, out = given(cache.queries(rng, 0, 1)), given(cache.outputs(0, 1)[0])
    with refused("SHAPE", "the cache has 3 layers, and cache_append is for caches of one; call cache_append_layers"):
        cache.api.cache_append(*one, k, v, None, None)
    with refused("SHAPE", "cache_append is for"):
        cache.api.cache_append_rotated(*one, k, v, None, None, None, None)
    with refused("SHAPE", "cache_attention is for caches of one; call layer_attention, or step_attention"):
        cache.api.cache_attention(*one, q, out, None, None, 0.0, 0, None)
    with refused("SHAPE", "cache_gather is for caches of one; call layer_gather"):
        cache.api.cache_gather(*one, k, v, None)
    with refused("SHAPE", "cache_view is for caches of one; call layer_view"):
        cache.api.cache_view(cache.handle, byref(c_void_p()))
    assert cache.length(a) == 0


def test_a_layer_that_is_not_there_is_refused_by_every_call(new, rng):
    cache = alike(new)
    a = cache.sequence()
    cache.append_all(rng, [a], [3])
    one = cache.chosen([a])[1:]
    k, v = map(given, cache.rows(rng, 0, 3))
    q, out = given(cache.queries(rng, 0, 1)), given(cache.outputs(0, 1)[0])
    for layer in (-1, 3, 2**31 - 1):
        words = f"layer {layer} of a cache of 3; give 0 to 2"
        with refused("SHAPE", words):
            cache.api.layer_query(cache.handle, layer, byref(capi.LayerInfo(48)))
        with refused("SHAPE", words):
            cache.api.layer_view(cache.handle, layer, byref(c_void_p()))
        with refused("SHAPE", words):
            cache.api.layer_attention(cache.handle, layer, *one, q, out, None, None, None, None)
        with refused("SHAPE", words):
            cache.api.layer_gather(cache.handle, layer, *one, k, v, 0, None)


def test_wrong_arguments_are_refused_and_nothing_changes(new, rng):
    cache = alike(new)
    a, stranger = cache.sequence(), alike(new)
    other = stranger.mine[stranger.sequence()]
    cache.append_all(rng, [a], [3])
    api, handle, one = cache.api, cache.handle, handles([cache.mine[a]])
    rows = [cache.rows(rng, layer, 2) for layer in range(3)]
    k, v = ((POINTER(capi.Tensor) * 3)(*map(given, side)) for side in zip(*rows, strict=True))
    holed = (POINTER(capi.Tensor) * 3)(given(rows[0][0]), None, given(rows[2][0]))
    with refused("SHAPE", "num_layers is 2, and the cache has 3; give K and V of every layer"):
        api.cache_append_layers(handle, one, 1, k, v, 2, None, None)
    with refused("ARGUMENT", "k is NULL; give the addresses of num_layers tensors"):
        api.cache_append_layers(handle, one, 1, None, v, 3, None, None)
    with refused("ARGUMENT", r"v\[0\] is NULL; give a kvit_tensor"):
        api.cache_append_layers(handle, one, 1, k, None, 3, None, None)
    with refused("ARGUMENT", r"k\[1\] is NULL; give a kvit_tensor"):
        api.cache_append_layers(handle, one, 1, holed, v, 3, None, None)
    with refused("SHAPE", r"new_tokens are \[3\]; they must be one number"):
        api.cache_append_layers(handle, one, 1, k, v, 3, numbers([3]), None)
    with refused("SHAPE", r"seqs\[0\] belongs to another cache"):
        api.cache_append_layers(handle, handles([other]), 1, k, v, 3, None, None)
    with refused("CACHE_FULL", "the cache needs 25 more pages"):
        many = [cache.rows(rng, layer, 100) for layer in range(3)]
        api.cache_append_layers(handle, one, 1, *((POINTER(capi.Tensor) * 3)(*map(given, side))
                                                  for side in zip(*many, strict=True)), 3, None, None)  # fmt: skip
    with refused("ARGUMENT", "pages is NULL; give the address of a int64_t"):
        api.cache_pages_needed(handle, one, 1, None, None)
    with refused("SHAPE", r"new_tokens are \[-1\]"):
        api.cache_pages_needed(handle, one, 1, numbers([-1]), byref(c_int64()))
    with refused("ARGUMENT", "drop is NULL; give how many tokens of each sequence go"):
        api.cache_shift(handle, one, 1, None, None, 0, None)
    with refused("ARGUMENT", "rotate is 2; give 0 or 1"):
        api.cache_shift(handle, one, 1, numbers([1]), None, 2, None)
    with refused("ARGUMENT", "rotate is 1, and the cache has no rope, which would say how keys turn"):
        api.cache_shift(handle, one, 1, numbers([1]), None, 1, None)
    with refused("SHAPE", "cannot keep 2 and drop 2 tokens of a sequence of 3"):
        api.cache_shift(handle, one, 1, numbers([2]), numbers([2]), 0, None)
    with refused("ARGUMENT", "kvit_layer_info.size is 4"):
        api.layer_query(handle, 0, byref(capi.LayerInfo(4)))
    with refused("ARGUMENT", "view is NULL; give the address of a kvit_view"):
        api.layer_view(handle, 0, None)
    with refused("ARGUMENT", "layout is 7"):
        api.layer_gather(handle, 0, one, 1, k[0], v[0], 7, None)
    with refused("ARGUMENT", "v is NULL; give a kvit_tensor"):
        api.layer_gather(handle, 0, one, 1, k[0], None, 0, None)
    assert cache.length(a) == 3
    cache.check()


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"mask": 4}, "ARGUMENT", "mask is 4"),
        ({"window_left": -1}, "ARGUMENT", "window_left is -1; give how many keys a query sees there, or 0 for all"),
        ({"chunk": -3}, "SHAPE", "chunk is -3"),
        ({"softcap": -1.0}, "SHAPE", "softcap is -1.0"),
        ({"sinks": given(np.zeros(3, np.float32))}, "SHAPE", r"sinks has shape \[3\]"),
        ({"size": 8}, "ARGUMENT", "kvit_attention_options.size is 8"),
    ],
)
def test_options_of_attention_that_cannot_be_are_refused(new, rng, fields, status, words):
    cache = alike(new)
    a = cache.sequence()
    cache.append_all(rng, [a], [3])
    q, (out, _) = cache.queries(rng, 0, 1), cache.outputs(0, 1)
    options = byref(capi.AttentionOptions(**{"size": 72, **fields}))
    with refused(status, words):
        cache.api.layer_attention(
            cache.handle, 0, *cache.chosen([a])[1:], given(q), given(out), None, None, options, None
        )
    assert np.isnan(out.numpy().astype(np.float32)).all()
