"""kvit.torch.append: the reference's bytes in the caller's tensors, and q turned in place."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")

import torch

import kvit
import kvit.torch
from kvit import reference
from support.appends import COUNTS, rotation_of
from support.torch_caches import to_numpy

pytestmark = pytest.mark.interop

PAIRS = [(None, None), ("int8", "int8"), ("int4", "int4"), ("float8_e4m3", "float8_e4m3"), ("int8", "int4")]


def append(case, k, v, table=None, **options):
    given = {name: case.put(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    table = case.dense if table is None else table
    kvit.torch.append(case.put(k), case.put(v), case.tensors, table, query_indptr=case.indptr(COUNTS), **given)
    kvit.torch.check()


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("form", ["dense", "ragged"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_rows_are_stored_as_the_reference_stores_them_and_nothing_else_is_touched(make, pair, form, layout):
    case = make(pair, layout=layout)  # every byte of it poison
    k, v = case.rows()
    reference.append(case.cache, case.table, k, v, COUNTS)
    append(case, k, v, getattr(case, form))
    case.assert_pools_are_the_references()


@pytest.mark.parametrize(
    "scaling",
    [None, {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0, 3.0] * 8, "length": 100,
            "original_max_position_embeddings": 64, "factor": 4.0}],
    ids=["plain", "lists of numbers"],
)  # fmt: skip
def test_rows_and_queries_turn_as_the_rope_in_words_says(make, scaling):
    case = make(("int8", "int8"))
    rope = kvit.Rope(64, 50000.0, rotary_dim=32, interleaved=True, scaling=scaling)
    k, v = case.rows()
    q = case.random(sum(COUNTS), 6, 64)
    positions = case.rng.integers(0, 1 << 20, len(k)).astype(np.int32)
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope), positions=positions)
    turned = reference.rotate(q, positions, rotation_of(rope))
    given = case.put(q)
    append(case, k, v, q=given, rope=kvit.torch.rope_words(rope), positions=positions)
    case.assert_pools_are_the_references()
    np.testing.assert_array_equal(to_numpy(given, np.uint16), turned.view(np.uint16))


def test_biases_norms_and_prefixes_reach_the_operation(make):
    case = make()
    k, v = case.rows()
    q = case.random(sum(COUNTS), 6, 64)
    biases = {name: case.random(heads, 64) for name, heads in (("k_bias", 3), ("v_bias", 3), ("q_bias", 6))}
    prefix = np.array([34, 0, 0, 0], np.int32)  # the first two new tokens of the first sequence are there already
    weights = {name: case.random(64) for name in ("k_norm", "q_norm")}
    rope = kvit.Rope(64)
    norms = {name: reference.RowNorm(weight, 1e-5, 1.0) for name, weight in weights.items()}
    rotation = rotation_of(rope)
    stored = {"k_bias": biases["k_bias"], "v_bias": biases["v_bias"], "k_norm": norms["k_norm"]}
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation, prefix_lengths=prefix, **stored)
    places = reference.token_positions(case.table, COUNTS)
    turned = reference.rotate(q, places, rotation, biases["q_bias"], norms["q_norm"])
    given = case.put(q)
    append(
        case, k, v, q=given, rope=kvit.torch.rope_words(rope), norm_eps=1e-5, norm_offset=1.0, prefix_lengths=prefix,
        **biases, **weights,
    )  # fmt: skip
    case.assert_pools_are_the_references()
    np.testing.assert_array_equal(to_numpy(given, np.uint16), turned.view(np.uint16))


def test_halves_of_one_tensor_and_slices_of_one_projection_are_read_and_written_in_place(make, device):
    case = make()
    both = torch.stack([case.tensors.k, case.tensors.v], dim=1)  # [pages, 2, ...], as vLLM keeps it
    k, v = case.rows()
    fused = case.put(np.concatenate([case.random(len(k), 6, 64), k, v], axis=1))
    reference.append(case.cache, case.table, k, v, COUNTS)
    cache = case.tensors._replace(k=both[:, 0], v=both[:, 1])
    kvit.torch.append(fused[:, 6:9], fused[:, 9:], cache, case.dense, query_indptr=case.indptr(COUNTS))
    kvit.torch.check()
    case.pools["k"].copy_(both[:, 0])
    case.pools["v"].copy_(both[:, 1])
    case.assert_pools_are_the_references()


def test_autograd_sees_that_the_cache_was_written(make):
    # What it has saved of the cache is gone: PyTorch refuses the backward, which would be of other numbers.
    case = make()
    case.fill()
    weight = torch.ones((), dtype=torch.bfloat16, device=case.tensors.k.device, requires_grad=True)
    product = (case.tensors.k * weight).sum()
    append(case, *case.rows())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
