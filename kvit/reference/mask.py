"""What a query sees of its sequence's keys, and where they stand: every rule of masks, key by key."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Window: TypeAlias = "int | tuple[int | None, int | None] | None"
"""Keys that a query sees on its left, itself included, and on its right, itself included; an int: the left alone."""


class KeyRange(NamedTuple):
    """Keys [begin, end) of a sequence; none where end <= begin."""

    begin: int
    end: int


class Seen(NamedTuple):
    """What one query sees, and the positions that scores may depend on."""

    keys: NDArray[np.bool_]  # [keys] whether it sees them
    position: int  # of the query
    positions: NDArray[np.int64]  # [keys]


def visible_keys(num_keys: int, num_queries: int, query: int, causal: bool) -> KeyRange:
    """The keys that a query sees where it is causal, or all: the mask of plain kernels, as one rule.

    Queries are the last tokens: query i of n has position keys - n + i.
    """
    return KeyRange(0, max(0, num_keys - num_queries + query + 1) if causal else num_keys)


def seen_keys(
    num_keys: int,
    num_queries: int,
    query: int,
    *,
    causal: bool = True,
    window: Window = None,
    chunk: int | None = None,
    span: ArrayLike | None = None,
    tree: ArrayLike | None = None,
) -> Seen:
    """All rules together: a query sees a key where each of them lets it; a span then adds keys.

    window  of position p a query sees positions p - left + 1 to p + right - 1
    chunk   a query sees positions of its own chunk: [0, chunk), [chunk, 2 chunk), ...
    span    (begin, end): a query whose position lies in it sees its keys too, whatever else holds
    tree    words of 64 bits of this query: of the sequence's new tokens it sees those whose bit is set, whether causal
            or not; no span is looked at. Both then stand on a branch: the query behind all old tokens and all others
            whose bit is set, and new token j behind those of them that are before j. Bits of no new token say nothing.
            Without effect for a sequence with more new tokens than bits, or with fewer keys than new tokens
    """
    old, keys = num_keys - num_queries, np.arange(num_keys)
    position, positions = old + query, keys
    words = [] if tree is None else [int(word) & (2**64 - 1) for word in np.asarray(tree).reshape(-1)]
    is_tree = bool(words) and num_queries <= 64 * len(words) and old >= 0
    if is_tree:
        bits = np.array([words[i // 64] >> (i % 64) & 1 for i in range(num_queries)], np.int64)
        position = old + max(0, int(bits.sum()) - 1)
        below = np.cumsum(bits) - bits
        positions = np.concatenate([keys[:old], old + below])
        seen = np.concatenate([np.ones(old, bool), bits == 1])
    else:
        seen = positions <= position if causal else np.ones(num_keys, bool)
    left, right = window if isinstance(window, tuple) else (window, None)
    if left is not None:
        seen = seen & (position - positions < left)
    if right is not None:
        seen = seen & (positions - position < right)
    if chunk is not None:
        seen = seen & (positions // chunk == position // chunk)
    if span is not None and not is_tree:
        begin, end = (int(x) for x in np.asarray(span))
        if max(0, begin) <= position < end:
            seen = seen | ((begin <= keys) & (keys < end))
    return Seen(seen, position, positions)
