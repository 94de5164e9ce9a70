"""What kvit.jax does not do, and in which words it says so: while a program is traced wherever that is possible."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs pip install '.[test-interop]'")

import jax
import jax.numpy as jnp

import kvit
import kvit.jax
from support.jax_caches import ONE_NEW

pytestmark = pytest.mark.interop


@pytest.fixture
def case(make):
    found = make(lengths=ONE_NEW)
    found.fill()
    return found


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_vmap_is_refused_by_name(case, outer):
    cache, rows = case.arrays, case.put(case.random(2, 4, 3, 64))
    calls = {
        "attention": lambda q: kvit.jax.attention(q, cache, case.dense),
        "append": lambda k: kvit.jax.append(k, k, cache, case.dense),
        "gather": lambda x: kvit.jax.gather(dataclasses.replace(cache, k=cache.k + x[0, 0, 0]), case.dense, 4),
    }
    for name, call in calls.items():
        with pytest.raises(kvit.KvitError, match=f"kvit.jax.{name} has no vmap.*page table"):
            outer(jax.vmap(call))(rows)


def test_derivatives_are_refused_by_name_and_stop_gradient_helps(case):
    cache, q = case.arrays, case.put(case.random(4, 6, 64))

    def loss(q, hide=lambda x: x):
        return (kvit.jax.attention(hide(q), cache, case.dense) * q).astype(jnp.float32).sum()

    with pytest.raises(kvit.KvitError, match="kvit.jax.attention has no derivative.*stop_gradient"):
        jax.grad(loss)(q)
    out = kvit.jax.attention(q, cache, case.dense)
    np.testing.assert_array_equal(np.asarray(jax.grad(lambda q: loss(q, jax.lax.stop_gradient))(q)), np.asarray(out))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda case: {"q": case.put(case.random(4, 4, 64))}, kvit.ShapeError, "4 query heads and 3 KV heads"),
        (lambda case: {"q": case.put(case.random(4, 6, 32))}, kvit.ShapeError, r"q has shape \[4, 6, 32\]"),
        (lambda case: {"q": case.put(case.random(5, 6, 64))}, kvit.ShapeError, "q has 5 rows for 4 sequences"),
        (lambda case: {"q": case.put(case.random(4, 6, 64)).astype("float16")}, kvit.DtypeError, "must be float16"),
        (lambda case: {"q": case.put(case.random(4, 6, 64)).astype("float32")}, kvit.DtypeError, "must be float32"),
        (lambda case: {"table": 3}, TypeError, "table is a int; give a kvit.jax.TableArrays"),
        (lambda case: {"lengths": case.put(np.ones(4, np.float32))}, kvit.DtypeError, "lengths is float32"),
        (lambda case: {"lengths": case.put(np.ones(3, np.int32))}, kvit.ShapeError, "pages has shape"),
        (lambda case: {"cache": dataclasses.replace(case.arrays, layout="HDN")}, kvit.LayoutError, "layout is 'HDN'"),
        (lambda case: {"cache": dataclasses.replace(case.arrays, kv="int7")}, kvit.DtypeError, "int7"),
        (lambda case: {"sinks": case.put(np.ones(5, np.float32))}, kvit.ShapeError, r"sinks has shape \[5\]"),
        (lambda case: {"spans": case.put(np.ones((4, 3), np.int32))}, kvit.ShapeError, "spans has shape"),
        (lambda case: {"softcap": -1.0}, kvit.ShapeError, "softcap is -1"),
        (lambda case: {"window": (1, 2, 3)}, kvit.ShapeError, "window is"),
    ],
)
def test_what_does_not_fit_is_refused_while_the_program_is_traced(case, change, error, words):
    given = {"q": case.put(case.random(4, 6, 64)), "cache": case.arrays, "table": case.dense, **change(case)}
    if "lengths" in given:
        given["table"] = dataclasses.replace(case.dense, lengths=given.pop("lengths"))
    with pytest.raises(error, match=words):
        jax.eval_shape(lambda: kvit.jax.attention(**given))


def test_rows_of_append_that_do_not_fit_are_refused_while_the_program_is_traced(case):
    k, cache = case.put(case.random(4, 3, 64)), case.arrays
    with pytest.raises(kvit.ShapeError, match=r"v has shape \[4, 3, 32\]"):
        kvit.jax.append(k, k[..., :32], cache, case.dense)
    with pytest.raises(kvit.ShapeError, match="k has 4 rows and v 8"):
        kvit.jax.append(k, jnp.concatenate([k, k]), cache, case.dense)
    with pytest.raises(kvit.ShapeError, match="k has 3 rows for 4 sequences"):
        kvit.jax.gather(cache, case.dense, 3)


def test_what_only_the_operation_knows_is_said_when_the_program_runs(case):
    q = case.put(case.random(4, 6, 64))
    with pytest.raises(Exception, match="ShapeError: split_tokens is 3.*the nearest that would do"):
        kvit.jax.attention(q, case.arrays, case.dense, split_tokens=3).block_until_ready()
    assert kvit.jax.attention(q, case.arrays, case.dense).shape == (4, 6, 64)


def test_a_wrong_page_id_is_told_by_check_and_told_once(case):
    pages = case.dense.pages.at[3, 1].set(99)
    q = case.put(case.random(4, 6, 64))
    out = kvit.jax.attention(q, case.arrays, dataclasses.replace(case.dense, pages=pages))
    with pytest.raises(kvit.PageTableError, match="page 1 of sequence 3 has id 99"):
        kvit.jax.check(out)
    kvit.jax.check(out)
    assert np.isnan(out[3]).all() and not np.isnan(out[:3]).any()


def test_clear_gives_back_what_was_made_and_calls_go_on(case):
    run = jax.jit(kvit.jax.attention)
    q, cache = case.put(case.random(4, 6, 64)), case.arrays
    before = np.asarray(run(q, cache, case.dense))
    kvit.jax.clear()
    np.testing.assert_array_equal(np.asarray(run(q, cache, case.dense)), before)
