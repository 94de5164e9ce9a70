"""The custom calls as JAX sees them: registered for every platform, made with their shapes, and refused under vmap."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.custom_batching
import jax.numpy as jnp

from kvit._native import xla_handlers
from kvit.errors import KvitError
from kvit.jax import call

for _platform, _handler in xla_handlers.capsules().items():
    for _family in ("attention", "append", "gather"):
        jax.ffi.register_ffi_target(f"kvit_{_family}", _handler, platform=_platform)

Shape = tuple[tuple[int, ...], Any]
"""(shape, dtype) of a result."""


def custom_call(
    family: str,
    arguments: Mapping[str, jax.Array],
    results: Mapping[str, Shape],
    *,
    dtype: Any,
    cache: Mapping[str, Any],
    options: Mapping[str, Any],
    aliased: Sequence[str] = (),
) -> tuple[jax.Array, ...]:
    """The results of a custom call, in their order.

    dtype           of the rows of the cache's queries
    cache, options  words and numbers of the cache, and of the operation: plain ones, for they become JSON
    aliased         results that are arguments of the same name, in the same memory
    """
    words = json.dumps(
        {
            "family": family,
            "arguments": list(arguments),
            "results": list(results),
            "dtype": jnp.dtype(dtype).name,
            "cache": dict(cache),
            "options": {name: value for name, value in options.items() if value is not None},
        },
        allow_nan=True,
    )
    aliases = tuple((list(arguments).index(name), list(results).index(name)) for name in aliased)
    shapes = tuple((tuple(shape), jnp.dtype(kind)) for shape, kind in results.values())
    return _callable(family, words, shapes, aliases)(*arguments.values())


@functools.lru_cache(maxsize=1024)
def _callable(family: str, words: str, shapes: tuple[Shape, ...], aliases: tuple[tuple[int, int], ...]) -> Any:
    run = jax.ffi.ffi_call(
        f"kvit_{family}",
        tuple(jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes),
        input_output_aliases=dict(aliases),
        vmap_method=None,
    )

    @jax.custom_batching.custom_vmap
    def batched(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(run(*arrays, words=words))

    @batched.def_vmap
    def _(axis_size: int, in_batched: Any, *arrays: Any) -> NoReturn:
        raise KvitError(
            f"kvit.jax.{family} has no vmap: a call takes any number of sequences, as rows of the page table; put the "
            "batch there"
        )

    @jax.custom_jvp
    def differentiated(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return batched(*arrays)

    @differentiated.defjvp
    def _(arrays: Any, tangents: Any) -> NoReturn:
        raise KvitError(
            f"kvit.jax.{family} has no derivative, and one was asked for; use jax.lax.stop_gradient on its arrays"
        )

    return differentiated


def check(results: Any) -> None:
    """Wait for `results` and for the streams of all calls; raise PageTableError for what kernels met."""
    jax.block_until_ready(results)
    call.kept.check()


def clear() -> None:
    """Let go of all operations."""
    xla_handlers.forget()
    call.kept.clear()
