"""kvit.jax.append: the reference's bytes in a new cache, which is the old one's memory only where that was donated."""

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs pip install '.[test-interop]'")

import functools
import re

import jax

import kvit
import kvit.jax
from kvit import reference
from support.appends import COUNTS, rotation_of
from support.jax_caches import ONE_NEW, bits_of
from support.quantised import attention_bound_of
from support.tolerances import assert_within

pytestmark = pytest.mark.interop

PAIRS = [(None, None), ("int8", "int8"), ("int4", "int4"), ("float8_e4m3", "float8_e4m3"), ("int8", "int4")]


def addresses(cache):
    return [array.unsafe_buffer_pointer() for array in (cache.k, cache.v)]


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("form", ["dense", "ragged"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_rows_are_stored_as_the_reference_stores_them_and_the_old_cache_is_left_alone(make, pair, form, layout):
    case = make(pair, layout=layout)  # every byte of it poison
    k, v = case.rows()
    old = case.arrays
    before = {name: array.copy() for name, array in case.host.items()}
    run = jax.jit(lambda k, v, c, t, i: kvit.jax.append(k, v, c, t, query_indptr=i))
    new = run(case.put(k), case.put(v), old, getattr(case, form), case.indptr(COUNTS))
    kvit.jax.check(new)
    reference.append(case.cache, case.table, k, v, COUNTS)
    case.assert_holds_the_references(new)
    np.testing.assert_array_equal(bits_of(old.k), before["k"].view(np.uint8))
    np.testing.assert_array_equal(bits_of(old.v), before["v"].view(np.uint8))


@pytest.mark.parametrize("pair", [(None, None), ("int8", "int8")], ids=str)
def test_a_donated_cache_is_written_in_place(make, pair):
    case = make(pair)
    k, v = case.rows()
    old = case.arrays
    where = addresses(old)
    run = jax.jit(lambda k, v, c, t, i: kvit.jax.append(k, v, c, t, query_indptr=i), donate_argnums=2)
    new = run(case.put(k), case.put(v), old, case.dense, case.indptr(COUNTS))
    kvit.jax.check(new)
    assert addresses(new) == where and old.k.is_deleted() and old.v.is_deleted()
    reference.append(case.cache, case.table, k, v, COUNTS)
    case.assert_holds_the_references(new)


def test_a_cache_that_is_read_after_the_append_is_copied_though_it_was_donated(make):
    # XLA must copy: the program goes on to read what the append would have written over.
    case = make(lengths=ONE_NEW)
    case.fill()
    q, (k, v) = case.random(4, 6, 64), case.rows([1] * 4)

    @functools.partial(jax.jit, donate_argnums=3)
    def run(q, k, v, cache, table):
        new = kvit.jax.append(k, v, cache, table)
        return kvit.jax.attention(q, cache, table), kvit.jax.attention(q, new, table), new

    before, after, new = run(case.put(q), case.put(k), case.put(v), case.arrays, case.dense)
    for found in (before, after):
        state = reference.paged_attention(q, case.cache, case.table)
        assert_within(np.asarray(found), state.out, attention_bound_of(case.cache, case.table, q, None, case.dtype))
        reference.append(case.cache, case.table, k, v)
    case.assert_holds_the_references(new)


def test_a_loop_carries_a_cache_through_its_steps_without_copies(make):
    # lax.scan: each step appends a token to every sequence and attends; the reference does the same beside it.
    case = make(("int8", "int8"), lengths=[length + 3 for length in ONE_NEW])
    case.fill()
    steps, rope = 4, kvit.Rope(64)
    words = kvit.jax.rope_words(rope)
    q, k, v = case.random(steps, 4, 6, 64), case.random(steps, 4, 3, 64), case.random(steps, 4, 3, 64)
    first = np.array(ONE_NEW, np.int32)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(cache, pages, lengths, q, k, v):
        def step(carry, rows):
            cache, lengths = carry
            table = kvit.jax.TableArrays(pages, lengths)
            cache, turned = kvit.jax.append(rows[1], rows[2], cache, table, q=rows[0], rope=words)
            return (cache, lengths + 1), kvit.jax.attention(turned, cache, table)

        return jax.lax.scan(step, (cache, lengths), (q, k, v))

    given = case.arrays, case.dense.pages, case.put(first), case.put(q), case.put(k), case.put(v)
    compiled = run.lower(*given).compile()
    assert re.search(r"= u8\[[^=]* parameter\(", compiled.as_text())  # how XLA writes a pool
    assert not re.search(r"= u8\[[^=]* copy\(", compiled.as_text())
    (cache, _), out = compiled(*given)
    kvit.jax.check(out)
    for i in range(steps):
        table = reference.Table(case.table.pages, [length + i for length in ONE_NEW])
        reference.append(case.cache, table, k[i], v[i], rotation=rotation_of(rope))
        turned = reference.rotate(q[i], reference.token_positions(table, [1] * 4), rotation_of(rope))
        state = reference.paged_attention(turned, case.cache, table)
        assert_within(np.asarray(out[i]), state.out, attention_bound_of(case.cache, table, turned, None, case.dtype))
    case.assert_holds_the_references(cache)


def test_biases_norms_positions_and_prefixes_reach_the_operation(make):
    case = make()
    k, v = case.rows()
    q = case.random(sum(COUNTS), 6, 64)
    biases = {name: case.random(heads, 64) for name, heads in (("k_bias", 3), ("v_bias", 3), ("q_bias", 6))}
    weights = {name: case.random(64) for name in ("k_norm", "q_norm")}
    numbers = {
        "prefix_lengths": np.array([34, 0, 0, 0], np.int32),  # two of the first sequence's new tokens are there already
        "positions": case.rng.integers(0, 1 << 20, len(k)).astype(np.int32),
    }
    rope = kvit.Rope(64, rotary_dim=32)
    arrays = {name: case.put(array) for name, array in {**biases, **weights, **numbers}.items()}
    words = kvit.jax.rope_words(rope)

    @jax.jit
    def run(k, v, cache, table, indptr, q, arrays):
        options = {"rope": words, "norm_eps": 1e-5, "norm_offset": 1.0}
        return kvit.jax.append(k, v, cache, table, query_indptr=indptr, q=q, **arrays, **options)

    old = case.arrays
    new, turned = run(case.put(k), case.put(v), old, case.dense, case.indptr(COUNTS), case.put(q), arrays)
    kvit.jax.check(new)
    norms = {name: reference.RowNorm(weight, 1e-5, 1.0) for name, weight in weights.items()}
    stored = {"k_bias": biases["k_bias"], "v_bias": biases["v_bias"], "k_norm": norms["k_norm"]}
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope), **numbers, **stored)
    case.assert_holds_the_references(new)
    want = reference.rotate(q, numbers["positions"], rotation_of(rope), biases["q_bias"], norms["q_norm"])
    np.testing.assert_array_equal(np.asarray(turned).view(np.uint16), want.view(np.uint16))
