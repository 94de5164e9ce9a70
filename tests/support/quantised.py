"""Caches in 8 and 4 bits, in the reference's words and on a device, filled by both."""

from dataclasses import replace

import numpy as np

import kvit
from kvit import reference
from kvit.reference.codecs import Hadamard
from kvit.reference.hadamard import block_of
from support import tolerances
from support.caches import BFLOAT16, make_table, parameters_of, to_device


class Quantised:
    """A cache in the reference's words and on a device, every byte of it poison until something is appended."""

    def __init__(self, pair, lengths, *, page_size=16, head_dim=64, dtype=BFLOAT16, layout="HND", device="host", rng):
        self.dtype, self.device = dtype, device
        names = [name or dtype.name for name in pair]
        # One scale for each head, as a calibration gives it; the integers find their own.
        scales = [np.array([0.02, 0.03], np.float32) if name.startswith("float8") else None for name in names]
        slots = [-(-length // page_size) for length in lengths]
        order = rng.permutation(sum(slots) + 2).astype(np.int32)
        pages = np.split(order[: sum(slots)], np.cumsum(slots)[:-1])
        self.cache = reference.Cache.poisoned(
            len(order), page_size, 2, head_dim, dtype=dtype, k=names[0], v=names[1], layout=layout,
            k_scale=scales[0], v_scale=scales[1],
        )  # fmt: skip
        self.table = reference.Table(pages, lengths)
        self.page_table = make_table(pages, lengths, "dense", device)
        self.host = {
            name: array
            for name in ("k", "v", "k_params", "v_params")
            if (array := getattr(self.cache, name)) is not None
        }
        self.buffers = {name: to_device(array, device) for name, array in self.host.items()}
        self.view = kvit.CacheView(
            self.buffers["k"],
            self.buffers["v"],
            layout=layout,
            kv=tuple(names),
            dtype=dtype.name,
            **parameters_of(names, self.buffers),
        )

    def append(self, rng, scale=1.0):
        """Random rows, with outliers and constant rows among them, by both; returns what was appended."""
        tokens = sum(self.table.lengths)
        rows = rng.standard_normal((2, tokens, 2, self.view.head_dim)) * scale
        rows[:, 1::7] *= 30
        rows[:, 2::11] = rows[:, 2::11, :, :1]
        k, v = rows.astype(self.dtype)
        reference.append(self.cache, self.table, k, v, self.table.lengths)
        operation = kvit.Append(self.view)
        indptr = to_device(np.cumsum([0, *self.table.lengths]).astype(np.int32), self.device)
        operation(to_device(k, self.device), to_device(v, self.device), self.view, self.page_table, query_indptr=indptr)
        operation.check()

    def bound(self, q, counts, **options):
        """How far each output may be: see docs/quantisation.md and support/tolerances.py."""
        return attention_bound_of(self.cache, self.table, q, counts, self.dtype, **options)


def attention_bound_of(cache, table, q, counts, dtype, **options):
    """How far each output of attention over a cache of any codecs may be from the reference."""
    counts = [1] * len(table.lengths) if counts is None else counts
    k, v = cache.stores()
    everything = (np.arange(v.data.shape[0])[:, None], np.arange(v.data.shape[1]))
    # Values as they are stored: transforms are weighted so.
    is_transformed = isinstance(v.codec, Hadamard)
    stored = replace(v, codec=v.codec.plain) if is_transformed else v
    plain_k, values = k.read(*everything, np.float64), stored.read(*everything, np.float64)
    has_zeros = v.params is not None and v.codec.bits in (4, 8) and v.params.ndim == 4
    zero = v.params[..., 1:].astype(np.float64) if has_zeros else 0.0
    parts = np.nan_to_num(np.abs(values - zero) + np.abs(zero))
    magnitudes = reference.Cache(np.nan_to_num(plain_k), parts, "NHD")
    magnitude = reference.paged_attention(q.astype(np.float64), magnitudes, table, counts, **options).out
    # Weights of coded values are float16, of which the least step is 2**-24: half of one for each token, beside a
    # largest weight of 1 or more. It shows where one token has nearly all of the weight and 0 as its value.
    step = 2.0**-25 * _sums_of_values(magnitudes, table, q, counts)
    if is_transformed:
        magnitude, step = _spread(magnitude), _spread(step)
    scores = tolerances.SCORE_QUANTISED + transformed_score_bound(cache, table, q, counts)[..., None]
    return tolerances.attention_bound(magnitude, dtype) + scores * 2 * magnitude + step


def _spread(errors):
    """Of outputs that get the errors of a block of channels, with either sign, over the root of their number."""
    blocks = errors.reshape(*errors.shape[:-1], -1, block_of(errors.shape[-1]))
    return np.broadcast_to(np.sqrt((blocks**2).mean(axis=-1, keepdims=True)), blocks.shape).reshape(errors.shape)


def _sums_of_values(magnitudes, table, q, counts):
    """|values| of all tokens of its sequence, added up for each output: [tokens, heads, channels].

    A token that no page holds counts as 0: whoever sees it has no bound, and the others do not see it.
    """
    _, rows, indptr = reference.gather(magnitudes, table)
    rows = np.nan_to_num(rows)
    found = np.zeros((*q.shape[:2], rows.shape[-1]))
    for sequence, part in enumerate(reference.token_ranges(counts)):
        total = rows[indptr[sequence] : indptr[sequence + 1]].sum(axis=0)
        found[part] = np.repeat(total, q.shape[1] // len(total), axis=0)
    return found


def transformed_score_bound(cache, table, q, counts):
    """How far scores are off because transformed queries are rounded to float16: [tokens, heads]; 0 for plain keys.

    Rounding is by at most 2**-11 of a channel, evenly: the standard deviation of a score is that of a sum of so many
    independent errors. Six of them, of the key that has the most.
    """
    k = cache.stores()[0]
    found = np.zeros(q.shape[:2])
    if not isinstance(k.codec, Hadamard):
        return found
    stored = reference.Cache(k.data, k.data, "NHD", k.codec.plain, k.codec.plain, k.params, k.params)
    rows, _, indptr = reference.gather(stored, table, np.float64)
    group = q.shape[1] // rows.shape[1]
    for sequence, part in enumerate(reference.token_ranges(counts)):
        keys = np.repeat(np.nan_to_num(rows[indptr[sequence] : indptr[sequence + 1]]), group, axis=1)
        if len(keys):
            queries = reference.hadamard(q[part].astype(np.float64))
            squares = np.einsum("qhd,khd->qhk", queries**2, keys**2).max(axis=-1)
            found[part] = 6 * 2.0**-11 / np.sqrt(3) * np.sqrt(squares) * q.shape[-1] ** -0.5
    return found
