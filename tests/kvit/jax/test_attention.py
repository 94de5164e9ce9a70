"""kvit.jax.attention and gather under jax.jit: what kvit.reference gives, for every cache, table, mask and score."""

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs pip install '.[test-interop]'")

import jax
import jax.numpy as jnp

import kvit
import kvit.jax
from kvit import reference
from support import tolerances
from support.appends import COUNTS, LENGTHS
from support.jax_caches import ONE_NEW
from support.quantised import attention_bound_of, transformed_score_bound
from support.tolerances import assert_within

pytestmark = pytest.mark.interop

PAIRS = [
    (None, None),
    ("int8", "int8"),
    ("int4", "int4"),
    ("float8_e4m3", "float8_e4m3"),
    ("int8", "int4"),
    ("int4_hadamard",) * 2,
]


def assert_attends(case, table, q, counts=COUNTS, arrays=None, **options):
    """One call under jit, with its lse, gives what the reference gives; arrays are given to both."""
    arrays = arrays or {}
    given = {name: case.put(array) for name, array in arrays.items()}
    if "tree" in given:  # int64, which JAX has only when it is told so
        given["tree"] = case.put(arrays["tree"].view(np.uint32))

    @jax.jit
    def run(q, cache, table, indptr, given):
        return kvit.jax.attention(q, cache, table, query_indptr=indptr, return_lse=True, **given, **options)

    out, lse = run(case.put(q), case.arrays, table, case.indptr(counts), given)
    kvit.jax.check((out, lse))
    state = reference.paged_attention(q, case.cache, case.table, counts, **arrays, **options)
    bound = attention_bound_of(case.cache, case.table, q, counts, case.dtype, **arrays, **options)
    assert out.shape == q.shape and lse.dtype == np.float32
    assert_within(np.asarray(out), state.out, bound)
    assert_within(
        np.asarray(lse),
        state.lse,
        tolerances.LSE + tolerances.SCORE_QUANTISED + transformed_score_bound(case.cache, case.table, q, counts),
    )


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("form", ["dense", "ragged"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_attention_is_the_references_for_every_codec_table_and_layout(make, pair, form, layout):
    # Sequences without tokens, with none that are new, and with more than a page of them.
    case = make(pair, layout=layout)
    case.fill()
    assert_attends(case, getattr(case, form), case.random(sum(COUNTS), 6, 64))


@pytest.mark.parametrize(
    "options",
    [{"causal": False}, {"scale": 0.5, "softcap": 4.0}, {"window": 9}, {"window": (4, 2), "causal": False},
     {"chunk": 16}],
    ids=lambda options: "-".join(options),
)  # fmt: skip
def test_numbers_reach_the_operation(make, options):
    case = make()
    case.fill()
    assert_attends(case, case.dense, case.random(sum(COUNTS), 6, 64), **options)


def test_arrays_reach_the_operation(make):
    case = make()
    case.fill()
    tokens = sum(COUNTS)
    scores = {
        "sinks": np.linspace(-1, 3, 6).astype(np.float32),
        "alibi": np.linspace(0.01, 0.5, 6).astype(np.float32),
        "temperature": np.linspace(0.5, 2, 30).astype(np.float32),
    }
    spans = np.zeros((tokens, 2), np.int32)
    spans[:5] = 32, 37  # the new tokens of the first sequence see each other
    tree = np.full((tokens, 1), 1, np.int64) | (1 << np.concatenate([np.arange(n) for n in COUNTS])[:, None])
    for arrays in (scores, {"spans": spans}, {"tree": tree}):
        assert_attends(case, case.dense, case.random(tokens, 6, 64), arrays=arrays)


def test_the_same_program_reads_other_sinks_afresh(make):
    # An operation knows sinks by their address, and XLA puts those of the next call wherever it likes.
    case = make(lengths=ONE_NEW)
    case.fill()
    q, run = case.random(4, 6, 64), jax.jit(lambda q, c, t, sinks: kvit.jax.attention(q, c, t, sinks=sinks * 1))
    for level in (-3.0, 0.0, 3.0):
        sinks = np.full(6, level, np.float32)
        out = run(case.put(q), case.arrays, case.dense, case.put(sinks))
        state = reference.paged_attention(q, case.cache, case.table, sinks=sinks)
        bound = attention_bound_of(case.cache, case.table, q, None, case.dtype, sinks=sinks)
        assert_within(np.asarray(out), state.out, bound)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_gathered_rows_are_the_references_bit_for_bit(make, pair, layout):
    case = make(pair, layout=layout)
    case.fill()
    dtype = jnp.bfloat16 if pair[0] == "float8_e4m3" else None  # which memory of float8 does not say
    total = sum(LENGTHS)
    run = jax.jit(lambda cache, table, indptr: kvit.jax.gather(cache, table, total, query_indptr=indptr, dtype=dtype))
    found = run(case.arrays, case.ragged, case.indptr(LENGTHS))
    kvit.jax.check(found)
    want = reference.gather(case.cache, case.table, case.dtype)
    for rows, expected in zip(found, want, strict=False):
        np.testing.assert_array_equal(np.asarray(rows).view(np.uint16), expected.view(np.uint16))


def test_outside_of_jit_it_is_the_same(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    q, cache = case.put(case.random(4, 6, 64)), case.arrays
    plain = kvit.jax.attention(q, cache, case.dense)
    compiled = jax.jit(kvit.jax.attention)(q, cache, case.dense)
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(compiled))
