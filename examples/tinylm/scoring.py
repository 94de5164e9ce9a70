"""How well a model predicts text, with K and V through a pair of codecs: what the evaluate.py of both models share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from model import Attend, Config

import kvit
from kvit.reference import Pair, Smoothing

PAGE_SIZE = 16  # tokens
QUERIES = 512  # that attend at a time: the scores of a long text would fill the memory
DTYPE = "float16"  # of rows of K and V before any codec: what "16" stands for


def token_bytes(pair: Pair, config: Config) -> int:
    """Bytes of K and V of a token in all layers, parameters included."""
    return config.layers * config.kv_heads * pair.row_bytes(DTYPE, config.head_dim)


class Score(NamedTuple):
    """How well the model predicts with one pair."""

    pair: Pair
    bits: np.ndarray  # [windows] bits per byte of each window

    def over(self, base: Score) -> tuple[float, float]:
        """Bits per byte more than `base`, over the same windows, and the standard error of that."""
        more = self.bits - base.bits
        return float(more.mean()), float(more.std(ddof=min(1, len(more) - 1)) / math.sqrt(len(more)))


def margin(error: float, windows: int) -> float:
    """Half a 95 % confidence interval of a mean over windows of which `error` is the standard error.

    The quantile of Student's t by its expansion around the normal one: right to 0.2 % from 10 windows.
    """
    z, freedom = 1.959964, max(1, windows - 1)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t * error


def coded_attention(pair: Pair, smoothings: Sequence[kvit.KeySmoothing] = ()) -> Attend:
    """Attention of one window to itself, over K and V as their codecs leave them.

    Everything is there at once, so nothing is stored between calls: encoding a token depends on no other.

    smoothings  of the keys of each layer; none if there are none
    """
    codecs = pair.codecs(DTYPE)
    by_layer = [Smoothing(own.mean, own.width) for own in smoothings]

    def attend(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        if by_layer:
            q, k = (x.astype(np.float16).astype(np.float32) for x in (q, k))
            q, k = by_layer[layer].of_queries(q), by_layer[layer].of_keys(k)
        k, v = (
            codec.decode(*codec.encode(x.astype(np.float16)), np.float32)
            for codec, x in zip(codecs, (k, v), strict=True)
        )
        return causal_attention(q.astype(np.float16).astype(np.float32), k, v)

    return attend


def cached_attention(
    pair: Pair, config: Config, device: str, capacity: int, smoothings: Sequence[kvit.KeySmoothing] = ()
) -> Attend:
    """The same through a kvit.PagedCache, which holds one layer of one window, of up to `capacity` tokens, at a time.

    With smoothings there is a cache for each layer.

    Raises KvitError: the device cannot be used, or no kernel covers the pair.
    """
    k_codec, v_codec = pair.codecs(DTYPE)
    caches = [
        kvit.PagedCache(
            pages=-(-capacity // PAGE_SIZE),
            page_size=PAGE_SIZE,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=DTYPE,
            k=k_codec.name,
            v=v_codec.name,
            smoothing=smoothing,
            device=device,
        )
        for smoothing in smoothings or [None]
    ]

    def attend(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        q, k, v = (kvit.Buffer.from_numpy(x.astype(np.float16), device) for x in (q, k, v))
        cache = caches[layer if smoothings else 0]
        sequence = cache.sequence()
        cache.append([sequence], k, v, q=q if smoothings else None)
        out = kvit.attention(q, cache, [sequence]).numpy().astype(np.float32)
        sequence.free()
        return out

    return attend


def causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """kvit.reference.attention of equally many queries and keys, in float32, for some hundred queries at a time."""
    tokens, query_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    # A matrix for each KV head, with the rows of its group one below the other: BLAS wants dense ones.
    grouped = q.reshape(tokens, kv_heads, -1, head_dim).transpose(1, 2, 0, 3) * np.float32(head_dim**-0.5)
    keys, values = np.ascontiguousarray(k.transpose(1, 2, 0)), np.ascontiguousarray(v.transpose(1, 0, 2))
    out = np.empty((kv_heads, query_heads // kv_heads, tokens, head_dim), np.float32)
    for begin in range(0, tokens, QUERIES):
        end = min(begin + QUERIES, tokens)
        rows = np.ascontiguousarray(grouped[:, :, begin:end]).reshape(kv_heads, -1, head_dim)
        scores = rows @ keys[:, :, :end]
        weights = scores.reshape(kv_heads, -1, end - begin, end)  # [kv_head, group, query, key]
        weights += np.where(np.tri(end - begin, end, begin, dtype=bool), np.float32(0), np.float32(-np.inf))
        weights -= weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=-1, keepdims=True)
        out[:, :, begin:end] = (scores @ values[:, :end]).reshape(kv_heads, -1, end - begin, head_dim)
    return out.reshape(query_heads, tokens, head_dim).transpose(1, 0, 2)


def spread(tokens: np.ndarray, count: int, length: int) -> np.ndarray:
    """[count, length] windows from places spread evenly over tokens [tokens], from the first to the last."""
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return tokens[starts[:, None] + np.arange(length)]


def bits_of(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log2 of the probability that each row of logits [tokens, vocab] gives to targets [tokens], float64."""
    below = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(below).sum(axis=1, dtype=np.float64))
    return (log_total - below[np.arange(len(targets)), targets]) / math.log(2)
