"""What `kvit selfcheck` runs of windows, chunks, spans, trees, softcap, sinks, ALiBi and temperature, in mixtures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvit
from kvit import reference
from kvit._cli.compare import LSE_BOUND, attention_bound, expect_close
from kvit._cli.trial import Trial, raw_cache
from kvit.selection import registry

_ARRAYS = ("sinks", "alibi", "temperature")
_LEAST_STEP = 2.0**-24  # of float16: a sink leaves outputs that are as small


def check_modifiers(trial: Trial) -> None:
    """Some of all masks and score modifiers at once, on several new tokens. Does nothing where no kernel has them."""
    shape = trial.shape
    if not registry.candidates("decode", dtype=shape.dtype, kv="b16", head_dim=shape.head_dim, variant="general"):
        return
    kv_heads = trial.choose("kv_heads", (1, 2))
    heads = kv_heads * trial.choose("group", (1, 4, 7, 8))
    lengths = trial.choose_lengths(trial.choose("sequences", (1, 2, 3)))
    most = trial.choose("most new tokens", (7, 60))  # for decode's kernels, and for prefill's
    counts = [int(trial.rng.integers(0, min(length, most) + 1)) for length in lengths]
    trial.chosen["new tokens"] = counts
    cache, q = raw_cache(trial, lengths, kv_heads), trial.random(sum(counts), heads, shape.head_dim)
    options, arrays = _options(trial, heads), _arrays(trial, lengths, counts)
    op = kvit.Attention(
        cache.view,
        heads,
        tokens_per_sequence=max(counts),
        **{name: trial.upload(np.asarray(x, np.float32)) if name in _ARRAYS else x for name, x in options.items()},
        **dict.fromkeys(arrays, True),
    )
    trial.chosen["kernel"] = op.kernel.symbol
    out, lse = trial.poisoned(q.shape, trial.dtype), trial.poisoned(q.shape[:2], np.float32)
    indptr = trial.upload(np.cumsum([0, *counts]).astype(np.int32))
    on_device = {name: trial.upload(array) for name, array in arrays.items()}
    table = cache.page_table(trial)
    op(trial.upload(q), cache.view, table, out=out, lse=lse, query_indptr=indptr, **on_device)
    op.check()
    state = reference.paged_attention(q, cache.plain, cache.table, counts, **options, **arrays)
    positive = reference.Cache(cache.plain.k, np.abs(cache.plain.v), cache.plain.layout)
    magnitude = reference.paged_attention(q, positive, cache.table, counts, **options, **arrays).out
    expect_close("out", out.numpy(), state.out, attention_bound(magnitude, trial.dtype) + _LEAST_STEP / 2)
    expect_close("lse", lse.numpy(), state.lse, LSE_BOUND)


def _options(trial: Trial, heads: int) -> dict[str, Any]:
    """Arguments of an Attention, some of them, in the reference's words."""
    found = {
        "causal": trial.choose("causal", (True, False)),
        "window": trial.choose("window", (None, 1, 20, (30, 3), 100)),
        "chunk": trial.choose("chunk", (None, None, 16, 50)),
        "softcap": trial.choose("softcap", (None, 1.5, 50.0)),
        "sinks": trial.choose("sinks", (None, [0.5] * heads, [-np.inf] * heads)),
        "alibi": trial.choose("alibi", (None, None, [2.0**-i for i in range(heads)])),
        "temperature": trial.choose("temperature", (None, [1.0, 0.5, 1.5])),
    }
    return {name: value for name, value in found.items() if value is not None}


def _arrays(trial: Trial, lengths: list[int], counts: list[int]) -> dict[str, NDArray]:
    """Arrays of a call: a span of some of the last tokens of each sequence, or a tree of two branches."""
    chosen = trial.choose("arrays", ("none", "spans", "tree"))
    if chosen == "none":
        return {}
    if chosen == "tree":
        words = [sum(1 << j for j in range(i % 2, i + 1, 2)) for count in counts for i in range(count)]
        return {"tree": np.array(words, np.int64).reshape(-1, 1)}
    rows = [
        (max(0, length - 5), length - 1) if length - 5 <= position < length - 1 else (0, 0)
        for length, count in zip(lengths, counts, strict=True)
        for position in range(length - count, length)
    ]
    return {"spans": np.array(rows, np.int32).reshape(-1, 2)}
