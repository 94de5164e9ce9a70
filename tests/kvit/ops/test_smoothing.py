"""Views with a KeySmoothing: append, gather and shift have the reference's bits, and attention does not notice."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.appends import COUNTS, Setup, rotation_of
from support.caches import BFLOAT16, FLOAT16, to_device
from support.smoothings import referred, smoothing_of

PAIRS = [
    (None, None),
    ("int8", "int8"),
    ("int4", "int4"),
    ("int4_hadamard", "int4_hadamard"),
    ("float8_e4m3", "float8_e4m3"),
    ("int8_hadamard", "int4_hadamard"),
]
EVEN_PAIRS = PAIRS[:5]  # those that are built for 256 channels
# Lanes hold other channels where a part of them turns; halves of 20 end within vectors; 96 are less than a kernel's.
ROPES = {
    "none": lambda head_dim: None,
    "halves": lambda head_dim: kvit.Rope(head_dim),
    "partial": lambda head_dim: kvit.Rope(head_dim, rotary_dim=48),
    "within vectors": lambda head_dim: kvit.Rope(head_dim, rotary_dim=20),
    "interleaved": lambda head_dim: kvit.Rope(head_dim, rotary_dim=32, interleaved=True),
}


def smoothed(rng, device, pair, *, heads=3, head_dim=64, has_mean=True, **options):
    smoothing = smoothing_of(rng, heads, head_dim, has_mean=has_mean)
    return Setup(rng, pair, heads=heads, head_dim=head_dim, device=device, smoothing=smoothing, **options), smoothing


def assert_bits(found, wanted):
    np.testing.assert_array_equal(found.numpy().view(np.uint16), wanted.view(np.uint16))


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_keys_and_queries_pass_through_it_behind_the_rope(rng, device, pair, head_dim, rope):
    if head_dim == 256 and pair not in EVEN_PAIRS:
        pytest.skip("not built")
    case, smoothing = smoothed(rng, device, pair, head_dim=head_dim)
    rope, last = ROPES[rope](head_dim), referred(smoothing)
    (k, v), q = case.rows(), case.random(sum(COUNTS), 12, head_dim)
    rotation = None if rope is None else rotation_of(rope)
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation, smoothing=last)
    q_out = case.append(k, v, rope=rope, q=q, q_out=np.zeros_like(q))["q_out"]
    case.assert_same()
    if rotation is None:
        assert_bits(q_out, reference.biased(q, None, None, last.of_queries))
    else:
        positions = reference.token_positions(case.table, COUNTS)
        assert_bits(q_out, reference.rotate(q, positions, rotation, last=last.of_queries))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_behind_biases_and_norms_and_in_one_rounding(rng, device, dtype):
    # Nine KV heads and two queries for each: more than lanes have room for at a time.
    case, smoothing = smoothed(rng, device, (None, None), heads=9, dtype=dtype)
    (k, v), q, weight = case.rows(), case.random(sum(COUNTS), 18, 64), case.random(64)
    bias, rope = case.random(9, 64), kvit.Rope(64, rotary_dim=32)
    norm, last = reference.RowNorm(weight), referred(smoothing)
    rotation, positions = rotation_of(rope), reference.token_positions(case.table, COUNTS)
    reference.append(case.cache, case.table, k, v, COUNTS, k_bias=bias, k_norm=norm, rotation=rotation, smoothing=last)
    made_with = {"k_norm": weight, "q_norm": weight}
    q_out = case.append(k, v, rope=rope, made_with=made_with, k_bias=bias, q=q, q_out=np.zeros_like(q))["q_out"]
    case.assert_same()
    assert_bits(q_out, reference.rotate(q, positions, rotation, None, norm, last.of_queries))


@pytest.mark.parametrize("by_fast_path", [True, False])
@pytest.mark.parametrize("head_dim", [64, 96, 256])
@pytest.mark.parametrize("pair", EVEN_PAIRS, ids=str)
def test_gather_gives_keys_back(rng, device, pair, head_dim, by_fast_path):
    case, smoothing = smoothed(rng, device, pair, head_dim=head_dim, lengths=COUNTS)
    (k, v), total = case.rows(), sum(COUNTS)
    case.append(k, v)
    reference.append(case.cache, case.table, k, v, COUNTS, smoothing=referred(smoothing))
    case.assert_same()
    shape = (total, 3, head_dim) if by_fast_path else (3, total, head_dim)
    out = [to_device(np.zeros(shape, case.dtype), device) for _ in range(2)]
    indptr = to_device(np.cumsum([0, *COUNTS]).astype(np.int32), device)
    layout = "NHD" if by_fast_path else "HND"
    kvit.Gather(case.view)(case.view, case.page_table, out=out, query_indptr=indptr, layout=layout)
    want = reference.gather(case.cache, case.table, case.dtype, referred(smoothing))[:2]
    for found, rows in zip(out, want, strict=True):
        assert_bits(found, rows if by_fast_path else np.ascontiguousarray(rows.swapaxes(0, 1)))


@pytest.mark.parametrize("rotary_dim", [64, 32, 20])
@pytest.mark.parametrize("pair", EVEN_PAIRS, ids=str)
def test_shift_turns_keys_as_they_were(rng, device, pair, rotary_dim):
    case, smoothing = smoothed(rng, device, pair, lengths=COUNTS)
    k, v = case.rows()
    rope = kvit.Rope(64, rotary_dim=rotary_dim)
    case.append(k, v, rope=rope)
    by, first, last = [-3, 5, 0, -700], [0, 1, 0, 4], referred(smoothing)
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope), smoothing=last)
    reference.shift(case.cache, case.table, by, first, rotation_of(rope), case.dtype, smoothing=last)
    numbers = [to_device(np.array(x, np.int32), device) for x in (by, first)]
    op = kvit.Shift(case.view, rope)
    op(case.view, case.page_table, numbers[0], first=numbers[1])
    op.check()
    case.assert_same()


@pytest.mark.parametrize("has_mean", [True, False])
@pytest.mark.parametrize("counts", [[1, 1], [70, 33]], ids=["decode", "prompts"])
def test_attention_is_that_of_keys_as_they_came(rng, device, counts, has_mean):
    # In float16, where rounding rows that lost a mean of 3 is no more than what tolerances allow; prompts by prefill.
    lengths, heads, dtype = [150, 33], 2, FLOAT16
    case, smoothing = smoothed(
        rng, device, (None, None), heads=heads, head_dim=128, has_mean=has_mean, dtype=dtype, lengths=lengths
    )
    k, v = case.random(2, sum(lengths), heads, 128)
    q = case.random(sum(lengths), 8, 128)
    ready = case.append(k, v, lengths, q=q, q_out=np.zeros_like(q))["q_out"].numpy()
    which = np.concatenate([np.arange(n - c, n) + s for n, c, s in zip(lengths, counts, [0, 150], strict=True)])
    op = kvit.Attention(case.view, 8, tokens_per_sequence=max(counts))
    lse = to_device(np.zeros((sum(counts), 8), np.float32), device)
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), device)
    out = op(to_device(ready[which], device), case.view, case.page_table, lse=lse, query_indptr=indptr)
    op.check()
    plain = reference.Cache.poisoned(len(case.cache.k), 16, heads, 128, dtype=dtype, layout="HND")
    reference.append(plain, case.table, k, v, lengths)
    state = reference.paged_attention(q[which], plain, case.table, counts)
    rounding = 2.0**-11 * 2 * np.abs(q[which].astype(np.float64)).sum(-1, keepdims=True) * 8 / np.sqrt(128)
    bound = tolerances.attention_bound(np.abs(state.out), dtype) + rounding * 2.0**-2
    tolerances.assert_within(out.numpy(), state.out, bound)
    lost = np.einsum("thc,hc->th", q[which].astype(np.float64), np.repeat(smoothing.mean, 4, 0)) / np.sqrt(128)
    assert np.abs(lost).max() > 1 if has_mean else not lost.any()
    tolerances.assert_within(lse.numpy(), state.lse - lost, rounding[..., 0] * 2.0**-2 + tolerances.LSE)


def test_four_bits_lose_less_where_channels_have_means_and_widths(rng, device):
    # Keys as models have them: a few channels far from 0, and some much wider than others. Scores of random queries.
    offset, spread = np.zeros(64), np.ones(64)
    offset[[3, 40]], spread[[7, 21]] = 12, 6
    k = (rng.standard_normal((300, 2, 64)) * spread + offset).astype(FLOAT16)
    q = rng.standard_normal((300, 4, 64)).astype(FLOAT16)
    exact = np.einsum("qhc,khc->qhk", q[:8, ::2].astype(np.float64), k.astype(np.float64))
    errors = []
    for smoothing in (None, kvit.KeySmoothing.measure(k, q)):
        cache = kvit.PagedCache(20, 16, 2, 64, dtype="float16", k="int4", v="int4", device=device, smoothing=smoothing)
        seq = cache.sequence()
        seq.append(to_device(k, device), to_device(k, device))
        stored = cache.gather([seq])[0].numpy().astype(np.float64)
        found = np.einsum("qhc,khc->qhk", q[:8, ::2].astype(np.float64), stored)
        errors.append((found - exact).std())
    assert errors[1] < errors[0] / 1.5


def test_what_no_query_sees_counts_no_more_than_before(rng, device):
    case, smoothing = smoothed(rng, device, ("int8", "int8"), lengths=COUNTS)
    (k, v), total = case.rows(), sum(COUNTS)
    k[-1], v[-1] = np.nan, np.inf
    case.append(k, v)
    q = case.random(total, 3, 64)
    indptr = to_device(np.cumsum([0, *COUNTS]).astype(np.int32), device)
    out = kvit.Attention(case.view, 3, tokens_per_sequence=20)(
        to_device(q, device), case.view, case.page_table, query_indptr=indptr
    ).numpy()
    assert np.isfinite(out[:-1].astype(np.float32)).all() and np.isnan(out[-1].astype(np.float32)).all()


class TestRefusals:
    def test_an_operation_is_for_keys_that_are_stored_alike(self, rng, device):
        case, _ = smoothed(rng, device, (None, None))
        plain = Setup(rng, (None, None), device=device)
        widths, _ = smoothed(rng, device, (None, None), has_mean=False)
        (k, v), indptr = case.rows(), to_device(np.cumsum([0, *COUNTS]).astype(np.int32), device)
        k, v = to_device(k, device), to_device(v, device)
        for made, used in ((case, plain), (plain, case), (case, widths)):
            with pytest.raises(kvit.DtypeError, match="make another Append for this view"):
                kvit.Append(made.view)(k, v, used.view, used.page_table, query_indptr=indptr)
            with pytest.raises(kvit.DtypeError, match="make another Gather for this view"):
                kvit.Gather(made.view)(used.view, used.page_table, out=(k, v), query_indptr=indptr)
            with pytest.raises(kvit.DtypeError, match="make another Attention for this view"):
                kvit.Attention(made.view, 3)(k, used.view, used.page_table, query_indptr=indptr)
            with pytest.raises(kvit.DtypeError, match="make another Shift for this view"):
                kvit.Shift(made.view, None)(used.view, used.page_table, 1)
        for buffer in (*case.buffers.values(), *plain.buffers.values()):
            assert (buffer.numpy().view(np.uint8) == 0xFF).all()

    def test_numbers_of_another_layer_are_taken_by_the_same_operation(self, rng, device):
        case, _ = smoothed(rng, device, (None, None))
        other, smoothing = smoothed(rng, device, (None, None))
        k, v = case.rows()
        reference.append(other.cache, other.table, k, v, COUNTS, smoothing=referred(smoothing))
        op, indptr = kvit.Append(case.view), to_device(np.cumsum([0, *COUNTS]).astype(np.int32), device)
        op(to_device(k, device), to_device(v, device), other.view, other.page_table, query_indptr=indptr)
        other.assert_same()

    def test_sinks_and_caps_want_whole_scores(self, rng, device):
        case, _ = smoothed(rng, device, (None, None))
        widths, _ = smoothed(rng, device, (None, None), has_mean=False)
        sinks = to_device(np.zeros(3, np.float32), device)
        for options in ({"sinks": sinks}, {"softcap": 30.0}):
            with pytest.raises(kvit.DtypeError, match=f"{next(iter(options))} want the scores of whole keys"):
                kvit.Attention(case.view, 3, **options)
            kvit.Attention(widths.view, 3, **options)
            entries = {"entry_tokens": 4, "entries": 2, "queries": 3}
            with pytest.raises(kvit.DtypeError, match="want the scores of whole keys"):
                kvit.SparseAttention(case.view, 3, **entries, **options)
            kvit.SparseAttention(widths.view, 3, **entries, **options)

    def test_other_heads_and_channels(self, rng, device):
        k, v = (to_device(np.zeros((2, 16, 3, 64), FLOAT16), device) for _ in range(2))
        for heads, head_dim in ((2, 64), (3, 128)):
            with pytest.raises(kvit.ShapeError, match=f"for {heads} KV heads of {head_dim} channels; the cache has 3"):
                kvit.CacheView(k, v, smoothing=smoothing_of(rng, heads, head_dim))
        with pytest.raises(TypeError, match="kvit.KeySmoothing"):
            kvit.CacheView(k, v, smoothing=np.ones((3, 64), np.float32))

    def test_query_heads_that_no_kv_head_shares_evenly(self, rng, device):
        case, _ = smoothed(rng, device, (None, None))
        (k, v), q = case.rows(), case.random(sum(COUNTS), 4, 64)
        with pytest.raises(kvit.ShapeError, match="4 query heads"):
            case.append(k, v, q=q)

    def test_pages_of_keys_that_are_smoothed_otherwise(self, rng, device):
        case, smoothing = smoothed(rng, device, ("int8", "int8"), lengths=COUNTS)
        other, _ = smoothed(rng, device, ("int8", "int8"), lengths=COUNTS)
        plain = Setup(rng, ("int8", "int8"), lengths=COUNTS, device=device)
        for target in (other, plain):
            op = kvit.ConvertPages(case.view, target.view)
            with pytest.raises(kvit.DtypeError, match="gather from the one and append to the other"):
                op(case.view, target.view)
        again = kvit.KeySmoothing(smoothing.mean, smoothing.width)
        same = Setup(rng, ("int8", "int8"), lengths=COUNTS, device=device, smoothing=again)
        kvit.ConvertPages(case.view, same.view)(case.view, same.view)
