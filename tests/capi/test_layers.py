"""Caches of several layers, through the table: each call leaves the bits that the call of Python leaves.

Chosen: pages of 4 tokens, so that sequences of 10, 3 and 5 end within them; three layers alike, whose pools lie side by
side, and layers that differ in all that a kvit_layer_spec says.
"""

from ctypes import byref, c_int64, c_void_p

import numpy as np
import pytest

import kvit
from kvit import reference
from support import capi, tolerances
from support.caches import BFLOAT16, to_device
from support.capi_layers import HEAD_DIM, KV_HEADS, PAGES, LayeredCache, given, handles, numbers, same, specs

PAGE_BYTES = 4 * KV_HEADS * HEAD_DIM * 2
LAYER_BYTES = 2 * PAGES * PAGE_BYTES  # in 16 bits, K and V


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


MIXED = (
    specs(
        {"count": 2, "window_left": 4},
        {"kv_heads": 1, "head_dim": 128, "k_dtype": 4, "v_dtype": 5},  # int8, int4
        {"window_left": 3, "window_right": 2, "k_dtype": 5 | capi.HADAMARD, "v_dtype": 5 | capi.HADAMARD},
    ),
    {
        "layers": [
            kvit.LayerSpec(count=2, window=4),
            kvit.LayerSpec(kv_heads=1, head_dim=128, k="int8", v="int4"),
            kvit.LayerSpec(window=(3, 2), k="int4_hadamard", v="int4_hadamard"),
        ]
    },
)
LATENT = (
    {"kv_heads": 1, "head_dim": 48, "v_dim": 32, "shares_kv": 1, "num_layers": 2},
    {"kv_heads": 1, "head_dim": 48, "v_dim": 32, "shares_kv": True, "layers": 2},
)
LATENT_AND_PLAIN = (
    {
        **specs({}, {"shares_kv": -1, "head_dim": 64}, {"shares_kv": 1, "head_dim": 64, "v_dim": 48}),
        **{"kv_heads": 1, "head_dim": 48, "v_dim": 32, "shares_kv": 1},
    },
    {
        "layers": [
            kvit.LayerSpec(),
            kvit.LayerSpec(shares_kv=False, head_dim=64),
            kvit.LayerSpec(shares_kv=True, head_dim=64, v_dim=48),
        ],
        **{"kv_heads": 1, "head_dim": 48, "v_dim": 32, "shares_kv": True},
    },
)
CACHES = {
    "alike": ({"num_layers": 3}, {"layers": 3}),
    "by page": (
        {"num_layers": 3, "storage": 1, "layout": capi.NHD},
        {"layers": 3, "storage": "pages", "layout": "NHD"},
    ),
    "one": ({"num_layers": 1}, {"layers": 1}),
    "mixed": MIXED,
    "latent": LATENT,
    "latent and plain": LATENT_AND_PLAIN,
}


@pytest.mark.parametrize("kind", CACHES)
def test_all_layers_grow_fork_and_shrink_together(new, rng, device, kind):
    cache = new(*CACHES[kind], device)
    a, b = cache.sequence(), cache.sequence()
    cache.append_all(rng, [a, b], [10, 3])
    c = cache.fork(a)
    cache.check()
    cache.append_all(rng, [a, c], [1, 1])  # the page that they share is copied in all layers
    cache.check()
    cache.api.sequence_truncate(cache.mine[a], 5)
    cache.theirs[a].truncate(5)
    cache.append_all(rng, [a, b, c], [0, 2, 4])
    cache.check()
    for layer in range(cache.python.num_layers):
        cache.attend(rng, layer, [a, b, c])


def test_a_layer_is_gathered_in_either_order_of_axes(new, rng, device):
    cache = alike(new, device)
    a = cache.sequence()
    cache.append_all(rng, [a], [7])
    k, v = cache.held(2, a)
    outs = [to_device(np.zeros((KV_HEADS, 7, HEAD_DIM), BFLOAT16), device) for _ in range(2)]
    one = cache.chosen([a])[1:]
    cache.api.layer_gather(cache.handle, 2, *one, given(outs[0]), given(outs[1]), capi.HND, None)
    for out, rows in zip(outs, (k, v), strict=True):
        same(np.ascontiguousarray(out.numpy().transpose(1, 0, 2)), rows)


