"""The functions that programs call, outside jax.jit and inside: arguments in kvit's words, shapes checked by kvit."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kvit import _checks
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import DtypeError, ShapeError
from kvit.jax import targets
from kvit.jax.call import described, table_of, view_of, words_of_64
from kvit.layouts.views import CacheView
from kvit.ops import modifiers
from kvit.ops.operation import rows_per_sequence


@dataclasses.dataclass(frozen=True)
class CacheArrays:
    """K and V in pages, in JAX's arrays: what kvit.CacheView takes, and in the same shapes. A pytree.

    k, v                NHD: [pages, page_size, kv_heads, head_dim]; HND: [pages, kv_heads, page_size, head_dim]. int4
                        is uint8 [..., head_dim / 2]
    k_params, v_params  of int8 and int4: (scale, zero) of every row, in the dtype of the queries
    k_scale, v_scale    of float8: float32 [], [kv_heads] or of every row; ones if absent
    layout              "NHD" or "HND"
    kv                  how they are stored, one name or a pair (of K, of V); what their dtype says if absent
    """

    k: jax.Array
    v: jax.Array
    k_params: jax.Array | None = None
    v_params: jax.Array | None = None
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None
    layout: str = "NHD"
    kv: str | tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class TableArrays:
    """Which pages hold which sequence: int32, as kvit.PageTable has it. A pytree.

    pages    [sequences, slots] page ids, in the order of the tokens; with indptr [entries], of all sequences end to end
    lengths  [sequences] tokens of each sequence, those that the call adds or asks about included
    indptr   [sequences + 1] where each sequence's entries of `pages` begin; None: pages has an axis of sequences
    """

    pages: jax.Array
    lengths: jax.Array
    indptr: jax.Array | None = None


_OF_SCORES = ("sinks", "alibi", "temperature")
_ARRAYS = ["k", "v", "k_params", "v_params", "k_scale", "v_scale"]
jax.tree_util.register_dataclass(CacheArrays, data_fields=_ARRAYS, meta_fields=["layout", "kv"])
jax.tree_util.register_dataclass(TableArrays, data_fields=["pages", "lengths", "indptr"], meta_fields=[])


def attention(
    q: jax.Array,
    cache: CacheArrays,
    table: TableArrays,
    *,
    query_indptr: jax.Array | None = None,
    scale: float | None = None,
    causal: bool = True,
    window: modifiers.Window = None,
    chunk: int | None = None,
    softcap: float | None = None,
    spans: jax.Array | None = None,
    tree: jax.Array | None = None,
    sinks: jax.Array | None = None,
    alibi: jax.Array | None = None,
    temperature: jax.Array | None = None,
    tokens_per_sequence: int = 1,
    split_tokens: int | None = None,
    return_lse: bool = False,
) -> Any:
    """Attend new tokens to the cache, which holds their K and V already. One launch.

    q           [tokens, query_heads, head_dim] in float16 or bfloat16, sequence after sequence
    tree        int64 [tokens, 1 or 2]; without jax_enable_x64 uint32 [tokens, 2 or 4], the low half of a word first
    return_lse  whether to return (out, lse), lse float32 [tokens, query_heads]
    The others are those of kvit.Attention and its calls. Numbers and words are Python's own, and are compiled in.

    Returns out [tokens, query_heads, v_dim] in q's dtype. Rows that no sequence has are uninitialised.
    Raises ShapeError, DtypeError, LayoutError while the program is traced, KvitError under vmap. What is found later
    is XLA's JaxRuntimeError, with kvit's words in it.
    """
    given = _named(
        q=q, query_indptr=query_indptr, spans=spans, tree=tree, sinks=sinks, alibi=alibi, temperature=temperature,
        **_places(cache, table),
    )  # fmt: skip
    view, seen = _checked("q", given, cache, q.dtype)
    _require_rows("q", q, view.dtype.name, query_heads=None, head_dim=view.k_dim)
    _checks.group_size(q.shape[1], view.kv_heads)
    scores = dict(window=window, chunk=chunk, softcap=softcap, **{name: seen.get(name) for name in _OF_SCORES})
    made = modifiers.modifiers("host", q.shape[1], spans=spans is not None, tree=tree is not None, **scores)
    modifiers.of_call(made, "host", q.shape[0], seen.get("spans"), seen.get("tree"))
    results = {"out": ((*q.shape[:2], view.v_dim), q.dtype)}
    if return_lse:
        results["lse"] = (q.shape[:2], jnp.float32)
    options = dict(
        scale=None if scale is None else float(scale),
        causal=bool(causal),
        window=window,
        chunk=chunk,
        softcap=None if softcap is None else float(softcap),
        tokens_per_sequence=tokens_per_sequence,
        split_tokens=split_tokens,
    )
    found = targets.custom_call("attention", given, results, dtype=q.dtype, cache=_words(cache), options=options)
    return found if return_lse else found[0]


def append(
    k: jax.Array,
    v: jax.Array,
    cache: CacheArrays,
    table: TableArrays,
    *,
    query_indptr: jax.Array | None = None,
    q: jax.Array | None = None,
    rope: str | None = None,
    positions: jax.Array | None = None,
    prefix_lengths: jax.Array | None = None,
    k_bias: jax.Array | None = None,
    v_bias: jax.Array | None = None,
    q_bias: jax.Array | None = None,
    k_norm: jax.Array | None = None,
    q_norm: jax.Array | None = None,
    norm_eps: float = 1e-6,
    norm_offset: float = 0.0,
) -> Any:
    """The cache with the rows of k and v as the last tokens of their sequences. One launch.

    k, v  [tokens, kv_heads, head_dim] in the dtype of the queries, sequence after sequence
    q     [tokens, query_heads, head_dim]: comes back normalised and turned as k is
    rope  rope_words(kvit.Rope(...)): how k and q turn with their positions; not at all if absent
    The others are those of kvit.Append and its calls.

    Returns the new cache; with q (cache, q). The arrays of the old cache are left as they are: XLA copies them first,
    unless they are donated to the program (jax.jit's donate_argnums) or made in it, and used no more. Then the new
    cache is the old memory, with the new rows written into it.
    Raises as attention does.
    """
    given = _named(
        k=k, v=v, q=q, query_indptr=query_indptr, positions=positions, prefix_lengths=prefix_lengths, k_bias=k_bias,
        v_bias=v_bias, q_bias=q_bias, k_norm=k_norm, q_norm=q_norm, **_places(cache, table),
    )  # fmt: skip
    view, _ = _checked("k", given, cache, k.dtype)
    for name, rows, channels in (("k", k, view.k_dim), ("v", v, view.v_dim)):
        _require_rows(name, rows, view.dtype.name, kv_heads=view.kv_heads, head_dim=channels)
    if k.shape[0] != v.shape[0]:
        raise ShapeError(f"k has {k.shape[0]} rows and v {v.shape[0]}; give a row of each for every new token")
    pools = [name for name in ("k_cache", "v_cache", "k_params", "v_params") if name in given]
    results = {name: (given[name].shape, given[name].dtype) for name in pools}
    if q is not None:
        _require_rows("q", q, view.dtype.name, query_heads=None, head_dim=view.k_dim)
        results["q_out"] = (q.shape, q.dtype)
    options = dict(rope=rope)
    if k_norm is not None or q_norm is not None:
        options.update(norm_eps=float(norm_eps), norm_offset=float(norm_offset))
    found = targets.custom_call(
        "append", given, results, dtype=k.dtype, cache=_words(cache), options=options, aliased=pools
    )
    written = dict(zip((name.removesuffix("_cache") for name in pools), found, strict=False))
    new = dataclasses.replace(cache, **written)
    return new if q is None else (new, found[-1])


def gather(
    cache: CacheArrays,
    table: TableArrays,
    tokens: int,
    *,
    query_indptr: jax.Array | None = None,
    dtype: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """The last tokens of the sequences out of the cache, decoded. One launch.

    tokens        rows of all sequences together: as many of each, unless query_indptr says where each one's begin
    query_indptr  int32 [sequences + 1]
    dtype         of the rows, where the cache does not say it: float16 or bfloat16, which is taken if absent

    Returns (k, v), [tokens, kv_heads, head_dim], sequence after sequence. Rows that no sequence has are uninitialised.
    Raises as attention does.
    """
    given = _named(query_indptr=query_indptr, **_places(cache, table))
    view, _ = _checked("k", given, cache, dtype, _checks.whole("tokens", tokens))
    results = {side: ((tokens, view.kv_heads, dim), view.dtype) for side, dim in (("k", view.k_dim), ("v", view.v_dim))}
    return targets.custom_call("gather", given, results, dtype=view.dtype, cache=_words(cache), options={})


def check(results: Any = None) -> None:
    """Wait for `results`, any pytree of arrays, and raise PageTableError if a kernel met a page id, a length or an
    offset that cannot be. Calls that nobody has waited for may not have run yet.
    """
    targets.check(results)


def clear() -> None:
    """Give back what was made for the calls. All of them must have run."""
    targets.clear()


def _named(**arrays: Any) -> dict[str, jax.Array]:
    """Those that are given, as JAX's arrays."""
    return {name: jnp.asarray(array) for name, array in arrays.items() if array is not None}


def _places(cache: CacheArrays, table: TableArrays) -> dict[str, Any]:
    _checks.instance("cache", cache, CacheArrays, "a kvit.jax.CacheArrays")
    _checks.instance("table", table, TableArrays, "a kvit.jax.TableArrays")
    return dict(
        k_cache=cache.k,
        v_cache=cache.v,
        k_params=cache.k_params,
        v_params=cache.v_params,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
        pages=table.pages,
        lengths=table.lengths,
        indptr=table.indptr,
    )


def _words(cache: CacheArrays) -> dict[str, Any]:
    k_codec, v_codec = cache.kv if isinstance(cache.kv, tuple | list) else (cache.kv, cache.kv)
    return dict(layout=cache.layout, k_codec=k_codec, v_codec=v_codec)


def _checked(
    rows: str, given: dict[str, jax.Array], cache: CacheArrays, dtype: Any, tokens: int | None = None
) -> tuple[CacheView, dict[str, Tensor]]:
    """The cache of a call, and its other arguments, as far as shapes and types say them. Raises what they raise.

    rows    name of the argument that has the call's rows; `tokens` where none has
    dtype   of the rows
    """
    seen = described(given)
    of_cache = {
        name: array for name, array in seen.items() if name not in ("k_scale", "v_scale")
    }  # which it would read
    view = view_of(of_cache, dtype=None if dtype is None else jnp.dtype(dtype).name, **_words(cache))
    table = table_of(seen)
    if tokens is not None:
        seen[rows] = Tensor.from_pointer(1 << 40, (tokens,), "uint8", "host")
    rows_per_sequence(rows, seen[rows], table.num_sequences, seen.get("query_indptr"), Stream.default("host"))
    if "tree" in seen:
        seen["tree"] = words_of_64(seen["tree"])
    return view, seen


def _require_rows(name: str, rows: jax.Array, dtype: str, **axes: int | None) -> None:
    if rows.dtype != dtype:
        raise DtypeError(f"{name} is {rows.dtype}; it must be {dtype}, which the cache is for")
    _checks.require_shape(name, rows, tokens=None, **axes)
