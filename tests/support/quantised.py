"""Caches in 8 and 4 bits, in the reference's words and on a device, filled by both."""

import numpy as np

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, make_table, to_device


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
            self.buffers["k"], self.buffers["v"], layout=layout, kv=tuple(names), dtype=dtype.name, **self.extras(names)
        )

    def extras(self, names):
        words = {"int8": "params", "int4": "params", "float8_e4m3": "scale", "float8_e5m2": "scale"}
        return {
            f"{side}_{words[name]}": self.buffers[f"{side}_params"]
            for side, name in zip("kv", names, strict=True)
            if name in words
        }

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
    k, v = cache.stores()
    everything = (np.arange(v.data.shape[0])[:, None], np.arange(v.data.shape[1]))
    plain_k, values = k.read(*everything, np.float64), v.read(*everything, np.float64)
    has_zeros = v.params is not None and v.codec.bits in (4, 8) and v.params.ndim == 4
    zero = v.params[..., 1:].astype(np.float64) if has_zeros else 0.0
    parts = np.nan_to_num(np.abs(values - zero) + np.abs(zero))
    magnitudes = reference.Cache(np.nan_to_num(plain_k), parts, "NHD")
    magnitude = reference.paged_attention(q.astype(np.float64), magnitudes, table, counts, **options).out
    return tolerances.attention_bound(magnitude, dtype) + tolerances.SCORE_QUANTISED * 2 * magnitude
