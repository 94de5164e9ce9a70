"""What `kvit selfcheck` runs on caches in 8 and 4 bits: rows come back as the reference has them, and attention too."""

from __future__ import annotations

import numpy as np

import kvit
from kvit import codecs, reference
from kvit._cli.compare import CODED_SCORE_BOUND, attention_bound, expect_close, expect_same
from kvit._cli.trial import Trial
from kvit.selection import registry


def check_quantised(trial: Trial) -> None:
    """Rows come back as the reference decodes what it encodes, and attention is within rounding of those rows."""
    shape = trial.shape
    k_name, v_name = trial.choose("stored", _pairs(trial))
    lengths = [length + 1 for length in trial.choose_lengths(3)]
    pages = sum(-(-length // shape.page_size) for length in lengths)
    heads = trial.choose("kv_heads", (1, 2, 3))
    cache = kvit.PagedCache(
        pages, shape.page_size, heads, shape.head_dim,
        dtype=shape.dtype, k=k_name, v=v_name, layout=shape.layout, device=trial.device,
    )  # fmt: skip
    sequences = [cache.sequence() for _ in lengths]
    new = trial.random(2, sum(lengths), heads, shape.head_dim)
    cache.append(sequences, trial.upload(new[0]), trial.upload(new[1]), lengths)
    stored = []
    for name, rows, found in zip((k_name, v_name), new, cache.gather(sequences)[:2], strict=True):
        codec = reference.codec_of(name)
        encoded = codec.encode(rows)
        expect_same(f"gathered {name}", found.numpy(), codec.decode(*encoded, trial.dtype))
        stored.append(codec.decode(*encoded))

    group = trial.choose("group", (1, 3, 4, 8, 11))
    q = trial.random(len(lengths), heads * group, shape.head_dim)
    out = kvit.attention(trial.upload(q), cache, sequences)
    cache.check()
    for i, part in enumerate(reference.token_ranges(lengths)):
        k, v = stored[0][part], stored[1][part]
        want = reference.attention(q[i : i + 1], k, v).out
        # Codes are multiplied from a row's least value on: weights are rounded against the whole range of a row.
        ranges = np.broadcast_to(2 * np.abs(v).max(axis=-1, keepdims=True), v.shape)
        bound = attention_bound(reference.attention(q[i : i + 1], k, np.abs(v)).out, trial.dtype)
        bound += (2.25 * 2.0**-11 + 2 * CODED_SCORE_BOUND) * reference.attention(q[i : i + 1], k, ranges).out
        expect_close(f"out of sequence {i}", out.numpy()[i : i + 1], want, bound)


def _pairs(trial: Trial) -> list[tuple[str, str]]:
    """Codecs of (K, V), by name, that attention is built for with this dtype and head_dim."""
    names = {codec.short: codec.name for codec in codecs.PLAIN} | {"b16": trial.dtype.name}
    entries = registry.candidates("decode", dtype=trial.shape.dtype, head_dim=trial.shape.head_dim)
    kinds = (str(entry.axes["kv"]).partition("_") for entry in entries)
    return list(dict.fromkeys((names[k], names[v or k]) for k, _, v in kinds))
