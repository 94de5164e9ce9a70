"""Attention of queries to the entries of a sequence that each of them has chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .attention import State, attention
from .cache import Cache, Table
from .paged import token_ranges


def chosen_keys(length: int, end: int, indices: ArrayLike, entry_tokens: int) -> NDArray[np.intp]:
    """Keys of a sequence that a query sees which has chosen entries: those below `end` that it has chosen, in the order
    in which kernels read them, entries that it sees whole first. Which order that is changes nothing but rounding.

    An entry is tokens [i * entry_tokens, (i + 1) * entry_tokens); -1 is none.
    """
    wanted = [int(i) for i in np.asarray(indices).ravel() if 0 <= i * entry_tokens < min(end, length)]
    whole = [i for i in wanted if (i + 1) * entry_tokens <= end]
    part = [i for i in wanted if (i + 1) * entry_tokens > end][:1]
    keys = [np.arange(i * entry_tokens, min((i + 1) * entry_tokens, end)) for i in (*whole, *part)]
    return np.concatenate([np.empty(0, np.intp), *keys])


def sparse_attention(
    q: ArrayLike,
    cache: Cache,
    table: Table,
    indices: ArrayLike,
    entry_tokens: int,
    counts: Sequence[int] | None = None,
    *,
    causal: bool = True,
    **options: Any,
) -> State:
    """Attention of each sequence's new tokens to the entries that they have chosen.

    q        [sum(counts), query_heads, head_dim], sequence after sequence
    indices  [sum(counts), kv_heads or 1, entries]: of each KV head, or of all together
    options  scale, softcap and sinks, as `attention` has them
    DeepSeek-AI, DeepSeek-V3.2, 2025, single tokens for all heads; MiniMax-M3, blocks for each KV head.
    """
    q, indices = np.asarray(q), np.asarray(indices)
    counts = [1] * len(table.lengths) if counts is None else counts
    states = []
    for sequence, tokens in enumerate(token_ranges(counts)):
        k, v = table.read(cache, sequence)
        heads, group = k.shape[1], q.shape[1] // k.shape[1]
        for i, row in enumerate(range(tokens.start, tokens.stop)):
            end = len(k) - counts[sequence] + i + 1 if causal else len(k)
            for head in range(heads):
                chosen = chosen_keys(len(k), end, indices[row, min(head, indices.shape[1] - 1)], entry_tokens)
                own = slice(head * group, (head + 1) * group)
                given = {name: x[own] if name == "sinks" else x for name, x in options.items()}
                states.append(
                    attention(q[row : row + 1, own], k[chosen][:, [head]], v[chosen][:, [head]], causal=False, **given)
                )
    out = np.concatenate([state.out for state in states], axis=1)
    lse = np.concatenate([state.lse for state in states], axis=1)
    return State(out.reshape(*q.shape[:2], -1), lse.reshape(q.shape[:2]))
