"""Calls of kvit.jax at the same time: of threads, of one program, and of several devices."""

import json

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs pip install '.[test-interop]'")

import jax

import kvit
import kvit.jax
from support.jax_caches import ONE_NEW
from support.processes import run_python
from support.threads import run_side_by_side

pytestmark = pytest.mark.interop


def test_threads_and_programs_of_many_calls_give_the_same_bits(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    cache, queries = case.arrays, [case.put(case.random(4, 6, 64)) for _ in range(4)]
    run = jax.jit(lambda q: kvit.jax.attention(q, cache, case.dense))
    want = [np.asarray(run(q)) for q in queries]

    def attend(i):
        return [np.array_equal(np.asarray(run(queries[i % 4])), want[i % 4]) for _ in range(5)]

    assert all(map(all, run_side_by_side(attend)))
    together = jax.jit(lambda queries: [kvit.jax.attention(q, cache, case.dense) for q in queries])
    # Nothing orders these calls, so XLA may run them side by side.
    assert all(np.array_equal(np.asarray(found), one) for found, one in zip(together(queries), want, strict=True))


# Two devices of the host, each with half of the heads. The number of devices must be said before JAX starts.
ON_TWO_DEVICES = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import json
import jax, jax.numpy as jnp, numpy as np
import kvit.jax
from jax.sharding import Mesh, PartitionSpec

mesh = Mesh(np.array(jax.devices()), ("heads",))
rng = np.random.default_rng(0)
q, k, *pools = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
                for shape in ((2, 8, 64), (2, 4, 64), (8, 16, 4, 64), (8, 16, 4, 64)))
cache = kvit.jax.CacheArrays(*pools)
table = kvit.jax.TableArrays(jnp.array([[3, 1], [5, 0]], jnp.int32), jnp.array([20, 7], jnp.int32))

def layer(q, k, cache, table):
    cache = kvit.jax.append(k, k, cache, table)
    return kvit.jax.attention(q, cache, table), cache

rows = PartitionSpec(None, "heads", None)
pages = jax.tree.map(lambda _: PartitionSpec(None, None, "heads", None), cache)
everywhere = jax.tree.map(lambda _: PartitionSpec(), table)
split = jax.shard_map(layer, mesh=mesh, in_specs=(rows, rows, pages, everywhere), out_specs=(rows, pages))
out, new = jax.jit(split)(q, k, cache, table)
whole, expected = layer(q, k, cache, table)
print(json.dumps([len(out.sharding.device_set), bool((out == whole).all()), bool((new.k == expected.k).all())]))
"""


def test_heads_may_lie_on_several_devices():
    if not hasattr(jax, "shard_map"):
        pytest.skip("needs a JAX with jax.shard_map")
    status, out, error = run_python(ON_TWO_DEVICES)
    assert status == 0, error
    assert json.loads(out) == [2, True, True]


def test_a_process_may_end_with_calls_under_way():
    # Python waits for those that are inside, and the others are refused: no thread is stopped with a lock.
    program = """
import jax, jax.numpy as jnp, kvit.jax
pool = jnp.zeros((16, 16, 4, 64), jnp.bfloat16)
table = kvit.jax.TableArrays(jnp.zeros((4, 8), jnp.int32), jnp.full(4, 128, jnp.int32))

@jax.jit
def run(q, cache):
    for _ in range(10):
        q = kvit.jax.attention(q, cache, table)
    return q

run(jnp.zeros((4, 8, 64), jnp.bfloat16), kvit.jax.CacheArrays(pool, pool))
print("dispatched")
"""
    status, out, _ = run_python(program)
    assert (status, out) == (0, "dispatched")