def test_attention_to_a_layer_is_that_of_the_reference(new, rng, device):
    # Of both kinds of layers; the window of the first is its own, and the call's where that names one.
    words = [kvit.LayerSpec(window=4), kvit.LayerSpec(kv_heads=1)]
    cache = new(specs({"window_left": 4}, {"kv_heads": 1}), {"layers": words}, device)
    a = cache.sequence()
    cache.append_all(rng, [a], [11])
    for layer, fields, words in (
        (0, {}, {"window": (4, None)}),
        (0, {"window_left": 7}, {"window": (7, None)}),
        (1, {}, {}),
        (1, {"mask": 1, "scale": 0.25, "softcap": 5.0}, {"causal": False, "scale": 0.25, "softcap": 5.0}),
    ):
        k, v = cache.held(layer, a)
        q = cache.queries(rng, layer, 2)
        out, lse = cache.outputs(layer, 2)
        cache.api.layer_attention(
            cache.handle, layer, handles([cache.mine[a]]), 1, given(q), given(out), given(lse), None,
            byref(capi.options(capi.AttentionOptions, **fields)), None,
        )  # fmt: skip
        state = reference.attention(q.numpy(), k, v, **words)
        magnitude = reference.attention(q.numpy(), k, np.abs(v), **words).out
        tolerances.assert_within(out.numpy(), state.out, tolerances.attention_bound(magnitude, BFLOAT16))
        tolerances.assert_within(lse.numpy(), state.lse, tolerances.LSE)


def test_options_of_attention_are_pythons(new, rng, device):
    cache = alike(new, device)
    a, b = cache.sequence(), cache.sequence()
    cache.append_all(rng, [a, b], [9, 6])
    sinks, alibi = (to_device(rng.standard_normal(8).astype(np.float32), device) for _ in range(2))
    temperature = to_device(rng.uniform(0.5, 2, 4).astype(np.float32), device)
    spans = to_device(np.array([[0, 3], [2, 6]], np.int32), device)
    for fields, words in (
        ({"mask": 1}, {"causal": False}),
        ({"chunk": 4}, {"chunk": 4}),
        ({"window_left": 3, "window_right": 1, "mask": 1}, {"window": (3, 1), "causal": False}),
        ({"sinks": given(sinks)}, {"sinks": sinks}),
        ({"alibi": given(alibi), "temperature": given(temperature)}, {"alibi": alibi, "temperature": temperature}),
        ({"spans": given(spans), "window_left": 2}, {"spans": spans, "window": 2}),
    ):
        options = byref(capi.options(capi.AttentionOptions, **fields))
        plain = cache.attend(np.random.default_rng(3), 1, [a, b])
        found = cache.attend(np.random.default_rng(3), 1, [a, b], options, **words)  # of the same queries
        assert fields == {"mask": 1} or (found.view(np.uint16) != plain.view(np.uint16)).any()


def test_a_cache_and_its_layers_say_what_they_are(new):
    cache = new(*MIXED)
    assert (cache.info().num_layers, cache.info().bytes) == (4, cache.python.nbytes)
    assert (cache.info().k_dtype, cache.info().v_dtype, cache.info().kv_heads, cache.info().head_dim) == (0, 0, 2, 64)
    found = [cache.layer_info(i) for i in range(4)]
    assert [(i.k_dtype, i.v_dtype) for i in found] == [(3, 3), (3, 3), (4, 5), (0x105, 0x105)]
    assert [(i.kv_heads, i.head_dim, i.v_dim) for i in found] == [(2, 64, 64), (2, 64, 64), (1, 128, 128), (2, 64, 64)]
    assert [(i.window_left, i.window_right) for i in found] == [(4, 0), (4, 0), (0, 0), (3, 2)]
    assert {(i.dtype, i.shares_kv, i.has_rope) for i in found} == {(3, 0, 0)}
    plain = alike(new)
    assert (plain.info().num_layers, plain.info().k_dtype, plain.info().bytes) == (3, 3, 3 * LAYER_BYTES)
    latent = new(*LATENT).layer_info(1)
    assert (latent.head_dim, latent.v_dim, latent.shares_kv) == (48, 32, 1)


