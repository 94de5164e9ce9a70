"""A PagedCache whose rows hold K and V (MLA): what any cache does, of rows whose first channels are V.

Chosen: DeepSeek's 576 and 512 channels, which have a kernel of their own; 48 and 32, which a kernel for wider rows
serves; 512 and 512, where K is V and the last 64 channels turn. Pages of 4 tokens, so that sequences end within them.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, FLOAT16, assert_cache_attention, to_device
from support.tolerances import assert_within

SHAPES = {"576x512": (576, 512, 64), "48x32": (48, 32, 16), "512": (512, 512, 64)}  # head_dim, v_dim, what turns


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def make(shape, device, *, pages=24, rope=None, dtype=BFLOAT16, **options):
    return kvit.PagedCache(
        pages, 4, 1, shape[0], v_dim=shape[1], shares_kv=True, rope=rope, dtype=dtype, device=device, **options
    )


def rows_of(rng, shape, count, dtype=BFLOAT16):
    return (rng.standard_normal((count, 1, shape[0])) / 4).astype(dtype)


def held(layer, seq):
    """The rows of a sequence, whose first channels gather gives as v."""
    k, v, _ = layer.gather([seq])
    assert (v.pointer, v.shape, v.strides) == (
        k.pointer,
        (*k.shape[:2], getattr(layer, "view", layer).v_dim),
        k.strides,
    )
    getattr(layer, "cache", layer).check()
    return k.numpy()


def assert_holds(layer, seq, rows):
    np.testing.assert_array_equal(held(layer, seq).view(np.uint16), rows.view(np.uint16))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_attention_reads_the_rows_that_were_appended(rng, device, shape, layout, dtype):
    cache = make(shape, device, layout=layout, dtype=dtype)
    assert cache.nbytes == 24 * 4 * shape[0] * 2  # of one row a token
    a, b = cache.sequence(), cache.sequence()
    counts = [21, 6]
    rows = rows_of(rng, shape, sum(counts), dtype)
    cache.append([a, b], to_device(rows, device), new_tokens=counts)
    a.append(to_device(more := rows_of(rng, shape, 3, dtype), device))
    whole = np.concatenate([rows[:21], more]), rows[21:]
    for seq, own in zip((a, b), whole, strict=True):
        assert_holds(cache, seq, own)
    contents = [(own, own[..., : shape[1]]) for own in whole]
    for heads, counts in ((16, [1, 1]), (3, [5, 2])):
        q = rng.standard_normal((sum(counts), heads, shape[0])).astype(dtype)
        assert_cache_attention(cache, [a, b], contents, q, counts, scale=0.1)
    assert_cache_attention(cache, [a], contents[:1], q[:4], [4], scale=0.1, window=9)


def test_forks_cuts_and_moves_keep_every_token(rng, device, shape):
    cache = make(shape, device)
    a, b = cache.sequence(), cache.sequence()
    rows = rows_of(rng, shape, 24)
    cache.append([a, b], to_device(rows, device), new_tokens=[17, 7])
    twin = a.fork()
    new = rows_of(rng, shape, 2)
    cache.append([a, twin], to_device(new, device))  # one of them copies the page that both have
    wanted = {a: [*rows[:17], new[0]], twin: [*rows[:17], new[1]], b: rows[17:]}
    b.truncate(5)
    wanted[b] = rows[17:22]
    assert cache.defragment(order="sequences") > 0
    swapped = cache.swap_out(twin)
    assert swapped.nbytes == 5 * 4 * shape[0] * 2
    twin.free()
    wanted[back] = wanted.pop(twin) if (back := cache.swap_in(swapped)) else None
    for seq, own in wanted.items():
        assert_holds(cache, seq, np.array(own))
    with pytest.raises(kvit.ShapeError, match="swap it into a cache of the same layers"):
        kvit.PagedCache(24, 4, 1, shape[1], device=device).swap_in(swapped)


@pytest.mark.parametrize("in_parts", [True, False])
def test_the_last_channels_turn_and_queries_with_them(rng, device, shape, in_parts):
    """Rows given whole, and the latent and the rotary part apart, as models compute them: the same bits."""
    rope = kvit.Rope(shape[2], base=100.0, interleaved=True)
    cache = make(shape, device, rope=rope)
    seq = cache.sequence()
    rows, first = rows_of(rng, shape, 30), shape[0] - shape[2]
    rotation = reference.Rotation(rope.steps, rope.interleaved, rope.attention_factor, rope.axes)
    begin = 0
    for count in (19, 11):
        new = rows[begin : begin + count]
        parts = [new[..., first:], new[..., :first]] if in_parts else [new]
        q = rng.standard_normal((count, 4, shape[2])).astype(BFLOAT16)
        queries = to_device(q, device)
        cache.append([seq], *(to_device(part, device) for part in parts), q=queries)
        turned = reference.rotate(q, np.arange(begin, begin + count), rotation)
        np.testing.assert_array_equal(queries.numpy().view(np.uint16), turned.view(np.uint16))
        begin += count
    own = np.concatenate([rows[..., :first], reference.rotate(rows[..., first:], np.arange(30), rotation)], -1)
    assert_holds(cache, seq, own)
    seq.truncate(0)
    cache.append([seq], to_device(own, device), rotate=False)  # turned already
    assert_holds(cache, seq, own)


def test_context_shifts_turn_the_last_channels_back(rng, device, shape):
    rope = kvit.Rope(shape[2], base=100.0)
    cache = make(shape, device, rope=rope)
    seq, rows = cache.sequence(), rows_of(rng, shape, 30)
    cache.append([seq], to_device(rows, device))
    before = held(cache, seq)
    seq.shift(9, keep=2)
    after, first = held(cache, seq), shape[0] - shape[2]
    gone = np.concatenate([before[:2], before[11:]])
    np.testing.assert_array_equal(after[..., :first].view(np.uint16), gone[..., :first].view(np.uint16))
    np.testing.assert_array_equal(after[:2].view(np.uint16), gone[:2].view(np.uint16))
    plain = reference.Rotation(rope.steps, rope.interleaved)
    turned = reference.rotate(before[11:, :, first:], np.full(19, -9), plain)
    np.testing.assert_array_equal(after[2:, :, first:].view(np.uint16), turned.view(np.uint16))


@pytest.mark.parametrize("storage", ["layers", "pages"])
def test_layers_of_shared_rows_beside_others(rng, device, shape, storage):
    """Three layers alike, one whose V has fewer channels than K and memory of its own, and a usual one."""
    specs = [
        kvit.LayerSpec(count=2),
        kvit.LayerSpec(kv_heads=2, head_dim=48, v_dim=32, shares_kv=False),
        kvit.LayerSpec(),
        kvit.LayerSpec(kv_heads=2, head_dim=64, v_dim=64, shares_kv=False, k="int8", v="int4"),
    ]
    cache = make(shape, device, layers=specs, storage=storage)
    assert [layer.shares_kv for layer in cache.layers] == [True, True, False, True, False]
    assert [layer.v_dim for layer in cache.layers] == [shape[1], shape[1], 32, shape[1], 64]
    a, b = cache.sequence(), cache.sequence()
    given = []
    for count in (13, 4):
        rows = [
            [
                rng.standard_normal((2 * count, layer.kv_heads, dim)).astype(BFLOAT16)
                for dim in (layer.head_dim, layer.v_dim)
            ]
            for layer in cache.layers
        ]
        with cache.step([a, b], count) as step:
            for layer, (k, v) in zip(cache.layers, rows, strict=True):
                layer.append(step, to_device(k, device), None if layer.shares_kv else to_device(v, device))
        given.append([[x[:count] for x in pair] for pair in rows])
    b.free()
    cache.defragment()
    seq = cache.swap_in(cache.swap_out(a))
    for layer in cache.layers[:4]:
        k, v = (np.concatenate([step[layer.index][side] for step in given]) for side in range(2))
        q = rng.standard_normal((2, 4, layer.head_dim)).astype(BFLOAT16)
        assert_cache_attention(layer, [seq], [(k, k[..., : shape[1]] if layer.shares_kv else v)], q, [2], scale=0.1)
        if layer.shares_kv:
            assert_holds(layer, seq, k)
    np.testing.assert_array_equal(
        *([x.numpy() for x in cache.layer(4).gather([each])[:2]][1] for each in (a, seq))
    )  # decoded from the same codes
    cache.check()


def test_a_batch_and_all_layers_at_once(rng, device):
    shape = SHAPES["576x512"]
    cache = make(shape, device, layers=2)
    seqs = [cache.sequence(), cache.sequence()]
    rows = [rows_of(rng, shape, 11) for _ in range(2)]
    cache.append(seqs, [to_device(x, device) for x in rows], new_tokens=[8, 3])
    batch = kvit.Batch(cache, seqs)
    new = [rows_of(rng, shape, 2) for _ in range(2)]
    q = rng.standard_normal((2, 16, 576)).astype(BFLOAT16)
    with batch.step():
        for layer in cache.layers:
            layer.append(batch, to_device(new[layer.index], device))
            out = kvit.attention(to_device(q, device), layer, batch, scale=0.1)
            for s, old in enumerate((slice(0, 8), slice(8, 11))):
                k = np.concatenate([rows[layer.index][old], new[layer.index][s : s + 1]])
                state = reference.attention(q[s : s + 1], k, k[..., :512], scale=0.1)
                assert_within(out.numpy()[s : s + 1], state.out, 0.02)
    cache.check()


def test_gather_writes_whole_rows_where_it_is_told_to(rng, device):
    cache, rows = make(SHAPES["48x32"], device), rows_of(rng, SHAPES["48x32"], 9)
    seq = cache.sequence()
    cache.append([seq], to_device(rows, device))
    out = to_device(np.zeros((1, 9, 48), BFLOAT16), device)
    k, v, _ = cache.gather([seq], out=(out, None), layout="HND")
    assert k is out and v.shape == (1, 9, 32)
    np.testing.assert_array_equal(out.numpy()[0].view(np.uint16), rows[:, 0].view(np.uint16))


SHARED = {"v_dim": 512, "shares_kv": True, "device": "host"}


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"v_dim": 584}, kvit.ShapeError, "head_dim 576 and v_dim 584 .* v_dim is at most head_dim"),
        ({"v_dim": 508}, kvit.ShapeError, "both are multiples of 8"),
        ({"v_dim": 0}, kvit.ShapeError, "v_dim is 0; it must be 1 to"),
        ({"k": "int8", "v": "int8"}, kvit.DtypeError, "k is int8 and v int8 in rows that K and V share"),
        ({"v": "int4"}, kvit.DtypeError, "stored as bfloat16 alone: leave k and v out"),
        ({"rope": kvit.Rope(128)}, kvit.ShapeError, "kvit.Rope of the 64 channels behind those of V, or rope=None"),
        ({"v_dim": 576, "rope": kvit.Rope(576)}, kvit.ShapeError, "kvit.Rope of at most 568 channels"),
        ({"layers": [kvit.LayerSpec(v_dim=600)]}, kvit.ShapeError, r"layers\[0\].v_dim 600 of rows that K and V share"),
        ({"layers": [kvit.LayerSpec(k="int8")]}, kvit.DtypeError, r"layers\[0\].k is int8"),
        ({"layers": [kvit.LayerSpec(v_dim=-1)]}, kvit.ShapeError, r"layers\[0\].v_dim is -1"),
        ({"shares_kv": np.ones(2)}, TypeError, "shares_kv is a ndarray; give True or False"),
    ],
)
def test_what_cannot_share_rows_is_refused_by_name(options, error, match):
    with pytest.raises(error, match=match):
        kvit.PagedCache(4, 4, 1, 576, **SHARED | options)


def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(rng):
    cache = make(SHAPES["576x512"], "host")
    seq, rows = cache.sequence(), rows_of(rng, SHAPES["576x512"], 3)
    cache.append([seq], rows)
    free = cache.num_free_pages
    calls = [
        (lambda: cache.append([seq], rows, rows[..., :512]), r"give whole rows \[tokens, 1, 576\] as k, without v"),
        (lambda: cache.append([seq], rows[..., :512]), "v is None; the layer takes whole rows"),
        (lambda: cache.append([seq], rows[..., 512:], rows[:2, :, :512]), "v has shape"),
        (lambda: cache.gather([seq], out=(rows, rows)), r"give \(k, None\) as out"),
        (lambda: cache.gather([seq], out=(rows[..., :512], None)), "k has shape"),
    ]
    for call, match in calls:
        with pytest.raises(kvit.ShapeError, match=match):
            call()
    with pytest.raises(kvit.DtypeError, match="rows that K and V share, which are stored as bfloat16 alone"):
        cache.requantise(k="int8")
    assert len(seq) == 3 and cache.num_free_pages == free
    assert_holds(cache, seq, rows)
    with pytest.raises(kvit.ShapeError, match=r"v is None, and K and V do not share rows here \(shares_kv\)"):
        kvit.PagedCache(4, 4, 1, 64, device="host").sequence().append(rows[..., :64])
