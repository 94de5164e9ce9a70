"""Rows of any multiple of 8 channels, of K and V alike or not: no kernel is built for most, wider ones serve them.

Chosen: every width that a kernel serves once; widths just above one kernel's and just below the next one's, and those
of models (72, 80, 96, 112, 120, 160, 192) for everything else. Memory beside the rows is NaN.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import COUNTS, LENGTHS, Setup, rotation_of
from support.caches import BFLOAT16, FLOAT16, make_case
from support.modified import assert_modified, attend, branches, poison_unseen
from support.quantised import Quantised
from support.tolerances import assert_within

MODELS = [72, 80, 96, 112, 120, 160, 192]
OF_BYTES = [80, 96, 112, 160, 192, 240]  # rows in 8 bits begin at multiples of 16 bytes
OF_NIBBLES = [96, 160, 192, 224]


def queries_of(case, rng, counts, query_heads):
    return case.queries(rng, sum(counts), query_heads)


@pytest.mark.parametrize("head_dim", range(8, 257, 8))
def test_every_width(rng, device, head_dim):
    case = make_case(rng, [37, 1, 0, 20], head_dim=head_dim, device=device, storage="padded")
    counts = [2, 1, 0, 5]
    assert_modified(case, queries_of(case, rng, counts, 8), counts)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("page_size", [1, 5, 16, 64])
@pytest.mark.parametrize("head_dim", [72, 136, 264, 504])
def test_pages_and_layouts(rng, device, head_dim, page_size, layout, dtype):
    lengths, counts = [70, 5], [3, 1]
    case = make_case(
        rng, lengths, head_dim=head_dim, page_size=page_size, layout=layout, dtype=dtype, device=device, table="ragged"
    )
    assert_modified(case, queries_of(case, rng, counts, 4), counts)


@pytest.mark.parametrize("group", [1, 3, 5, 7, 10, 12, 24, 128])
@pytest.mark.parametrize("head_dim", [96, 512])
def test_groups(rng, device, group, head_dim):
    case = make_case(rng, [37, 6], kv_heads=1, head_dim=head_dim, device=device)
    assert_modified(case, queries_of(case, rng, [1, 1], group), [1, 1])


@pytest.mark.parametrize("dims", [(192, 128), (128, 192), (96, 64), (64, 96), (8, 256), (512, 256), (40, 512)], ids=str)
def test_values_of_another_width_than_keys(rng, device, dims):
    case = make_case(rng, [37, 20], head_dim=dims[0], v_dim=dims[1], device=device, storage="padded")
    out, _ = assert_modified(case, queries_of(case, rng, [4, 1], 8), [4, 1])
    assert out.shape[-1] == dims[1]


@pytest.mark.parametrize("head_dim", [80, 192])
def test_options_go_together_with_any_width(rng, device, head_dim):
    counts = [9, 2, 20]
    case = make_case(rng, [90, 2, 64], head_dim=head_dim, page_size=8, device=device)
    options = {"window": (17, 3), "softcap": 5.0, "sinks": rng.standard_normal(8), "alibi": rng.random(8)}
    assert poison_unseen(case, counts, window=(17, 3)) > 0
    assert_modified(case, queries_of(case, rng, counts, 8), counts, **options)


def test_a_tree_over_rows_of_80_channels(rng, device):
    counts = [7, 70]
    case = make_case(rng, [30, 90], head_dim=80, device=device)
    tree = np.concatenate([branches(rng, count, 2) for count in counts])
    assert_modified(case, queries_of(case, rng, counts, 4), counts, tree=tree)


@pytest.mark.parametrize("head_dim", [96, 512])
def test_splits_give_the_bits_of_the_sequence_alone(rng, device, head_dim):
    both = make_case(rng, [300, 77], head_dim=head_dim, device=device)
    q = both.queries(rng, 2, 8)
    outs = []
    for case, rows in ((both, slice(0, 2)), (alone(both), slice(0, 1))):
        out, _ = attend(case, q[rows], [1] * len(q[rows]), split_tokens=128)
        outs.append(out[0])
    np.testing.assert_array_equal(*(out.view(np.uint16) for out in outs))


def alone(case):
    """The same cache, and its first sequence alone."""
    table = reference.Table(case.table.pages[:1], case.table.lengths[:1])
    pages = kvit.Buffer.from_numpy(table.pages[0][None], case.device)
    lengths = kvit.Buffer.from_numpy(np.array(table.lengths, np.int32), case.device)
    return type(case)(case.cache, table, case.view, kvit.PageTable(pages, lengths=lengths), case.buffers, case.device)


@pytest.mark.parametrize(
    "pair, head_dim",
    [
        *((pair, dim) for pair in [("int8", "int8"), ("float8_e4m3", "float8_e4m3")] for dim in OF_BYTES),
        *((("int4", "int4"), dim) for dim in OF_NIBBLES),
    ],
    ids=str,
)
def test_codes(rng, device, pair, head_dim):
    case = Quantised(pair, [37, 3, 20], head_dim=head_dim, device=device, rng=rng)
    case.append(rng)
    q, counts = rng.standard_normal((6, 8, head_dim)).astype(BFLOAT16), [2, 3, 1]
    out, _ = attend(case, q, counts)
    state = reference.paged_attention(q, case.cache, case.table, counts)
    assert_within(out, state.out, case.bound(q, counts))


@pytest.mark.parametrize("pair", [(None, None), ("int8", "int8"), ("float8_e4m3", "float8_e4m3")], ids=str)
@pytest.mark.parametrize("head_dim", OF_BYTES)
def test_append_and_gather_have_the_references_bits(rng, device, head_dim, pair):
    setup = Setup(rng, pair, head_dim=head_dim, device=device)
    k, v = setup.rows()
    rope = kvit.Rope(head_dim, rotary_dim=head_dim // 32 * 16)
    setup.append(k, v, rope=rope)
    reference.append(setup.cache, setup.table, k, v, COUNTS, rotation=rotation_of(rope))
    setup.assert_same()
    gather = kvit.Gather(setup.view)
    got = [setup.up(np.zeros_like(rows)) for rows in (k, v)]
    indptr = setup.up(np.cumsum([0, *COUNTS]).astype(np.int32))
    gather(setup.view, setup.page_table, query_indptr=indptr, out=got)
    gather.check()
    for side, store in zip(got, setup.cache.stores(), strict=True):
        want = [
            store.read(*(place[-count:] for place in setup.table.places(setup.cache, i)), BFLOAT16)
            for i, count in enumerate(COUNTS)
            if count
        ]
        np.testing.assert_array_equal(side.numpy().view(np.uint16), np.concatenate(want).view(np.uint16))


@pytest.mark.parametrize("head_dim", [16, 24, 80, 96, 160, 512])
def test_queries_turn_and_rows_are_normalised(rng, device, head_dim):
    setup = Setup(rng, (None, None), head_dim=head_dim, device=device)
    k, v = setup.rows()
    q = setup.random(sum(COUNTS), 6, head_dim)
    rope, weight = kvit.Rope(head_dim, rotary_dim=16), setup.random(head_dim)
    rotation, norm = rotation_of(rope), reference.RowNorm(weight, 1e-5)
    reference.append(setup.cache, setup.table, k, v, COUNTS, rotation=rotation, k_norm=norm)
    positions = [length - count + i for length, count in zip(LENGTHS, COUNTS, strict=True) for i in range(count)]
    made_with = {"k_norm": weight, "q_norm": weight, "norm_eps": 1e-5}
    queries = setup.up(q)
    setup.append(k, v, rope=rope, q=queries, made_with=made_with)
    setup.assert_same()
    turned = reference.rotate(q, positions, rotation, None, norm)
    np.testing.assert_array_equal(queries.numpy().view(np.uint16), turned.view(np.uint16))


@pytest.mark.parametrize("pair", [("int8", "int8"), ("int4", "int4"), (None, None)], ids=str)
@pytest.mark.parametrize("head_dim", MODELS)
def test_a_cache_of_any_width(rng, device, head_dim, pair):
    cache = kvit.PagedCache(8, 4, 2, head_dim, k=pair[0], v=pair[1], device=device)
    k, v = rng.standard_normal((2, 7, 2, head_dim)).astype(BFLOAT16)
    seq = cache.sequence()
    seq.append(kvit.Buffer.from_numpy(k, device), kvit.Buffer.from_numpy(v, device))
    fork = seq.fork()
    fork.append(*(kvit.Buffer.from_numpy(x[:1], device) for x in (k, v)))
    got = cache.gather([fork])
    scale = np.abs(k).max()
    step = {"int8": 255, "int4": 15, None: 2**9}[pair[0]]
    for found, rows in zip(got[:2], (k, v), strict=True):
        want = np.concatenate([rows, rows[:1]]).astype(np.float64)
        assert np.abs(found.numpy().astype(np.float64) - want).max() <= 2 * scale / step
    q = rng.standard_normal((1, 4, head_dim)).astype(BFLOAT16)
    out = kvit.attention(kvit.Buffer.from_numpy(q, device), cache, [fork]).numpy()
    stored = [x.numpy() for x in got[:2]]
    state = reference.attention(q, *stored)
    assert_within(out, state.out, 0.03 * np.abs(stored[1]).max())


@pytest.mark.parametrize(
    "dims, words",
    [
        ((20, 20), "multiple of 8 channels up to 512.\n  Pad the rows of q and K with zeros to 24 channels"),
        ((520, 520), "multiple of 8 channels up to 512"),
        ((4096, 64), "multiple of 8 channels up to 512"),
    ],
    ids=str,
)
def test_widths_that_no_kernel_serves_are_refused_with_advice_that_works(rng, dims, words):
    k = np.zeros((2, 4, 1, -(-dims[0] // 8) * 8), BFLOAT16)[..., : dims[0]]
    v = np.zeros((2, 4, 1, -(-dims[1] // 8) * 8), BFLOAT16)[..., : dims[1]]
    with pytest.raises(kvit.KernelMissing, match=words):
        kvit.Attention(kvit.CacheView(k, v), 8)


def test_rows_that_a_kernel_is_built_for_keep_it():
    k = np.zeros((2, 16, 2, 128), BFLOAT16)
    assert kvit.Attention(kvit.CacheView(k, k.copy()), 8).kernel.axes["variant"] == "plain"
    narrow = np.zeros((2, 16, 2, 96), BFLOAT16)
    op = kvit.Attention(kvit.CacheView(narrow, narrow.copy()), 8)
    assert (op.kernel.axes["variant"], op.kernel.axes["head_dim"]) == ("general", 128)
