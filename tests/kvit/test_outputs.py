"""What calls give back: the very object that was given as out or lse, or a Buffer."""

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, make_case


@pytest.fixture
def sequence():
    sequence = kvit.PagedCache(8, 16, 2, 64, device="host").sequence()
    sequence.append(*np.ones((2, 5, 2, 64), BFLOAT16))
    return sequence


def test_an_operation_returns_the_output_that_it_was_given(rng):
    case = make_case(rng, [20])
    q = case.queries(rng, 1, 8)
    out = np.zeros_like(q)
    op = kvit.Attention(case.view, 8)
    assert op(q, case.view, case.page_table, out=out) is out
    np.testing.assert_array_equal(out, np.asarray(op(q, case.view, case.page_table)))


@pytest.mark.parametrize("has_out", [True, False])
@pytest.mark.parametrize("has_lse", [True, False])
def test_attention_returns_the_outputs_that_it_was_given(sequence, has_out, has_lse):
    q = np.ones((1, 4, 64), BFLOAT16)
    out, lse = np.zeros_like(q) if has_out else None, np.zeros((1, 4), np.float32) if has_lse else None
    found, sums = kvit.attention(q, sequence.cache, [sequence], out=out, lse=lse, return_lse=True)
    assert found is out if has_out else isinstance(found, kvit.Buffer)
    assert sums is lse if has_lse else isinstance(sums, kvit.Buffer)
    np.testing.assert_array_equal(np.asarray(found).astype(np.float32), np.ones((1, 4, 64), np.float32))


def test_gather_returns_the_outputs_that_it_was_given(sequence):
    out = tuple(np.zeros((2, 5, 2, 64), BFLOAT16))
    k, v, _ = sequence.cache.gather([sequence], out=out)
    assert k is out[0] and v is out[1] and k.all() and v.all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_memory_of_int8_holds_codes_of_int8(rng, dtype):
    codes = rng.integers(0, 256, (2, 4, 16, 2, 64)).astype(np.uint8)
    params = np.ones((4, 16, 2, 2), np.float16)
    views = [
        kvit.CacheView(*given, k_params=params, v_params=params, dtype="float16", **options)
        for given, options in ((codes.view(dtype), {}), (codes, {"kv": "int8"}))
    ]
    table = kvit.PageTable(np.zeros((1, 1), np.int32), lengths=np.array([16], np.int32))
    q = np.zeros((1, 2, 64), np.float16)
    found = [np.asarray(kvit.Attention(view, 2)(q, view, table)) for view in views]
    np.testing.assert_array_equal(*found)
    assert views[0].holds == views[1].holds


def test_int16_is_raw_bits_of_any_16_bit_type(rng):
    case = make_case(rng, [20])
    q = case.queries(rng, 1, 8)
    op = kvit.Attention(case.view, 8)
    found = np.asarray(op(q.view(np.int16), case.view, case.page_table))
    np.testing.assert_array_equal(found, np.asarray(op(q, case.view, case.page_table)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda seq, q: kvit.attention(q, "cache", [seq]), "cache is a str; give a kvit.PagedCache"),
        (lambda seq, q: kvit.attention(q, seq.cache, seq), "seqs is a Sequence; give a list of"),
        (lambda seq, q: kvit.attention(q, seq.cache, None), "seqs is a NoneType; give a list of"),
        (lambda seq, q: seq.cache.append(5, q, q), "seqs is a int; give a list of"),
        (lambda seq, q: seq.cache.gather(None), "seqs is a NoneType; give a list of"),
        (lambda seq, q: seq.cache.table(3.5), "seqs is a float; give a list of"),
        (lambda seq, q: kvit.Attention("view", 4), "view is a str; give a kvit.CacheView"),
        (lambda seq, q: kvit.Append(None), "view is a NoneType; give a kvit.CacheView"),
        (lambda seq, q: kvit.Append(seq.cache.view, rope=1), "rope is a int; give a kvit.Rope"),
        (lambda seq, q: kvit.PagedCache(8, 16, 2, 64, rope="x", device="host"), "rope is a str; give a kvit.Rope"),
        (lambda seq, q: kvit.Gather(seq.cache.view, faults=3), "faults is a int; give the faults of another operation"),
        (
            lambda seq, q: kvit.Append(seq.cache.view)(q, q, seq.cache.view, "t"),
            "table is a str; give a kvit.PageTable",
        ),
        (
            lambda seq, q: kvit.Append(seq.cache.view)(q, q, 1, seq.cache.table([seq])),
            "view is a int; give a kvit.Cach",
        ),
        (lambda seq, q: seq.cache.append([seq], q, q, 4), "new_tokens is a int; give a number for each sequence"),
    ],
)
def test_an_argument_of_another_class_is_named(sequence, call, match):
    with pytest.raises(TypeError, match=match):
        call(sequence, np.ones((1, 2, 64), BFLOAT16))
