"""Caches in 8 and 4 bits: kernels encode bit for bit as the reference, and attend to what is stored, not to more."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, to_device
from support.quantised import Quantised
from support.tolerances import assert_within

PAIRS = [
    ("int8", "int8"),
    ("int4", "int4"),
    ("float8_e4m3", "float8_e4m3"),
    ("float8_e5m2", "float8_e5m2"),
    ("int8", "int4"),
    ("float8_e4m3", "int4"),
    (None, "int8"),
]
EVEN_PAIRS = PAIRS[:3]  # those that are built for head_dim 256


def pools(buffers):
    return {name: buffer.numpy().view(np.uint8) for name, buffer in buffers.items()}


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 16, 100])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_appended_rows_are_the_references_bit_for_bit(rng, device, pair, head_dim, page_size, layout):
    case = Quantised(pair, [37, 0, 5], page_size=page_size, head_dim=head_dim, layout=layout, device=device, rng=rng)
    case.append(rng)
    for name, got in pools(case.buffers).items():
        np.testing.assert_array_equal(got, case.host[name].view(np.uint8), err_msg=name)


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 6e3])  # a range whose reciprocal overflows in f16; small; near f16's top
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_rows_of_any_size_are_encoded_bit_for_bit(rng, device, pair, dtype, scale):
    case = Quantised(pair, [64], dtype=dtype, device=device, rng=rng)
    with np.errstate(over="ignore"):
        case.append(rng, scale)
    for name, got in pools(case.buffers).items():
        if dtype == FLOAT16 and scale > 1 and name.endswith("params"):
            continue  # outliers are infinite in f16 here: their parameters are NaN of no particular bits
        np.testing.assert_array_equal(got, case.host[name].view(np.uint8), err_msg=name)


def test_what_is_no_number_is_encoded_as_the_reference_says(rng, device):
    for pair in PAIRS:
        case = Quantised(pair, [8], device=device, rng=rng)
        k, v = rng.standard_normal((2, 8, 2, 64)).astype(BFLOAT16)
        for rows in (k, v):
            rows[0, 0, 63], rows[1, 0, 0], rows[2, 1, 5], rows[3, 0, 1] = np.nan, np.inf, -np.inf, -0.0
        reference.append(case.cache, case.table, k, v, [8])
        kvit.Append(case.view)(to_device(k, device), to_device(v, device), case.view, case.page_table)
        out = [to_device(np.zeros((8, 2, 64), BFLOAT16), device) for _ in range(2)]
        kvit.Gather(case.view)(case.view, case.page_table, out=out)
        for got, want in zip(out, reference.gather(case.cache, case.table, BFLOAT16)[:2], strict=True):
            np.testing.assert_array_equal(got.numpy().astype(np.float32), want.astype(np.float32), err_msg=str(pair))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_gathered_rows_are_the_references_bit_for_bit(rng, device, pair, dtype):
    case = Quantised(pair, [37, 0, 5], page_size=5, dtype=dtype, device=device, rng=rng)
    case.append(rng)
    out = [to_device(np.zeros((42, 2, 64), dtype), device) for _ in range(2)]
    indptr = to_device(np.array([0, 37, 37, 42], np.int32), device)
    kvit.Gather(case.view)(case.view, case.page_table, out=out, query_indptr=indptr)
    for got, want in zip(out, reference.gather(case.cache, case.table, dtype)[:2], strict=True):
        np.testing.assert_array_equal(got.numpy().view(np.uint16), want.view(np.uint16))


def assert_attention(case, rng, group, counts=None):
    counts = counts or [1] * len(case.table.lengths)
    q = rng.standard_normal((sum(counts), 2 * group, case.view.head_dim)).astype(case.dtype)
    lse = to_device(np.zeros(q.shape[:2], np.float32), case.device)
    operation = kvit.Attention(case.view, 2 * group, tokens_per_sequence=max(counts))
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), case.device)
    out = operation(to_device(q, case.device), case.view, case.page_table, lse=lse, query_indptr=indptr)
    operation.check()
    state = reference.paged_attention(q, case.cache, case.table, counts)
    assert_within(out.numpy(), state.out, case.bound(q, counts))
    assert_within(lse.numpy(), state.lse, tolerances.SCORE_QUANTISED)


# 100 tokens cross a tile of 64, 129 one of 128; 1 is the least; 0 is nothing; 300 are cut between CTAs.
@pytest.mark.parametrize("group", [1, 5, 8, 12])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_attention_is_the_reference_over_what_is_stored(rng, device, pair, head_dim, group):
    case = Quantised(pair, [100, 1, 0, 300, 129], head_dim=head_dim, device=device, rng=rng)
    case.append(rng)
    assert_attention(case, rng, group)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 7, 64, 100])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_any_page_size_and_layout_gives_the_same(rng, device, pair, page_size, layout):
    case = Quantised(pair, [70, 0, 33], page_size=page_size, layout=layout, device=device, rng=rng)
    case.append(rng)
    assert_attention(case, rng, 4)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("pair", EVEN_PAIRS, ids=str)
def test_head_dim_256(rng, device, pair, dtype):
    case = Quantised(pair, [70, 33], head_dim=256, dtype=dtype, device=device, rng=rng)
    case.append(rng)
    assert_attention(case, rng, 4)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_several_new_tokens_are_causal(rng, device, pair):
    case = Quantised(pair, [90, 5, 40], dtype=FLOAT16, device=device, rng=rng)
    case.append(rng)
    assert_attention(case, rng, 3, [4, 5, 0])


def test_int4_with_head_dim_64_that_faults_elsewhere(rng, device):
    # TurboMind's swizzle misaligns this shape: "misaligned address" on every batch (lmdeploy#4021).
    case = Quantised(("int4", "int4"), [4096], page_size=64, head_dim=64, device=device, rng=rng)
    case.append(rng)
    assert_attention(case, rng, 4)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_scales_of_any_size_cancel(rng, device, scale):
    # Values 1e7 apart between calls: a weight times its scale must neither vanish in f16 nor overflow it.
    case = Quantised(("int8", "int4"), [200], dtype=BFLOAT16, device=device, rng=rng)
    k, v = rng.standard_normal((2, 200, 2, 64))
    v *= scale
    k, v = k.astype(BFLOAT16), v.astype(BFLOAT16)
    reference.append(case.cache, case.table, k, v, [200])
    kvit.Append(case.view)(to_device(k, device), to_device(v, device), case.view, case.page_table)
    assert_attention(case, rng, 4)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_paged_cache_forks_and_copies_on_write(rng, device, pair):
    cache = kvit.PagedCache(12, 4, 2, 64, k=pair[0], v=pair[1], layout="NHD", device=device)
    a = cache.sequence()
    rows = [to_device(x, device) for x in rng.standard_normal((2, 10, 2, 64)).astype(BFLOAT16)]
    cache.append([a], *rows)
    before = [x.numpy().copy() for x in cache.gather([a])[:2]]
    b = a.fork()
    more = [to_device(x, device) for x in rng.standard_normal((2, 3, 2, 64)).astype(BFLOAT16)]
    cache.append([b], *more)  # writes into the page that both share: b gets its own, parameters and all
    for old, now, forked in zip(before, cache.gather([a])[:2], cache.gather([b])[:2], strict=True):
        np.testing.assert_array_equal(now.numpy(), old)
        np.testing.assert_array_equal(forked.numpy()[:10], old)


def test_int8_with_int4_holds_two_and_a_half_times_the_tokens():
    sizes = [
        kvit.PagedCache(16, 16, 8, 128, k=k, v=v, device="host").nbytes for k, v in ((None, None), ("int8", "int4"))
    ]
    assert sizes[0] / sizes[1] >= 2.5


def params(dtype, last=2, skipped=0):
    """Zeros [3, 2, 16, last] that begin some elements into an allocation."""
    size = 3 * 2 * 16 * last
    return np.zeros(size + skipped, dtype)[skipped:].reshape(3, 2, 16, last)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (kvit.ShapeError, "k is int8 and needs k_params", {"k_params": None}),
        (kvit.ShapeError, r"k_params has shape \[3, 2, 16, 3\]; it must be", {"k_params": params(FLOAT16, last=3)}),
        (kvit.DtypeError, "k_params are float32; they must be float16 or bf", {"k_params": params(np.float32)}),
        (kvit.DtypeError, "v_params is bfloat16; it must be float16", {"v_params": params(BFLOAT16)}),
        (kvit.LayoutError, "k_params begins at .* multiples of 4", {"k_params": params(FLOAT16, skipped=1)}),
        (kvit.DtypeError, "v_scale is of float8, and v is int4", {"v_scale": np.ones(1, np.float32)}),
        (kvit.DtypeError, "int3", {"kv": "int3"}),
    ],
    ids=["missing", "shape", "dtype", "mixed", "alignment", "scale", "codec"],
)
def test_parameters_that_do_not_fit_are_refused(error, match, change):
    good = {
        "kv": ("int8", "int4"),
        "k_params": params(FLOAT16),
        "v_params": params(FLOAT16),
    }
    k, v = np.zeros((3, 2, 16, 64), np.uint8), np.zeros((3, 2, 16, 32), np.uint8)
    kvit.CacheView(k, v, layout="HND", **good)
    with pytest.raises(error, match=match):
        kvit.CacheView(k, v, layout="HND", **{**good, **change})


def test_a_pair_that_was_not_built_names_what_was():
    with pytest.raises(kvit.KernelMissing, match="kv=i4_i8.*i8_i4"):
        kvit.PagedCache(4, 16, 2, 64, k="int4", v="int8", device="host")


@pytest.mark.parametrize(
    ("pair", "num_bytes"),  # of a token: 2 KV heads of 64 channels, parameters that are its own included
    [(("int8", "int8"), 2 * 136), (("int8", "int4"), 2 * 104), (("float8_e4m3",) * 2, 2 * 128), ((None, "int8"), 392)],
    ids=str,
)
def test_explain_counts_codes_and_the_parameters_of_each_token(rng, pair, num_bytes):
    case = Quantised(pair, [4], rng=rng)  # float8 has one scale for each head, which no token reads anew
    assert f"reads      {100 * num_bytes} bytes" in kvit.Attention(case.view, 4).explain([100])


def test_an_operation_refuses_a_view_that_is_stored_otherwise(rng):
    first, second = (Quantised(pair, [4], rng=rng) for pair in (("int8", "int8"), ("int4", "int4")))
    operation = kvit.Attention(first.view, 4)
    q = np.zeros((1, 4, 64), BFLOAT16)
    with pytest.raises(kvit.DtypeError, match="the view holds int4 for bfloat16; the operation was made for int8"):
        operation(q, second.view, second.page_table)
    other = Quantised(("int8", "int8"), [4], dtype=FLOAT16, rng=rng)
    with pytest.raises(kvit.DtypeError, match="int8 for float16.*int8 for bfloat16"):
        operation(q, other.view, other.page_table)