def test_scales_and_ropes_are_those_of_the_spec(api, new, rng):
    # float8 with a scale of its own, keys that turn by another rope, and keys that do not turn.
    scale = np.array([0.02, 0.03], np.float32)
    rope = api.make("rope_create", capi.options(capi.RopeOptions, head_dim=64, base=500000.0))
    own = api.make("rope_create", capi.options(capi.RopeOptions, head_dim=64))
    fields = specs({"k_dtype": 6, "v_dtype": 6, "k_scale": given(scale), "v_scale": given(scale)}, {"rope": own},
                   {"is_unturned": 1})  # fmt: skip
    words = [
        kvit.LayerSpec(k="float8_e4m3", v="float8_e4m3", k_scale=scale, v_scale=scale),
        kvit.LayerSpec(rope=kvit.Rope(64)),
        kvit.LayerSpec(rope=False),
    ]
    cache = new({**fields, "rope": rope}, {"layers": words, "rope": kvit.Rope(64, base=500000.0)})
    a = cache.sequence()
    cache.append_all(rng, [a], [6])
    cache.check()
    assert [cache.layer_info(i).has_rope for i in range(3)] == [1, 1, 0]
    for handle in (rope, own):
        api.rope_destroy(handle)


def test_specs_that_have_the_same_scale_are_layers_alike(api, new):
    scale = given(np.array([0.02, 0.03], np.float32))
    field = {"k_dtype": 6, "v_dtype": 6, "k_scale": scale, "v_scale": scale}
    array = specs(field, field)
    cache = capi.options(capi.CacheOptions, pages=4, page_size=4, kv_heads=2, head_dim=64, device_type=1, **array)
    made = []
    plain, kvit.PagedCache = kvit.PagedCache, lambda *args, **words: made.append(words) or plain(*args, **words)
    try:
        api.cache_destroy(api.make("cache_create", cache))
    finally:
        kvit.PagedCache = plain
    first, second = made[0]["layers"]
    assert first.k_scale is second.k_scale is first.v_scale


def test_pages_that_growth_needs_are_counted_and_not_taken(new, rng):
    cache = alike(new)
    a, b = cache.sequence(), cache.sequence()
    cache.append_all(rng, [a, b], [10, 4])
    c = cache.fork(a)
    for indices, counts in (([a], None), ([b], None), ([a, c], None), ([a, b, c], [1, 9, 12]), ([a], [0]), ([], None)):
        pages = c_int64(-1)
        cache.api.cache_pages_needed(*cache.chosen(indices), numbers(counts), byref(pages))
        assert pages.value == cache.python.pages_needed([cache.theirs[i] for i in indices], counts or 1)
    cache.check()


@pytest.mark.parametrize("rotate", [1, 0])
def test_tokens_behind_dropped_ones_move_in_all_layers(api, new, rng, device, rotate):
    rope = api.make("rope_create", capi.options(capi.RopeOptions, head_dim=64))
    fields = specs({"count": 2}, {"is_unturned": 1, "kv_heads": 1})
    words = {"layers": [kvit.LayerSpec(count=2), kvit.LayerSpec(rope=False, kv_heads=1)], "rope": kvit.Rope(64)}
    cache = new({**fields, "rope": rope}, words, device)
    a, b = cache.sequence(), cache.sequence()
    cache.append_all(rng, [a, b], [18, 7])
    before = cache.held(2, a)[0]
    cache.api.cache_shift(*cache.chosen([a, b]), numbers([5, 2]), numbers([4, 0]), rotate, None)
    cache.python.shift([cache.theirs[i] for i in (a, b)], [5, 2], keep=[4, 0], rotate=bool(rotate))
    assert (cache.length(a), cache.length(b)) == (13, 5)
    same(cache.held(2, a)[0], before[[*range(4), *range(9, 18)]])
    cache.check()
    cache.api.cache_shift(*cache.chosen([b]), numbers([1]), None, rotate, None)  # keep is 0 by default
    cache.python.shift([cache.theirs[b]], 1, rotate=bool(rotate))
    cache.check()
    api.rope_destroy(rope)


