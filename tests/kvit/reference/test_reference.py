"""The reference is itself tested: against a loop over single numbers, and against identities of attention."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from kvit import reference

# float64 sums of a few hundred terms of order one: the order of summation changes the last three or four bits.
EXACT = dict(rtol=1e-12, atol=1e-13)


def loop_attention(q, k, v, causal, scale):
    """One number at a time, straight from the formula."""
    out, lse = np.zeros(q.shape), np.full(q.shape[:2], -math.inf)
    for i in range(q.shape[0]):
        for head in range(q.shape[1]):
            kv_head = head * k.shape[1] // q.shape[1]
            keys = [t for t in range(k.shape[0]) if not causal or t <= k.shape[0] - q.shape[0] + i]
            weights = [math.exp(scale * sum(q[i, head, c] * k[t, kv_head, c] for c in range(q.shape[2]))) for t in keys]
            if keys:
                lse[i, head] = math.log(sum(weights))
            for weight, t in zip(weights, keys, strict=True):
                out[i, head] += weight / sum(weights) * v[t, kv_head]
    return out, lse


def rows(rng, *shape):
    return rng.standard_normal(shape)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys", "query_heads", "kv_heads"),
    [(1, 7, 4, 1), (3, 7, 6, 2), (7, 7, 2, 2), (5, 3, 3, 1), (2, 0, 2, 1)],  # the last two: rows that see nothing
)
def test_attention_is_the_formula_one_number_at_a_time(rng, queries, keys, query_heads, kv_heads, causal):
    q, k, v = rows(rng, queries, query_heads, 5), rows(rng, keys, kv_heads, 5), rows(rng, keys, kv_heads, 5)
    state = reference.attention(q, k, v, causal=causal, scale=0.3)
    out, lse = loop_attention(q, k, v, causal, 0.3)
    assert_allclose(state.out, out, **EXACT)
    assert_allclose(state.lse, lse, **EXACT)


def test_large_scores_neither_overflow_nor_vanish(rng):
    q, k, v = rows(rng, 1, 1, 4), rows(rng, 9, 1, 4), rows(rng, 9, 1, 4)
    state = reference.attention(q, k, v, scale=1e6)  # exp(1e6) is no float64: the largest score must be taken out first
    best = int(np.argmax(k[:, 0] @ q[0, 0]))
    assert_allclose(state.out[0, 0], v[best, 0], **EXACT)
    assert_allclose(state.lse[0, 0], 1e6 * (k[best, 0] @ q[0, 0]), **EXACT)


def test_keys_a_query_does_not_see_may_hold_anything(rng):
    q, k, v = rows(rng, 2, 2, 4), rows(rng, 3, 1, 4), rows(rng, 3, 1, 4)
    expected = reference.attention(q, k, v)
    k[2], v[2] = np.nan, np.inf  # seen by the second query only
    assert_allclose(reference.attention(q, k, v).out[0], expected.out[0], **EXACT)


def test_no_keys_give_zeros_and_minus_infinity():
    state = reference.attention(np.ones((2, 4, 8)), np.ones((0, 2, 8)), np.ones((0, 2, 8)), causal=False)
    assert_array_equal(state.out, 0)
    assert_array_equal(state.lse, -np.inf)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_merging_the_states_of_two_halves_gives_the_state_of_the_whole(first, second, seed):
    rng = np.random.default_rng(seed)
    q, k, v = rows(rng, 2, 4, 3), rows(rng, first + second, 2, 3), rows(rng, first + second, 2, 3)
    a = reference.attention(q, k[:first], v[:first], causal=False)
    b = reference.attention(q, k[first:], v[first:], causal=False)
    whole = reference.attention(q, k, v, causal=False)
    for merged in (reference.merge_state(a, b), reference.merge_state(b, a)):
        assert_allclose(merged.out, whole.out, **EXACT)
        assert_allclose(merged.lse, whole.lse, **EXACT)


def test_merge_leaves_out_the_output_of_an_empty_side(rng):
    a = reference.State(np.full((1, 1, 4), np.nan), np.full((1, 1), -np.inf))
    b = reference.State(rows(rng, 1, 1, 4), np.zeros((1, 1)))
    assert_array_equal(reference.merge_state(a, b).out, b.out)
    assert_array_equal(reference.merge_state(a, a).out, 0)


def scattered(rng, lengths, page_size, layout="NHD", kv_heads=2, head_dim=4, spare=3):
    """A cache of NaN with sequences of random numbers in pages drawn without order, and (k, v) of each sequence."""
    slots = [-(-length // page_size) for length in lengths]
    order = rng.permutation(sum(slots) + spare)
    pages = np.split(order[: sum(slots)], np.cumsum(slots)[:-1])
    shape = (len(order), page_size, kv_heads, head_dim)
    if layout == "HND":
        shape = (len(order), kv_heads, page_size, head_dim)
    cache = reference.Cache(np.full(shape, np.nan), np.full(shape, np.nan), layout)
    contents = [(rows(rng, n, kv_heads, head_dim), rows(rng, n, kv_heads, head_dim)) for n in lengths]
    for content, pools in zip(zip(*contents, strict=True), cache.pools(), strict=True):
        for tokens, sequence_pages in zip(content, pages, strict=True):
            for t, token in enumerate(tokens):
                pools[sequence_pages[t // page_size], t % page_size] = token
    return cache, reference.Table(pages, lengths), contents


PAGED = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(0, 11), min_size=1, max_size=4),
        "page_size": st.integers(1, 5),
        "layout": st.sampled_from(["NHD", "HND"]),
    }
)


@given(PAGED, st.booleans(), st.integers(0, 2**32 - 1), st.data())
def test_paged_attention_is_attention_over_each_sequence_wherever_its_pages_are(shape, causal, seed, data):
    rng = np.random.default_rng(seed)
    cache, table, contents = scattered(rng, **shape)
    counts = [data.draw(st.integers(0, length)) for length in shape["lengths"]]
    q = rows(rng, sum(counts), 4, 4)
    state = reference.paged_attention(q, cache, table, counts, causal=causal)
    for tokens, (k, v) in zip(reference.token_ranges(counts), contents, strict=True):
        expected = reference.attention(q[tokens], k, v, causal=causal)
        assert_array_equal(state.out[tokens], expected.out)
        assert_array_equal(state.lse[tokens], expected.lse)


@given(PAGED, st.integers(0, 2**32 - 1))
def test_append_then_gather_gives_the_tokens_back_and_touches_no_other_byte(shape, seed):
    rng = np.random.default_rng(seed)
    filled, table, contents = scattered(rng, **shape)
    cache = reference.Cache(np.full_like(filled.k, np.nan), np.full_like(filled.v, np.nan), filled.layout)
    k, v = (np.concatenate(parts) for parts in zip(*contents, strict=True))
    reference.append(cache, table, k, v, shape["lengths"])
    assert_array_equal(cache.k, filled.k)
    assert_array_equal(cache.v, filled.v)
    gathered_k, gathered_v, indptr = reference.gather(cache, table)
    assert_array_equal(gathered_k, k)
    assert_array_equal(gathered_v, v)
    assert_array_equal(indptr, np.cumsum([0, *shape["lengths"]]))


def test_append_in_two_steps_is_append_in_one(rng):
    filled, table, [(k, v)] = scattered(rng, [7], page_size=3)
    cache = reference.Cache(np.full_like(filled.k, np.nan), np.full_like(filled.v, np.nan))
    reference.append(cache, reference.Table(table.pages, [5]), k[:5], v[:5], [5])
    reference.append(cache, table, k[5:], v[5:], [2])
    assert_array_equal(cache.k, filled.k)
    assert_array_equal(cache.v, filled.v)


def test_ragged_table_is_the_dense_one(rng):
    cache, table, _ = scattered(rng, [5, 0, 4], page_size=2)
    indptr = np.cumsum([0, *map(len, table.pages)])
    ragged = reference.Table.from_indptr(indptr, np.concatenate(table.pages), table.lengths)
    for ours, theirs in zip(reference.gather(cache, ragged), reference.gather(cache, table), strict=True):
        assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("pages", "length", "fault"),
    [
        ([1, 9], 4, reference.Fault("page", 1, 1, 9)),
        ([-1, 1], 4, reference.Fault("page", 1, 0, -1)),
        ([1, 2], 7, reference.Fault("length", 1, 0, 7)),
        ([1, 2], -1, reference.Fault("length", 1, 0, -1)),
        ([1, 9], 3, None),  # the bad page is past the last token: never looked at
    ],
)
def test_a_wrong_table_is_named_and_its_sequence_alone_is_nan(rng, pages, length, fault):
    cache = reference.Cache(rows(rng, 4, 3, 1, 4), rows(rng, 4, 3, 1, 4))
    table = reference.Table([[0], pages], [2, length])
    assert table.fault(cache, 0) is None
    assert table.fault(cache, 1) == fault
    state = reference.paged_attention(rows(rng, 2, 1, 4), cache, table)
    assert np.isfinite(state.out[0]).all()
    assert np.isnan(state.out[1]).all() == np.isnan(state.lse[1]).all() == (fault is not None)


def test_a_query_that_does_not_see_the_wrong_page_is_not_hurt_by_it(rng):
    cache = reference.Cache(rows(rng, 4, 3, 1, 4), rows(rng, 4, 3, 1, 4))
    q = rows(rng, 2, 1, 4)
    state = reference.paged_attention(q, cache, reference.Table([[2, 9]], [4]), [2])  # token 3 alone is on page 9
    expected = reference.paged_attention(q[:1], cache, reference.Table([[2]], [3]))
    assert_array_equal(state.out[0], expected.out[0])
    assert np.isnan(state.out[1]).all()


def test_tokens_without_a_place_are_not_written_and_come_back_as_nan(rng):
    cache = reference.Cache(np.zeros((2, 3, 1, 4)), np.zeros((2, 3, 1, 4)))
    table = reference.Table([[0, 7], [1]], [4, 1])
    k, v = rows(rng, 4, 1, 4), rows(rng, 4, 1, 4)
    reference.append(cache, table, k, v, [2, 2])  # positions 2 and 3 (page 7) of the first, -1 and 0 of the second
    assert_array_equal(cache.k[0], [np.zeros((1, 4)), np.zeros((1, 4)), k[0]])
    assert_array_equal(cache.k[1], [k[3], np.zeros((1, 4)), np.zeros((1, 4))])
    gathered = reference.gather(cache, table)[0]
    assert_array_equal(np.isnan(gathered).all(axis=(1, 2)), [False, False, False, True, False])


def test_gathering_no_sequences_gives_no_rows_of_the_cache_s_shape():
    cache = reference.Cache(np.zeros((2, 3, 5, 4)), np.zeros((2, 3, 5, 4)), "HND")
    k, v, indptr = reference.gather(cache, reference.Table([], []))
    assert k.shape == v.shape == (0, 3, 4)
    assert_array_equal(indptr, [0])


def test_copy_pages_copies_both_pools_and_nothing_else(rng):
    cache = reference.Cache(rows(rng, 5, 2, 3, 4), rows(rng, 5, 2, 3, 4), "HND")
    before = cache.k.copy(), cache.v.copy()
    reference.copy_pages(cache, [0, 3], [4, 1])
    for pool, old in zip((cache.k, cache.v), before, strict=True):
        assert_array_equal(pool, old[[0, 3, 2, 3, 0]])


@given(st.floats(width=64), st.sampled_from([ml_dtypes.bfloat16, np.float16, np.float32]))
def test_rounding_picks_the_nearer_neighbour(x, dtype):
    result = reference.rounded(x, dtype)
    if not np.isfinite(result):
        assert np.isnan(x) == np.isnan(result) and (np.isnan(x) or abs(x) > float(ml_dtypes.finfo(dtype).max))
        return
    with np.errstate(over="ignore"):  # the neighbour of the largest number is infinity
        neighbours = [np.nextafter(result, np.asarray(side, dtype)) for side in (-np.inf, np.inf)]
    distance = abs(float(result) - x)
    assert all(distance <= abs(float(n) - x) for n in neighbours)


def test_rounding_is_not_done_twice():
    hair_above_the_middle = 1 + 2**-8 + 2**-40  # float32 drops the hair, and the middle then falls to even: 1
    assert float(reference.rounded(hair_above_the_middle, ml_dtypes.bfloat16)) == 1 + 2**-7
