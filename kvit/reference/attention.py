"""Attention over contiguous keys and values, and the union of two such results: what every kernel must compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .mask import Window, seen_keys
from .rounding import rounded


class State(NamedTuple):
    """What attention over a set of keys leaves behind: enough to add more keys later (merge_state)."""

    out: NDArray[np.float64]  # [tokens, query_heads, head_dim] softmax-weighted mean of the values; zeros over no keys
    lse: NDArray[np.float64]  # [tokens, query_heads] natural log of the sum of exp(score); -inf over no keys

    def rounded(self, dtype: np.dtype | type) -> tuple[NDArray, NDArray[np.float32]]:
        """(out, lse) as a kernel stores them: out in `dtype`, lse in float32."""
        return rounded(self.out, dtype), rounded(self.lse, np.float32)


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: Window = None,
    chunk: int | None = None,
    spans: ArrayLike | None = None,
    tree: ArrayLike | None = None,
    softcap: float | None = None,
    sinks: ArrayLike | None = None,
    alibi: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> State:
    """softmax(scale * q k^T) v, one query token at a time, in float64.

    q            [queries, query_heads, head_dim]
    k, v         [keys, kv_heads, head_dim]; query head h reads KV head h // (query_heads / kv_heads). Rows of V may
                 have other channels than those of K; then outputs have as many as they
    scale        head_dim ** -0.5 if absent
    window, chunk, spans [queries, 2], tree [queries, words]
                 what queries see, as seen_keys defines it
    temperature  [positions] a query's scores are multiplied by the element at its position, or the last one behind them
    softcap      a score s becomes softcap * tanh(s / softcap); after temperature
    alibi        [query_heads] slopes: a score loses slope * |position of the query - that of the key|; after softcap
    sinks        [query_heads] scores of no key: they join the sum, and so the lse, and nothing joins the output

    Keys that a query does not see are left out, not weighted with zero: whatever they hold, NaN included, changes
    nothing. A query that sees no key gives zeros, and an lse of -inf, or of its sink.
    Vaswani et al., Attention Is All You Need, 2017; grouped heads: Ainslie et al., GQA, 2023; ALiBi: Press et al.,
    2021; sinks: Xiao et al., StreamingLLM, 2023, and gpt-oss; softcap: Gemma 2; temperature: Llama 4.
    """
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    num_queries, query_heads, head_dim = q.shape
    num_keys, kv_heads, _ = k.shape
    scale = head_dim**-0.5 if scale is None else scale
    grouped = q.reshape(num_queries, kv_heads, query_heads // kv_heads, head_dim)

    out = np.zeros((num_queries, query_heads, v.shape[-1]))
    lse = np.full((num_queries, query_heads), -np.inf)
    of_heads = (kv_heads, query_heads // kv_heads, 1)
    sink = np.full(of_heads, -np.inf) if sinks is None else np.asarray(sinks, np.float64).reshape(of_heads)
    for i in range(num_queries):
        seen, position, positions = seen_keys(
            num_keys,
            num_queries,
            i,
            causal=causal,
            window=window,
            chunk=chunk,
            span=None if spans is None else np.asarray(spans)[i],
            tree=None if tree is None else np.asarray(tree)[i],
        )
        factor = 1.0
        if temperature is not None:
            factor = float(np.asarray(temperature, np.float64)[np.clip(position, 0, len(temperature) - 1)])
        scores = factor * scale * np.einsum("hgc,thc->hgt", grouped[i], k[seen])
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if alibi is not None:
            scores = scores - np.asarray(alibi, np.float64).reshape(of_heads) * np.abs(position - positions[seen])
        largest = np.maximum(scores.max(axis=-1, keepdims=True, initial=-np.inf), sink)
        if not seen.any():
            lse[i] = sink.reshape(query_heads)
            continue
        weights = np.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True) + np.exp(sink - largest)
        out[i] = np.einsum("hgt,thc->hgc", weights / total, v[seen]).reshape(query_heads, -1)
        lse[i] = (largest + np.log(total)).reshape(query_heads)
    return State(out, lse)


def merge_state(a: State | tuple[ArrayLike, ArrayLike], b: State | tuple[ArrayLike, ArrayLike]) -> State:
    """The state over the union of two disjoint sets of keys, from the states over each: merge_states of both."""
    return merge_states((a, b))


def merge_states(states: Iterable[State | tuple[ArrayLike, ArrayLike]]) -> State:
    """The state over the union of disjoint sets of keys, from the states (out, lse) over each: one or more.

    An lse of -inf says that there were no keys, and so does +inf, as vLLM and FlashAttention write it. The state over
    no keys at all is zeros and -inf. Flash-Decoding, Dao et al., 2023.
    """
    parts = [tuple(np.asarray(x).astype(np.float64) for x in state) for state in states]
    outs, lses = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    lses = np.where(np.isposinf(lses), -np.inf, lses)
    top = lses.max(axis=0)  # NaN where any is
    # Over no keys the largest is -inf: subtracting 0 instead keeps the weights at exp(-inf) = 0.
    weights = np.exp(lses - np.where(np.isneginf(top), 0.0, top))
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        lse = np.where(np.isneginf(top), 0.0, top) + np.log(total)
    # An empty part is left out, not weighted with zero, so that its output may hold anything.
    shares = weights / np.where(total == 0.0, 1.0, total)
    out = np.where(weights[..., None] == 0.0, 0.0, shares[..., None] * outs).sum(axis=0)
    return State(out, lse)