@pytest.mark.parametrize("kind", ["mixed", "latent"])
def test_operations_read_the_view_of_a_layer(new, rng, device, kind):
    cache = new(*CACHES[kind], device)
    a, b = cache.sequence(), cache.sequence()
    cache.append_all(rng, [a, b], [10, 3])
    api, table = cache.api, capi.table_of(cache.python.table([cache.theirs[i] for i in (a, b)]))
    for layer in range(cache.python.num_layers):
        view = c_void_p()
        api.layer_view(cache.handle, layer, byref(view))
        info, theirs = api.ask("view_query", view, capi.ViewInfo), cache.python.layer(layer)
        assert (info.kv_heads, info.head_dim, info.v_dim) == (theirs.kv_heads, theirs.head_dim, theirs.v_dim)
        op = api.op(view, query_heads=8)
        assert api.ask("op_query", op, capi.OpInfo).v_dim == theirs.v_dim
        q = cache.queries(rng, layer, 2)
        out, _ = cache.outputs(layer, 2)
        api.attention(op, view, byref(table), given(q), given(out), None, None, None)
        api.op_check(op, None, None)
        same(out.numpy(), kvit.Attention(theirs.view, 8)(q, theirs.view, cache.python.table(cache.theirs)).numpy())
        for kind_of, handle in (("op", op), ("view", view)):
            getattr(api, f"{kind_of}_destroy")(handle)


def test_rows_of_k_and_v_of_different_widths_are_a_view(api, rng, device):
    k, v = (to_device(np.zeros((3, 4, 2, dim), BFLOAT16), device) for dim in (64, 32))
    view = api.make("view_create", capi.options(capi.ViewOptions, k=given(k), v=given(v)))
    info = api.ask("view_query", view, capi.ViewInfo)
    assert (info.head_dim, info.v_dim) == (64, 32)
    api.view_destroy(view)


def test_answers_of_older_callers_are_as_long_as_they_were(new, api):
    cache = alike(new)
    for size, kind, query, handle in (
        (64, capi.CacheInfo, "cache_query", cache.handle),
        (48, capi.ViewInfo, "view_query", api.make("cache_view", alike(new, layers=1).handle)),
    ):
        info = kind(size)
        info.reserved = 77
        last = kind._fields_[-2][0]
        setattr(info, last, 99)
        getattr(api, query)(handle, byref(info))
        assert (info.size, getattr(info, last), info.reserved, info.kv_heads) == (size, 99, 77, 2)
        with pytest.raises(capi.Refused, match=r"\.size is 52; set it to sizeof\(kvit_"):
            getattr(api, query)(handle, byref(kind(52)))
    api.view_destroy(handle)


@pytest.mark.parametrize("size", [72, 80])
def test_options_of_older_callers_make_caches_of_one_layer(api, size):
    # Version 1 to 4 ended before the rope, and 5 behind it: what lies behind that is not theirs.
    options = capi.options(capi.CacheOptions, pages=2, page_size=4, kv_heads=2, head_dim=64, device_type=1)
    assert (capi.CacheOptions.rope.offset, capi.CacheOptions.specs.offset) == (72, 80)
    options.size, options.num_layers, options.num_specs, options.storage = size, 5, -3, 9
    cache = api.make("cache_create", options)
    assert api.ask("cache_query", cache, capi.CacheInfo).num_layers == 1
    api.cache_destroy(cache)
