"""kvit.torch.attention and gather: what kvit.reference gives, for every form of cache, table, mask and score."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")

import torch

import kvit
import kvit.torch
from kvit import reference
from support import tolerances
from support.appends import COUNTS, LENGTHS
from support.quantised import attention_bound_of, transformed_score_bound
from support.tolerances import assert_within
from support.torch_caches import ONE_NEW, to_numpy

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
    """One call, with its lse, gives what the reference gives; arrays are given to both."""
    arrays = arrays or {}
    given = {name: case.put(array) for name, array in arrays.items()}
    out, lse = kvit.torch.attention(
        case.put(q), case.tensors, table, query_indptr=case.indptr(counts), return_lse=True, **given, **options
    )
    kvit.torch.check()
    state = reference.paged_attention(q, case.cache, case.table, counts, **arrays, **options)
    bound = attention_bound_of(case.cache, case.table, q, counts, case.dtype, **arrays, **options)
    assert out.shape == q.shape and lse.dtype is torch.float32
    assert_within(to_numpy(out, q.dtype), state.out, bound)
    assert_within(
        lse.cpu().numpy(),
        state.lse,
        tolerances.LSE + tolerances.SCORE_QUANTISED + transformed_score_bound(case.cache, case.table, q, counts),
    )
    return out


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
    [
        {"causal": False},
        {"scale": 0.5, "softcap": 4.0},
        {"window": 9},
        {"window": (4, 2), "causal": False},
        {"chunk": 16},
        {"split_tokens": 1024},
        {"reads_ahead": True, "tokens_per_sequence": 20},
    ],
    ids=lambda options: "-".join(options),
)
def test_numbers_reach_the_operation(make, options):
    case = make()
    case.fill()
    tuned = {name: options[name] for name in ("split_tokens", "reads_ahead", "tokens_per_sequence") if name in options}
    plain = {name: value for name, value in options.items() if name not in tuned}
    q = case.random(sum(COUNTS), 6, 64)
    found = assert_attends(case, case.dense, q, **plain)
    if tuned:  # which change no result beyond the tolerance, and nothing of the reference
        again = kvit.torch.attention(case.put(q), case.tensors, case.dense, query_indptr=case.indptr(COUNTS), **options)
        assert_within(to_numpy(again, q.dtype), to_numpy(found, q.dtype).astype(np.float64), 0.02)


def test_arrays_of_scores_reach_the_operation(make):
    case = make()
    case.fill()
    arrays = {
        "sinks": np.linspace(-1, 3, 6).astype(np.float32),
        "alibi": np.linspace(0.01, 0.5, 6).astype(np.float32),
        "temperature": np.linspace(0.5, 2, 30).astype(np.float32),
    }
    assert_attends(case, case.dense, case.random(sum(COUNTS), 6, 64), arrays=arrays)


def test_spans_and_trees_reach_the_operation(make):
    case = make()
    case.fill()
    tokens = sum(COUNTS)
    spans = np.zeros((tokens, 2), np.int32)
    spans[:5] = 32, 37  # the new tokens of the first sequence see each other
    tree = np.full((tokens, 1), 1, np.int64) | (1 << np.concatenate([np.arange(n) for n in COUNTS])[:, None])
    assert_attends(case, case.dense, case.random(tokens, 6, 64), arrays={"spans": spans})
    assert_attends(case, case.dense, case.random(tokens, 6, 64), arrays={"tree": tree})


def test_q_may_be_a_slice_of_a_fused_projection(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    q = case.random(4, 6, 64)
    fused = torch.full((4, 6 + 3 + 3, 64), float("nan"), dtype=torch.bfloat16, device=case.tensors.k.device)
    fused[:, :6] = case.put(q)
    out = kvit.torch.attention(fused[:, :6], case.tensors, case.dense)
    kvit.torch.check()
    assert out.is_contiguous()
    state = reference.paged_attention(q, case.cache, case.table)
    assert_within(to_numpy(out, q.dtype), state.out, attention_bound_of(case.cache, case.table, q, None, case.dtype))


def test_values_of_another_width_give_outputs_of_theirs(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    narrow = case.tensors._replace(v=case.tensors.v[..., :32])
    q = case.put(case.random(4, 6, 64))
    out = kvit.torch.attention(q, narrow, case.dense)
    whole = kvit.torch.attention(q, case.tensors, case.dense)
    assert out.shape == (4, 6, 32)
    torch.testing.assert_close(out, whole[..., :32], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_gathered_rows_are_the_references_bit_for_bit(make, pair, layout):
    case = make(pair, layout=layout)
    case.fill()
    dtype = torch.bfloat16 if pair[0] == "float8_e4m3" else None  # which memory of float8 does not say
    k, v = kvit.torch.gather(case.tensors, case.ragged, sum(LENGTHS), query_indptr=case.indptr(LENGTHS), dtype=dtype)
    kvit.torch.check()
    want = reference.gather(case.cache, case.table, case.dtype)
    for found, rows in zip((k, v), want, strict=False):
        np.testing.assert_array_equal(to_numpy(found, np.uint16), rows.view(np.uint16))
