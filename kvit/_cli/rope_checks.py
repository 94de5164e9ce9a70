"""What `kvit selfcheck` runs on rows that turn: new ones on their way into the cache, and those that are there."""

from __future__ import annotations

from typing import Any

import numpy as np

import kvit
from kvit import reference
from kvit._cli.compare import expect_same
from kvit._cli.trial import Trial, raw_cache


def _rope(trial: Trial) -> tuple[kvit.Rope, reference.Rotation]:
    head_dim = trial.shape.head_dim
    rotary_dim = trial.choose("rotary_dim", (head_dim, 48, 16, 20))
    pairs = rotary_dim // 2
    axes = {"mrope_section": [pairs - 2, 1, 1], "mrope_interleaved": trial.choose("axes take turns", (True, False))}
    scaling: dict[str, Any] = axes if trial.choose("axes", (1, 3)) == 3 else {}
    interleaved = trial.choose("interleaved", (True, False))
    rope = kvit.Rope(head_dim, 10000.0, rotary_dim, interleaved, scaling)
    return rope, reference.Rotation(rope.steps, rope.interleaved, rope.attention_factor, rope.axes)


def check_turned_append(trial: Trial) -> None:
    """New rows of K, and of Q beside them, are normalised if that is asked for, and turn to their positions."""
    kv_heads = trial.choose("kv_heads", (1, 2, 5))
    counts = [length + 1 for length in trial.choose_lengths(3)]
    cache, total = raw_cache(trial, counts, kv_heads), sum(counts)
    rope, rotation = _rope(trial)
    k, v = trial.random(2, total, kv_heads, trial.shape.head_dim)
    q = trial.random(total, kv_heads * 3, trial.shape.head_dim)
    norm, made_with = None, {}
    if trial.choose("QK-norm", (True, False)):
        norm = reference.RowNorm(trial.random(trial.shape.head_dim), 1e-5, 1.0)
        weight = trial.upload(norm.weight)
        made_with = {"k_norm": weight, "q_norm": weight, "norm_eps": 1e-5, "norm_offset": 1.0}
    positions = trial.rng.integers(0, 1 << 20, (3, total) if rope.axes else total).astype(np.int32)
    op = kvit.Append(cache.view, rope=rope, **made_with)
    starts = trial.upload(np.cumsum([0, *counts]).astype(np.int32))
    held = trial.upload(q)
    op(
        trial.upload(k), trial.upload(v), cache.view, cache.page_table(trial),
        query_indptr=starts, positions=trial.upload(positions), q=held,
    )  # fmt: skip
    op.check()
    reference.append(
        cache.plain, cache.table, k, v, counts, k_norm=norm, rotation=rotation, positions=positions
    )  # fmt: skip
    for name, pool, plain in (("k", cache.view.k, cache.plain.k), ("v", cache.view.v, cache.plain.v)):
        expect_same(f"pool of {name}", pool.numpy(), plain)
    expect_same("q", held.numpy(), reference.rotate(q, positions, rotation, norm=norm))


def check_shift(trial: Trial) -> None:
    """Keys that are in the cache turn to other positions, and nothing else changes."""
    kv_heads = trial.choose("kv_heads", (1, 2, 5))
    lengths = trial.choose_lengths(3)
    cache = raw_cache(trial, lengths, kv_heads)
    rope, rotation = _rope(trial)
    by = trial.rng.integers(-1000, 1000, len(lengths)).tolist()
    first = [int(trial.rng.integers(0, length + 2)) for length in lengths]
    trial.chosen["by"], trial.chosen["first"] = by, first
    op = kvit.Shift(cache.view, rope)
    numbers = (trial.upload(np.array(given, np.int32)) for given in (by, first))
    op(cache.view, cache.page_table(trial), next(numbers), first=next(numbers))
    op.check()
    reference.shift(cache.plain, cache.table, by, first, rotation, trial.dtype)
    for name, pool, plain in (("k", cache.view.k, cache.plain.k), ("v", cache.view.v, cache.plain.v)):
        expect_same(f"pool of {name}", pool.numpy(), plain)
