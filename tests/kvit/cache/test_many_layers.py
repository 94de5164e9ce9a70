"""A PagedCache of many layers: each is what a cache of its own would be, and all have one set of sequences."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, assert_cache_attention, new_tokens, to_device

# Heads, head_dim, codecs and windows that differ, and layers alike that do not follow one another.
MIXED = [
    kvit.LayerSpec(count=2, window=7),
    kvit.LayerSpec(kv_heads=1, head_dim=128, k="int8", v="int4"),
    kvit.LayerSpec(),
    kvit.LayerSpec(k="float8_e4m3", v="float8_e4m3", k_scale=np.array([0.5, 2.0], np.float32)),
    kvit.LayerSpec(window=3),
]
LAYERS = {"one": 1, "three alike": 3, "mixed": MIXED}


@pytest.fixture(params=LAYERS)
def layers(request):
    return LAYERS[request.param]


@pytest.fixture(params=["layers", "pages"])
def storage(request):
    return request.param


def make(layers, device, pages=24, **options):
    if layers is MIXED and device != "host":
        scale = to_device(np.array([0.5, 2.0], np.float32), device)
        layers = [*MIXED[:3], kvit.LayerSpec(k="float8_e4m3", v="float8_e4m3", k_scale=scale), MIXED[4]]
    return kvit.PagedCache(pages, 4, 2, 64, layers=layers, device=device, **options)


def rows_for(rng, cache, count):
    """K and V of `count` tokens in every layer."""
    return [new_tokens(rng, count, layer.kv_heads, layer.head_dim) for layer in cache.layers]


def on_device(rows, device):
    return [[to_device(x[side], device) for x in rows] for side in range(2)]


def step(cache, seqs, counts, rows):
    with cache.step(seqs, counts) as taken:
        for layer, k, v in zip(cache.layers, *on_device(rows, cache.device), strict=True):
            layer.append(taken, k, v)
    cache.check()


def held(cache, seqs):
    """K and V of every layer, as gather gives them."""
    found = [[x.numpy() for x in layer.gather(seqs)[:2]] for layer in cache.layers]
    cache.check()
    return found


def alone(layer):
    """A cache of one layer, as this one is."""
    codecs = [codec.name for codec in layer.view.codecs]
    scales = {}
    for side, name in enumerate(("k", "v")):
        if codecs[side].startswith("float8") and not layer.view.has_unit_scale[side]:
            scales[f"{name}_scale"] = (layer.view.k_params, layer.view.v_params)[side]
    return kvit.PagedCache(
        layer.cache.num_pages, layer.cache.page_size, layer.kv_heads, layer.head_dim, k=codecs[0], v=codecs[1],
        layout=layer.view.layout, rope=layer.rope, device=layer.device, **scales,
    )  # fmt: skip


def assert_same(found, expected):
    for layer, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=f"layer {layer}")


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("rope", [None, kvit.Rope(64)], ids=["no rope", "rope"])
def test_each_layer_is_what_a_cache_of_its_own_would_be_bit_for_bit(rng, device, layers, rope, storage, layout):
    if rope is not None and layers is MIXED:
        layers = [
            kvit.LayerSpec(),
            kvit.LayerSpec(head_dim=128, rope=False),
            kvit.LayerSpec(rope=kvit.Rope(64, base=500.0)),
        ]
    cache = make(layers, device, rope=rope, storage=storage, layout=layout)
    others = [alone(layer) for layer in cache.layers]

    def everywhere(call):
        return [call(cache), *(call(other) for other in others)]

    a, b = (everywhere(lambda c: c.sequence()) for _ in range(2))
    contents = []

    def append(groups, counts):
        rows = rows_for(rng, cache, sum(counts))
        contents.append(rows)
        step(cache, [group[0] for group in groups], counts, rows)
        for i, other in enumerate(others):
            other.append([group[i + 1] for group in groups], *(to_device(x, device) for x in rows[i]), counts)

    append([a, b], [9, 5])
    twins = [seq.fork() for seq in a]
    append([twins, b, a], [1, 4, 2])  # two of three copy or keep a page that is part full
    for seq in b:
        seq.truncate(6)
    everywhere(lambda c: c.defragment(order="sequences"))
    append([b], [3])
    for group in (a, b, twins):
        assert [seq.pages for seq in group] == [group[0].pages] * len(group)
    for i, (layer, other) in enumerate(zip(cache.layers, others, strict=True)):
        seqs, own = [a[0], b[0], twins[0]], [a[i + 1], b[i + 1], twins[i + 1]]
        for x, y in zip(layer.gather(seqs), other.gather(own), strict=True):
            np.testing.assert_array_equal(x.numpy(), y.numpy())
        q = to_device(rng.standard_normal((3, 4, layer.head_dim)).astype(BFLOAT16), device)
        found = kvit.attention(q, layer, seqs)
        expected = kvit.attention(q, other, own, window=layer.window)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    cache.check()


def test_queries_of_a_step_see_the_new_tokens_and_the_layers_window(rng, device):
    cache = make(MIXED, device)
    seqs = [cache.sequence(), cache.sequence()]
    old = rows_for(rng, cache, 12)
    cache.append(seqs, *on_device(old, device), new_tokens=[9, 3])
    new = rows_for(rng, cache, 5)
    q = rng.standard_normal((5, 4, 64)).astype(BFLOAT16)
    with cache.step(seqs, [2, 3]) as taken:
        for layer, k, v in zip(cache.layers, *on_device(new, device), strict=True):
            layer.append(taken, k, v)
        assert [len(seq) for seq in seqs] == [9, 3] and taken.lengths == [11, 6]
        for layer, spans in zip(cache.layers, (7, 7, None, None, None, 3), strict=True):
            assert layer.window == spans
            if layer.head_dim != 64 or layer.view.k.dtype.name != "bfloat16":
                continue
            found = kvit.attention(to_device(q, device), layer, taken)
            bounds = reference.token_ranges([9, 3]), reference.token_ranges([2, 3])
            for s, rows in enumerate(reference.token_ranges([2, 3])):
                k, v = (
                    np.concatenate([old[layer.index][side][bounds[0][s]], new[layer.index][side][bounds[1][s]]])
                    for side in range(2)
                )
                state = reference.attention(q[rows], k, v, window=spans)
                np.testing.assert_allclose(found.numpy()[rows].astype(np.float32), state.out, atol=0.02, rtol=0.02)
            # Queries of the last tokens alone, as the last layer of a model wants them.
            last = kvit.attention(to_device(q[[1, 4]], device), layer, taken, [1, 1])
            np.testing.assert_array_equal(last.numpy(), found.numpy()[[1, 4]])
    assert [len(seq) for seq in seqs] == [11, 6]


def test_queries_of_other_layers_read_a_layer_that_has_none_of_their_own(rng, device):
    # As in models whose upper layers share K and V of a lower one: six layers of queries, two of keys.
    cache = make(2, device)
    seq = cache.sequence()
    rows = rows_for(rng, cache, 6)
    reads = [0, 1, 0, 1, 0, 1]
    with cache.step([seq], 6) as taken:
        for i, source in enumerate(reads):
            layer = cache.layer(source)
            if i == source:
                layer.append(taken, *(to_device(x, device) for x in rows[i]))
            q = rng.standard_normal((6, 4, 64)).astype(BFLOAT16)
            found = kvit.attention(to_device(q, device), layer, taken)
            expected = reference.attention(q, *rows[source]).out
            np.testing.assert_allclose(found.numpy().astype(np.float32), expected, atol=0.02, rtol=0.02)
    q = rng.standard_normal((1, 4, 64)).astype(BFLOAT16)
    for layer in cache.layers:
        assert_cache_attention(layer, [seq], [rows[layer.index]], q, [1])


def test_a_step_that_fails_leaves_every_layer_as_it_was(rng, device, layers):
    cache = make(layers, device)
    seq = cache.sequence()
    step(cache, [seq], 6, rows_for(rng, cache, 6))
    twin = seq.fork()
    before, free = held(cache, [seq, twin]), cache.num_free_pages
    with pytest.raises(ZeroDivisionError), cache.step([seq, twin], 5) as taken:
        k, v = on_device(rows_for(rng, cache, 10), device)
        cache.layer(0).append(taken, k[0], v[0])
        raise ZeroDivisionError
    assert (len(seq), len(twin), cache.num_free_pages, taken.is_open) == (6, 6, free, False)
    assert_same(held(cache, [seq, twin]), before)


def test_a_step_in_which_a_layer_was_left_out_is_refused_and_changes_nothing(rng):
    cache = make(3, "host")
    seq = cache.sequence()
    rows = rows_for(rng, cache, 2)
    with pytest.raises(kvit.KvitError, match="layers 0, 2 got no K and V of its tokens"), cache.step([seq], 2) as taken:
        cache.layer(1).append(taken, *rows[1])
    assert len(seq) == 0 and cache.num_free_pages == 24
    with cache.step([seq], 2):  # whose rows somebody else wrote
        pass
    assert len(seq) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda cache, seq: seq.truncate(1), "the cache was changed"),
        (lambda cache, seq: seq.free(), "the cache was changed"),
        (lambda cache, seq: cache.defragment(), "the cache was changed"),
    ],
    ids=["truncated", "freed", "moved"],
)
def test_a_sequence_that_changes_while_its_step_is_open_is_not_written_any_more(rng, change, match):
    cache = make(2, "host")
    gone, seq = cache.sequence(), cache.sequence()
    for each, count in ((gone, 5), (seq, 3)):
        step(cache, [each], count, rows_for(rng, cache, count))
    rows = rows_for(rng, cache, 2)
    gone.free()  # so that there is something to move
    taken = cache.step([seq], 2)
    cache.layer(0).append(taken, *rows[0])
    change(cache, seq)
    for use in (
        lambda: cache.layer(1).append(taken, *rows[1]),
        lambda: kvit.attention(np.zeros((2, 2, 64), BFLOAT16), cache.layer(0), taken),
        taken.growth.keep,
    ):
        with pytest.raises(kvit.KvitError, match=match):
            use()
    taken.close()
    assert cache.num_free_pages == 24 - len(set() if seq.is_freed else set(seq.pages))


def test_what_a_step_does_not_fit_is_refused_in_words(rng):
    cache, other = make(2, "host"), make(2, "host")
    seq = cache.sequence()
    rows = rows_for(rng, cache, 2)
    q = np.zeros((2, 2, 64), BFLOAT16)
    with cache.step([seq], 2) as taken:
        for match, error, call in [
            (r"the step 2 tokens; give a row for each", kvit.ShapeError,
             lambda: cache.layer(0).append(taken, *new_tokens(rng, 3))),
            ("another cache", kvit.ShapeError, lambda: other.layer(0).append(taken, *rows[0])),
            ("of another cache than the layer", kvit.ShapeError, lambda: kvit.attention(q, other.layer(0), taken)),
            ("q has 3 tokens and the step 2", kvit.ShapeError,
             lambda: kvit.attention(np.zeros((3, 2, 64), BFLOAT16), cache.layer(0), taken)),
            ("give that one, or none", kvit.ShapeError,
             lambda: kvit.attention(q, cache.layer(0), taken, stream=kvit.Stream("host"))),
            ("is in a step that is still open", kvit.KvitError, lambda: cache.step([seq], 1)),
            ("an open step", TypeError, lambda: cache.layer(0).append([seq], *rows[0])),
            ("the cache has 2 layers; say which", kvit.ShapeError, lambda: kvit.attention(q, cache, taken)),
            ("the cache has 2 layers; say which", kvit.ShapeError, lambda: cache.gather([seq])),
            ("the cache has 2 layers; say which", kvit.ShapeError, lambda: cache.view),
            ("layer 2 of a cache of 2", kvit.ShapeError, lambda: cache.layer(2)),
            ("rows for 3 layers and v for 2", kvit.ShapeError, lambda: cache.append([seq], [rows[0][0]] * 3, rows[0])),
        ]:  # fmt: skip
            with pytest.raises(error, match=match):
                call()
        taken.close()
    with pytest.raises(kvit.KvitError, match="the step has ended"):
        cache.layer(0).append(taken, *rows[0])
    assert len(seq) == 0 and cache.num_free_pages == 24


@pytest.mark.parametrize(
    ("error", "match", "layers"),
    [
        (kvit.ShapeError, "layers is 0; it must be 1", 0),
        (kvit.ShapeError, "layers is empty", []),
        (TypeError, r"layers\[1\] is a int; give a kvit.LayerSpec", [kvit.LayerSpec(), 3]),
        (kvit.ShapeError, r"layers\[0\].count is 0", [kvit.LayerSpec(count=0)]),
        (kvit.ShapeError, r"layers\[0\].kv_heads is 1.5", [kvit.LayerSpec(kv_heads=1.5)]),
        (kvit.ShapeError, "head_dim 128 and the cache's rope turns rows of 64", [kvit.LayerSpec(head_dim=128)]),
        (kvit.KernelMissing, "head_dim", [kvit.LayerSpec(head_dim=100, rope=False)]),
        (kvit.ShapeError, "layers is 268435456; a cache has at most 4096 layers", 2**28),
    ],
)
def test_layers_that_cannot_be_are_refused_in_words(error, match, layers):
    with pytest.raises(error, match=match):
        kvit.PagedCache(24, 4, 2, 64, layers=layers, rope=kvit.Rope(64), device="host")


@pytest.mark.parametrize("whole", [False, True], ids=["rows", "pages"])
def test_a_shift_moves_tokens_in_every_layer(rng, device, whole, storage):
    rope = kvit.Rope(64)
    specs = [kvit.LayerSpec(count=2), kvit.LayerSpec(k="int8", v="int4"), kvit.LayerSpec(head_dim=128, rope=False)]
    cache = make(specs, device, rope=rope, storage=storage)
    others = [alone(layer) for layer in cache.layers]
    seqs = [cache.sequence(), cache.sequence()]
    own = [[other.sequence(), other.sequence()] for other in others]
    rows = rows_for(rng, cache, 30)
    step(cache, seqs, [17, 13], rows)
    for i, other in enumerate(others):
        other.append(own[i], *(to_device(x, device) for x in rows[i]), [17, 13])
    drop = [8, 4] if whole else [5, 3]
    cache.shift(seqs, drop, keep=4)
    for i, other in enumerate(others):
        other.shift(own[i], drop, keep=4, rotate=other.rope is not None)
        for x, y in zip(cache.layer(i).gather(seqs), other.gather(own[i]), strict=True):
            np.testing.assert_array_equal(x.numpy(), y.numpy())


def test_all_layers_are_requantised_at_once_and_views_of_before_are_old(rng, device, storage):
    cache = make([kvit.LayerSpec(count=2), kvit.LayerSpec(kv_heads=1)], device, storage=storage)
    seq = cache.sequence()
    rows = rows_for(rng, cache, 11)
    step(cache, [seq], 11, rows)
    layer, nbytes, pages = cache.layer(1), cache.nbytes, seq.pages
    cache.requantise(k="int8", v="int4")
    assert cache.nbytes < nbytes and seq.pages == pages
    assert [codec.name for codec in layer.view.codecs] == ["int8", "int4"]  # a layer knows where it lies now
    expected = [
        [
            codec.decode(*codec.encode(x), BFLOAT16)
            for x, codec in zip(pair, map(reference.codec_of, ("int8", "int4")), strict=True)
        ]
        for pair in rows
    ]
    assert_same(held(cache, [seq]), expected)
    more = rows_for(rng, cache, 1)
    step(cache, [seq], 1, more)
    assert len(seq) == 12


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_a_page_of_all_layers_is_one_piece_of_memory_where_it_is_to_be(layout):
    cache = kvit.PagedCache(6, 4, 2, 64, layers=3, k="int8", v="int4", layout=layout, storage="pages", device="host")
    page = 4 * 2 * 64  # bytes of K of a layer
    places = [layer.view.k.pointer for layer in cache.layers]
    assert np.diff(places).tolist() == [page, page]
    assert {layer.view.packed.pools[0][1] for layer in cache.layers} == {3 * page}
    apart = kvit.PagedCache(6, 4, 2, 64, layers=3, layout=layout, device="host")
    assert np.diff([layer.view.k.pointer for layer in apart.layers]).tolist() == [6 * 2 * page] * 2
    with pytest.raises(ValueError, match='storage is .blocks.; give "layers" or "pages"'):
        kvit.PagedCache(6, 4, 2, 64, layers=3, storage="blocks", device="host")


def test_a_copy_on_write_copies_all_layers_alike_in_one_launch(rng, monkeypatch):
    from kvit.cache import layer_group

    launched = []
    monkeypatch.setattr(layer_group, "launch_all", lambda launches, *_: launched.append(len(launches)))
    for layers, count in ((30, 1), ([kvit.LayerSpec(count=20), kvit.LayerSpec(count=10, kv_heads=1)], 2)):
        cache = make(layers, "host")
        seq = cache.sequence()
        step(cache, [seq], 3, rows_for(rng, cache, 3))
        seq.fork()
        twin = seq.fork()
        cache.step([twin], 1).close()
        assert launched.pop() == count


def test_a_cache_of_layers_says_what_it_is():
    cache = make(MIXED, "host")
    assert cache.num_layers == 6 and len(cache.groups) == 3
    assert repr(cache).startswith("PagedCache(6 layers, 24 pages of 4 tokens, 24 free, 2 KV heads, head_dim 64, ")
    assert "and 1 KV heads, head_dim 128, " in repr(cache)
    assert repr(cache.layer(0)).startswith("CacheLayer(0 of 6, CacheView(24 pages") and "window 7" in repr(
        cache.layer(0)
    )
    each = [kvit.PagedCache(24, 4, 2, 64, device="host").nbytes]
    assert cache.nbytes == sum(layer.view.nbytes for layer in cache.layers) > 4 * each[0]
    step = cache.step([cache.sequence()], 3)
    assert repr(step) == "Step(3 new tokens of 1 sequences, 0 of 6 layers written)"
    step.close()
    assert repr(step) == "Step(3 new tokens of 1 sequences, over)"
