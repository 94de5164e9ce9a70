"""The functions that programs call: arguments in kvit's words, handed to the custom operators one by one."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch

from kvit.errors import ShapeError
from kvit.ops.modifiers import Window
from kvit.torch import ops
from kvit.torch.call import kept


class CacheTensors(NamedTuple):
    """K and V in pages, in tensors of the caller: what kvit.CacheView takes, and in the same shapes.

    k, v                NHD: [pages, page_size, kv_heads, head_dim]; HND: [pages, kv_heads, page_size, head_dim]. int4
                        is uint8 [..., head_dim / 2]
    layout              "NHD" or "HND"
    page_size           tokens of a page, for k and v without an axis of pages
    kv                  how they are stored, one name or a pair (of K, of V); what their dtype says if absent
    k_params, v_params  of int8 and int4: (scale, zero) of every row, in the dtype of the queries
    k_scale, v_scale    of float8: float32 [], [kv_heads] or of every row; ones if absent
    """

    k: torch.Tensor
    v: torch.Tensor
    layout: str = "NHD"
    page_size: int | None = None
    kv: str | tuple[str, str] | None = None
    k_params: torch.Tensor | None = None
    v_params: torch.Tensor | None = None
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


class TableTensors(NamedTuple):
    """Which pages hold which sequence: int32, on the device of the cache, as kvit.PageTable has it.

    pages    [sequences, slots] page ids, in the order of the tokens; with indptr [entries], of all sequences end to end
    lengths  [sequences] tokens of each sequence, those that the call adds or asks about included
    indptr   [sequences + 1] where each sequence's entries of `pages` begin; None: pages has an axis of sequences
    """

    pages: torch.Tensor
    lengths: torch.Tensor
    indptr: torch.Tensor | None = None


@overload
def attention(
    q: torch.Tensor, cache: CacheTensors, table: TableTensors, *, return_lse: Literal[False] = False, **options: Any
) -> torch.Tensor: ...
@overload
def attention(
    q: torch.Tensor, cache: CacheTensors, table: TableTensors, *, return_lse: Literal[True], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]: ...
def attention(
    q: torch.Tensor,
    cache: CacheTensors,
    table: TableTensors,
    *,
    query_indptr: torch.Tensor | None = None,
    scale: float | None = None,
    causal: bool = True,
    window: Window = None,
    chunk: int | None = None,
    softcap: float | None = None,
    spans: torch.Tensor | None = None,
    tree: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    alibi: torch.Tensor | None = None,
    temperature: torch.Tensor | None = None,
    tokens_per_sequence: int = 1,
    split_tokens: int | None = None,
    reads_ahead: bool = False,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend new tokens to the cache, which holds their K and V already. One launch.

    q            [tokens, query_heads, head_dim] in float16 or bfloat16, sequence after sequence
    return_lse   whether to return (out, lse), lse float32 [tokens, query_heads]
    The others are those of kvit.Attention and its calls. sinks, alibi and temperature count by their address: give the
    same tensor every time, or each call makes another operation.

    Returns out [tokens, query_heads, v_dim] in q's dtype, allocated by PyTorch. Rows that no sequence has are
    uninitialised.
    Raises KvitError where autograd would record the call, DriverError (the first call of a configuration during a
    capture), and what kvit.Attention raises.
    """
    ops.refuse_gradients("attention", q, cache.k, cache.v, cache.k_params, cache.v_params, sinks, alibi, temperature)
    left, right = _sides(window)
    options = dict(
        query_indptr=query_indptr,
        spans=spans,
        tree=tree,
        sinks=sinks,
        alibi=alibi,
        temperature=temperature,
        scale=scale,
        causal=causal,
        window_left=left,
        window_right=right,
        chunk=chunk,
        softcap=softcap,
        tokens_per_sequence=tokens_per_sequence,
        split_tokens=split_tokens,
        reads_ahead=reads_ahead,
    )
    operator = ops.attention_lse if return_lse else ops.attention
    return operator(q, *_places(cache, table), **_parameters(cache), **options)


