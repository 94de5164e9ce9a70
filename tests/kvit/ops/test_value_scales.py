"""Values of any size: attention gives the mean of what gather reads, whatever parameters the rows of V have."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.built import need_copies
from support.caches import BFLOAT16, FLOAT16, make_table, to_device
from support.stored import Stored
from support.tolerances import assert_within

INTEGERS = [("int8", "cp_async"), ("int8", "registers"), ("int8", "tma"), ("int4", "cp_async"), ("int4", "tma")]
EVERY_INTEGER = pytest.mark.parametrize(("codec", "copies"), INTEGERS)
FLOAT8 = [("float8_e4m3", "cp_async"), ("float8_e4m3", "tma"), ("float8_e5m2", "cp_async")]
GROUP = 4
FLOOR = 2.0**-118  # docs/quantisation.md: weights times scales are float16, and below 2^-14 of those lose digits


class Values:
    """Sequences of several tiles in one codec, whose K and V the test chooses."""

    def __init__(self, codec, copies, *, dtype=BFLOAT16, scale=None, device="host"):
        need_copies(copies, device)
        self.dtype, self.device = dtype, device
        names = {"dtype": dtype, "k": codec, "v": codec, "layout": "HND"}
        if scale is not None:
            names |= {"k_scale": np.full(2, 0.02, np.float32), "v_scale": np.full(2, scale, np.float32)}
        first = Stored(reference.Cache.poisoned(1, 16, 2, 64, **names), dtype, device)
        self.op = kvit.Attention(first.view, 2 * GROUP, kernel={"copies": copies})
        self.tile = self.op.kernel.facts["tile_tokens"]
        self.lengths = [4 * self.tile + 9, 70]
        slots = [-(-length // 16) for length in self.lengths]
        pages = np.split(np.arange(sum(slots), dtype=np.int32)[::-1], np.cumsum(slots)[:-1])
        self.table = reference.Table(pages, self.lengths)
        self.cache = reference.Cache.poisoned(sum(slots), 16, 2, 64, **names)
        self.place = np.concatenate([np.arange(length) for length in self.lengths])  # of each token in its sequence

    def check(self, rng, v, rise=0.0):
        """Attention over random keys and v [tokens, head, channel]; scores rise by so much from tile to tile, in log2
        units.
        """
        k = rng.standard_normal(v.shape)
        k[..., 0] = (self.place // self.tile * rise / np.log2(np.e) * 8)[:, None]
        reference.append(self.cache, self.table, k.astype(self.dtype), v.astype(self.dtype), self.lengths)
        q = rng.standard_normal((len(self.lengths), 2 * GROUP, 64)).astype(self.dtype)
        q[..., 0] = 1
        stored = Stored(self.cache, self.dtype, self.device)
        table = make_table(self.table.pages, self.lengths, "dense", self.device)
        out = self.op(to_device(q, self.device), stored.view, table).numpy()
        self.op.check()

        state = reference.paged_attention(q, self.cache, self.table)
        assert_within(out, state.out, self.bound(q))

    def bound(self, q):
        """How far each output may be: as far as FLOOR where there is nothing more to be relative to."""
        pools = self.cache.stores()
        where = (np.arange(self.cache.num_pages)[:, None], np.arange(self.cache.page_size))
        k, v = (np.nan_to_num(pool.read(*where, np.float64)) for pool in pools)
        magnitude = reference.paged_attention(q, reference.Cache(k, np.abs(v)), self.table).out
        relative = tolerances.attention_bound(magnitude, self.dtype) + tolerances.SCORE_QUANTISED * magnitude
        return np.maximum(relative, FLOOR)


def steps(values, first, rest):
    """V [tokens, head, channel]: all channels `first` in the first tile of every sequence, `rest` behind it."""
    is_first = values.place < values.tile
    return np.broadcast_to(np.where(is_first, first, rest)[:, None, None], (len(is_first), 2, 64))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e12, 1e30, 1e36])
@EVERY_INTEGER
def test_integers_of_values_of_any_size(rng, device, codec, copies, size):
    values = Values(codec, copies, device=device)
    values.check(rng, rng.standard_normal((len(values.place), 2, 64)) * size)


@pytest.mark.parametrize("value", [0.0, -1e-38, 1e-30, 5.0, 2.0**28, -(2.0**28), 2.0**100, 2.0**126])
@EVERY_INTEGER
def test_constant_rows_of_any_value(rng, device, codec, copies, value):
    values = Values(codec, copies, device=device)
    values.check(rng, steps(values, value, value))


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (0.0, 5.0),
        (0.0, -1000.0),
        (2.0**28, 0.0),
        (0.0, 2.0**20),
        (0.0, 2.0**28),
        (1e-30, -(2.0**28)),
        (2.0**120, 0.0),
    ],
)
@EVERY_INTEGER
def test_constant_rows_behind_constant_rows(rng, device, codec, copies, first, rest):
    values = Values(codec, copies, device=device)
    values.check(rng, steps(values, first, rest))


@pytest.mark.parametrize("size", [1.0, 1e9, 1e20, 1e36])
@EVERY_INTEGER
def test_zeros_behind_rows_of_any_size(rng, device, codec, copies, size):
    values = Values(codec, copies, device=device)
    v = rng.standard_normal((len(values.place), 2, 64)) * size
    values.check(rng, np.where(steps(values, True, False), v, 0.0))


@pytest.mark.parametrize("rises", [(-60.0, 20.0, 50.0), (58.0, 60.0, 62.0, 64.0), (80.0, 120.0)])
@EVERY_INTEGER
def test_constant_rows_under_scores_that_rise(rng, device, codec, copies, rises):
    # Rows of one value have the least scale of all, so that their weights grow for long before they count.
    values = Values(codec, copies, device=device)
    for rise in rises:
        values.check(rng, steps(values, 5.0, 5.0), rise)


@pytest.mark.parametrize("rise", [-20.0, 20.0, 120.0])
@EVERY_INTEGER
def test_float16_has_scales_that_are_never_so_small(rng, device, codec, copies, rise):
    values = Values(codec, copies, dtype=FLOAT16, device=device)
    values.check(rng, steps(values, 5.0, 60000.0), rise)
    values.check(rng, steps(values, 0.0, 60000.0), rise)


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-119, 2.0**-110, 2.0**-100, 1e-10, 1e10, 2.0**110])
@pytest.mark.parametrize(("codec", "copies"), FLOAT8)
def test_scales_of_float8_of_any_size(rng, device, codec, copies, scale):
    values = Values(codec, copies, scale=scale, device=device)
    values.check(rng, rng.standard_normal((len(values.place), 2, 64)) * scale * 10)


@pytest.mark.parametrize("size", [1e-34, 1e-35, 1e-36, 1e-37])
@EVERY_INTEGER
def test_values_near_the_least_normal_number(rng, device, codec, copies, size):
    values = Values(codec, copies, device=device)
    values.check(rng, rng.standard_normal((len(values.place), 2, 64)) * size)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 2.0**-127, 2.0**-121, np.nan, np.inf])
def test_scales_of_float8_that_no_kernel_honours_are_refused(scale):
    with pytest.raises(kvit.DtypeError, match=r"a scale of float8 must be finite and 2\^-120"):
        Values("float8_e4m3", "cp_async", scale=scale)
