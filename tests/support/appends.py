"""A cache of poison to append to, in the reference's words and on a device."""

import numpy as np

import kvit
from kvit import reference

from .caches import BFLOAT16, make_table, parameters_of, to_device

LENGTHS, COUNTS = [37, 3, 0, 20], [5, 3, 0, 20]  # some tokens there before, all new, none, more than a page


class Setup:
    """A cache full of poison, in the reference's words and on a device, with a table of pages in no order."""

    def __init__(self, rng, pair=("int8", "int8"), *, head_dim=64, dtype=BFLOAT16, page_size=16, layout="HND",
                 heads=3, lengths=LENGTHS, device="host", spare_pages=2, row_scales=False, smoothing=None):  # fmt: skip
        self.rng, self.device, self.dtype, self.heads, self.head_dim = rng, device, dtype, heads, head_dim
        slots = [-(-length // page_size) for length in lengths]
        order = rng.permutation(sum(slots) + spare_pages).astype(np.int32)
        self.table = reference.Table(np.split(order[: sum(slots)], np.cumsum(slots)[:-1]), lengths)
        names = [dtype.name if name is None else name for name in pair]
        scales = [np.resize(np.float32([0.5, 1.25, 3]), heads) if "float8" in name else np.float32(1) for name in names]
        if row_scales:
            rows = (len(order), heads, page_size) if layout == "HND" else (len(order), page_size, heads)
            scales = [rng.choice(np.float32([0.5, 0.3, 2]), rows) for _ in names]
        self.cache = reference.Cache.poisoned(
            len(order), page_size, heads, head_dim, dtype=dtype, k=names[0], v=names[1], layout=layout,
            k_scale=scales[0] if "float8" in names[0] else None, v_scale=scales[1] if "float8" in names[1] else None,
        )  # fmt: skip
        self.host = {
            name: getattr(self.cache, name)
            for name in ("k", "v", "k_params", "v_params")
            if getattr(self.cache, name) is not None
        }
        self.buffers = {name: to_device(array, device) for name, array in self.host.items()}
        extras = parameters_of(names, self.buffers)
        self.view = kvit.CacheView(
            self.buffers["k"], self.buffers["v"], layout=layout, kv=tuple(names), dtype=dtype.name,
            smoothing=smoothing, **extras,
        )  # fmt: skip
        self.page_table = make_table(self.table.pages, lengths, "dense", device)

    def random(self, *shape):
        return self.rng.standard_normal(shape).astype(self.dtype)

    def up(self, array):
        return to_device(array, self.device)

    def rows(self, counts=COUNTS):
        """k and v of the new tokens: outliers, constant rows and zeros of both signs among them."""
        k, v = self.random(2, sum(counts), self.heads, self.head_dim)
        for x in (k, v):
            x[1::7] *= 30
            x[2::11] = x[2::11, :, :1]
            x[3::13] = -0.0
        return k, v

    def append(self, k, v, counts=COUNTS, rope=None, made_with=None, **options):
        """By kernel; arrays among the options, and among those of kvit.Append, are copied to the device."""
        made_with = {name: self.up(x) if isinstance(x, np.ndarray) else x for name, x in (made_with or {}).items()}
        operation = kvit.Append(self.view, rope=rope, **made_with)
        indptr = self.up(np.cumsum([0, *counts]).astype(np.int32))
        on_device = {name: self.up(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
        k, v = (self.up(x) if isinstance(x, np.ndarray) else x for x in (k, v))
        operation(k, v, self.view, self.page_table, query_indptr=indptr, **on_device)
        operation.check()
        return on_device

    def assert_same(self):
        for name, buffer in self.buffers.items():
            got, want = buffer.numpy().view(np.uint8), self.host[name].view(np.uint8)
            np.testing.assert_array_equal(got, want, err_msg=name)


def rotation_of(rope):
    return reference.Rotation(rope.steps, rope.interleaved, rope.attention_factor, rope.axes)