def append(
    k: torch.Tensor,
    v: torch.Tensor,
    cache: CacheTensors,
    table: TableTensors,
    *,
    query_indptr: torch.Tensor | None = None,
    q: torch.Tensor | None = None,
    rope: str | None = None,
    positions: torch.Tensor | None = None,
    prefix_lengths: torch.Tensor | None = None,
    k_bias: torch.Tensor | None = None,
    v_bias: torch.Tensor | None = None,
    q_bias: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    q_norm: torch.Tensor | None = None,
    norm_eps: float = 1e-6,
    norm_offset: float = 0.0,
) -> None:
    """Write the rows of k and v into the cache, as the last tokens of their sequences. One launch.

    k, v  [tokens, kv_heads, head_dim] in the dtype of the queries, sequence after sequence; dense channels
    q     [tokens, query_heads, head_dim]: normalised and turned as k is, in place
    rope  rope_words(kvit.Rope(...)): how k and q turn with their positions; not at all if absent
    The others are those of kvit.Append and its calls. k_norm and q_norm count by their address, as attention's sinks.

    The tensors of the cache, and q, are written, and declared so: torch.compile keeps calls in order.
    Raises KvitError where autograd would record the call, DriverError (the first call of a configuration during a
    capture), and what kvit.Append raises.
    """
    ops.refuse_gradients("append", k, v, q, cache.k, cache.v, cache.k_params, cache.v_params, k_bias, v_bias, q_bias,
                         k_norm, q_norm)  # fmt: skip
    ops.append(
        k,
        v,
        *_places(cache, table),
        query_indptr=query_indptr,
        **_parameters(cache),
        q=q,
        rope=rope,
        positions=positions,
        prefix_lengths=prefix_lengths,
        k_bias=k_bias,
        v_bias=v_bias,
        q_bias=q_bias,
        k_norm=k_norm,
        q_norm=q_norm,
        norm_eps=norm_eps,
        norm_offset=norm_offset,
    )


def gather(
    cache: CacheTensors,
    table: TableTensors,
    tokens: int,
    *,
    query_indptr: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the last tokens of the sequences out of the cache, decoded. One launch.

    tokens        rows of all sequences together: as many of each, unless query_indptr says where each one's begin
    query_indptr  int32 [sequences + 1]
    dtype         of the rows, where the cache does not say it: float16 or bfloat16, which is taken if absent

    Returns (k, v), [tokens, kv_heads, head_dim], sequence after sequence, allocated by PyTorch. Rows that no sequence
    has are uninitialised.
    Raises KvitError where autograd would record the call, and what kvit.Gather raises.
    """
    ops.refuse_gradients("gather", cache.k, cache.v, cache.k_params, cache.v_params)
    return ops.gather(
        *_places(cache, table), query_indptr=query_indptr, **_parameters(cache), tokens=tokens, dtype=dtype
    )


def check() -> None:
    """Wait for all calls, and raise PageTableError if a kernel met a page id, a length or an offset that cannot be."""
    kept.check()


def clear() -> None:
    """Wait for all calls and give back what was made for them. CUDA graphs that hold such calls must not run again."""
    kept.clear()


def _sides(window: Window) -> tuple[int | None, int | None]:
    sides = window if isinstance(window, tuple | list) else (window, None)
    if len(sides) != 2:
        raise ShapeError(
            f"window is {window!r}; give a number of keys up to the query's own, or (left, right), of which None is all"
        )
    return sides[0], sides[1]


def _places(cache: CacheTensors, table: TableTensors) -> tuple[Any, ...]:
    return cache.k, cache.v, table.lengths, table.pages, table.indptr


def _parameters(cache: CacheTensors) -> dict[str, Any]:
    k_codec, v_codec = cache.kv if isinstance(cache.kv, tuple | list) else (cache.kv, cache.kv)
    return dict(
        k_params=cache.k_params,
        v_params=cache.v_params,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
        layout=cache.layout,
        page_size=cache.page_size,
        k_codec=k_codec,
        v_codec=v_codec,
    )
