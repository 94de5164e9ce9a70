"""What a query does not see cannot reach it: NaN and infinity of later tokens, and scores of other tokens' rows.

A hidden key that merely weighs zero is not hidden: 0 * inf is NaN.
"""

import copy

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit._native.context import Device
from support.built import need_copies
from support.caches import BFLOAT16, FLOAT16, make_table, poisoned, to_device
from support.stored import Stored

NEW = 5  # queries of a sequence
PAIRS = {
    "b16": ("bfloat16", "bfloat16"),
    "i8": ("int8", "int8"),
    "i4": ("int4", "int4"),
    "e4m3": ("float8_e4m3", "float8_e4m3"),
    "e5m2": ("float8_e5m2", "float8_e5m2"),
    "i8_i4": ("int8", "int4"),
    "e4m3_i4": ("float8_e4m3", "int4"),
    "b16_i8": ("bfloat16", "int8"),
}
# Every pair by every way to copy it that is built for 64 channels, and by the kernels for prompts.
KERNELS = [
    *((pair, "cp_async") for pair in PAIRS),
    *((pair, "registers") for pair in ("b16", "i8", "i4", "e4m3")),
    *((pair, "tma") for pair in ("b16", "i8", "i4", "e4m3", "i8_i4", "b16_i8")),
    *((pair, "tma_packed") for pair in ("i8", "i4", "e4m3", "i8_i4", "b16_i8")),
    *((pair, "prefill") for pair in ("b16", "i8", "i4", "e4m3")),
    ("b16", "prefill registers"),
    ("b16", "prefill tma"),
    *((pair, "prefill general") for pair in ("b16", "i8", "i4", "e4m3")),
    ("b16", "prefill tma general"),
]
EVERY_KERNEL = pytest.mark.parametrize(("pair", "copies"), KERNELS, ids=lambda x: x)
SPECIAL = {"nan": np.nan, "inf": np.inf, "minus inf": -np.inf}


class Hidden:
    """Sequences of which the last NEW tokens are new, and what attention gives for a cache that holds them."""

    def __init__(self, rng, pair, copies, *, group=4, dtype=BFLOAT16, head_dim=64, split=False, tiles=1, device="host"):
        """With `split`, splits of so many tiles."""
        if "tma" in copies and device != "host" and Device.of(device).compute_capability < (9, 0):
            pytest.skip("no GPU with a tensor copy engine")
        if "registers" in copies:
            need_copies("registers", device)
        self.device, self.dtype, self.group = device, dtype, group
        self.names = tuple(dtype.name if name == "bfloat16" else name for name in PAIRS[pair])
        kernel = {"copies": copies}
        if copies.startswith("prefill"):
            words = copies.split()
            kernel = {"rows": 128, "copies": "tma" if "tma" in words else "cp_async"}
            if "registers" in words:
                kernel = {"rows": 64, "copies": "registers"}
            kernel["variant"] = "general" if "general" in words else "plain"
        empty = self._cache(1, head_dim)
        view = Stored(empty, dtype, device).view
        tile = kvit.Attention(view, 2 * group, tokens_per_sequence=NEW, kernel=kernel).kernel.facts["tile_tokens"]
        # New tokens in two tiles, in one warp's tokens, in those of two warps, with nothing before, and fewer than NEW.
        self.tile, self.lengths = tile, [tiles * tile + 2, 70, 34, NEW, 3]
        slots = [-(-length // 16) for length in self.lengths]
        pages = np.split(rng.permutation(sum(slots)).astype(np.int32), np.cumsum(slots)[:-1])
        self.table = reference.Table(pages, self.lengths)
        self.cache = self._cache(sum(slots), head_dim)
        rows = rng.standard_normal((2, sum(self.lengths), 2, head_dim)).astype(dtype)
        reference.append(self.cache, self.table, *rows, self.lengths)
        self.q = rng.standard_normal((NEW * len(self.lengths), 2 * group, head_dim)).astype(dtype)
        self.op = kvit.Attention(
            view, 2 * group, tokens_per_sequence=NEW, kernel=kernel, split_tokens=tiles * tile if split else None
        )
        self.split = split

    def _cache(self, pages, head_dim):
        scales = [np.array([0.02, 0.03], np.float32) if name.startswith("float8") else None for name in self.names]
        return reference.Cache.poisoned(
            pages, 16, 2, head_dim, dtype=self.dtype, k=self.names[0], v=self.names[1], layout="HND",
            k_scale=scales[0], v_scale=scales[1],
        )  # fmt: skip

    def attend(self, cache, q=None, lengths=None):
        """(out, lse) of the operation over `cache`, [sequence, new token, head, ...]."""
        q = self.q if q is None else q
        table = make_table(self.table.pages, self.lengths if lengths is None else lengths, "dense", self.device)
        out = to_device(poisoned(q.shape, q.dtype), self.device)
        lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), self.device)
        self.op(to_device(q, self.device), Stored(cache, self.dtype, self.device).view, table, out=out, lse=lse)
        self.op.check()
        return [x.numpy().reshape(len(self.lengths), -1, *x.shape[1:]) for x in (out, lse)]

    def expect(self, cache):
        """The reference's state, in the same shape."""
        with np.errstate(all="ignore"):
            state = reference.paged_attention(self.q, cache, self.table, [NEW] * len(self.lengths))
        return [x.reshape(len(self.lengths), NEW, *x.shape[1:]) for x in state]

    def with_tokens(self, first, write):
        """A copy of the cache in which `write` has changed KV head 0 of one new token of each sequence, of each another
        one, and [sequence, new token, head] whether a row sees what has changed.
        """
        cache = copy.deepcopy(self.cache)
        sees = np.zeros((len(self.lengths), NEW, 2 * self.group), bool)
        for sequence, length in enumerate(self.lengths):
            new = (first + sequence) % NEW
            if length - NEW + new >= 0:
                page, row = self.table.places(cache, sequence)
                write(cache.stores(), (page[length - NEW + new], row[length - NEW + new], 0))
                sees[sequence, new:, : self.group] = True
        return cache, sees

    def assert_alone(self, cache, together, queries=(0, 2, 4)):
        """A query alone, as the last token of a sequence that ends with it, gives the bits that it gave."""
        for i in queries:
            q = np.ascontiguousarray(self.q.reshape(-1, NEW, *self.q.shape[1:])[:, i])
            alone = self.attend(cache, q, [max(0, length - NEW + 1 + i) for length in self.lengths])
            for single, several in zip(alone, together, strict=True):
                np.testing.assert_array_equal(bits(single[:, 0]), bits(several[:, i]), err_msg=f"query {i}")

    @property
    def several(self):
        """[sequence, new token] whether a query sees several keys. Of one key whose score is -inf, 0 / 0 is left."""
        return np.array(self.lengths)[:, None] - NEW + np.arange(NEW) > 0


def bits(x):
    """The bits of floats; of every NaN the same."""
    words = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")
    return np.where(np.isnan(x.astype(np.float32)), 0xFFFF, words)


def assert_same_bits(got, wanted, what):
    for some, others in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(bits(some), bits(others), err_msg=what)


def put(side, channel, value):
    """Writes `value` into a channel of a token's stored K (side 0) or V (side 1)."""

    def write(stores, place):
        stores[side].data[place][channel] = value

    return write


def encode(side, channel, value):
    """Stores for a token a row with `value` in it, as an append does."""

    def write(stores, place):
        pool, row = stores[side], np.ones(stores[side].head_dim, stores[side].params.dtype)
        row[channel] = value
        pool.data[place], pool.params[place] = pool.codec.encode(row)

    return write


def set_parameter(side, which, value):
    """Writes the scale (0) or the zero (1) of a token's row."""

    def write(stores, place):
        stores[side].params[place][which] = value

    return write


def stored_specials(codec, side):
    """What of K or V can be special in a codec's cache: [(name, writer, channel)]; channel None: the whole row."""
    if codec.bits == 16 or codec.is_scaled:
        names = ["nan"] if codec.name == "float8_e4m3" else list(SPECIAL)
        return [(name, put(side, 5 + i, SPECIAL[name]), 5 + i) for i, name in enumerate(names)]
    return [
        ("row with nan", encode(side, 7, np.nan), None),
        ("row with inf", encode(side, 7, np.inf), None),
        ("scale nan", set_parameter(side, 0, np.nan), None),
        ("scale inf", set_parameter(side, 0, np.inf), None),
        ("zero minus inf", set_parameter(side, 1, -np.inf), None),
    ]


def changes(hidden, side):
    """Every special of K or V in several places: [(words for a message, cache, rows that see it, channel)]."""
    for name, write, channel in stored_specials((hidden.cache.k_codec, hidden.cache.v_codec)[side], side):
        for first in (1,) if hidden.split else (0, 3):
            yield f"{'KV'[side]} {name}, from new token {first} on", *hidden.with_tokens(first, write), channel


def check_values(hidden, finite):
    """Specials in V: the rows that see them have them, in their channel; nothing else changes."""
    for what, cache, sees, channel in changes(hidden, 1):
        out, lse = hidden.attend(cache)
        assert_same_bits((out[~sees], lse[~sees]), (finite[0][~sees], finite[1][~sees]), what)
        seen = out[sees].astype(np.float32)
        if channel is None:
            assert not np.isfinite(seen).any(), what
        else:
            expected = hidden.expect(cache)[0][sees][:, channel]
            np.testing.assert_array_equal(seen[:, channel], expected, err_msg=what)
            others = np.arange(out.shape[-1]) != channel
            assert_same_bits((out[..., others], lse), (finite[0][..., others], finite[1]), what)
        if hidden.split:
            hidden.assert_alone(cache, (out, lse))


def check_keys(hidden, finite):
    """Specials in K: rows that see them have NaN where the reference does; nothing else changes."""
    for what, cache, sees, _ in changes(hidden, 0):
        out, lse = hidden.attend(cache)
        assert_same_bits((out[~sees], lse[~sees]), (finite[0][~sees], finite[1][~sees]), what)
        # Parameters that no append writes, infinite ones over finite codes, are wrong in their own way.
        if "inf" not in what or "row" in what or hidden.cache.k_codec.bits == 16:
            for got, expected in zip((out, lse), hidden.expect(cache), strict=True):
                is_nan, wanted = np.isnan(got.astype(np.float32)), np.isnan(expected)
                np.testing.assert_array_equal(is_nan[hidden.several], wanted[hidden.several], err_msg=what)
        if hidden.split:
            hidden.assert_alone(cache, (out, lse))


@pytest.mark.parametrize("split", [False, True], ids=["", "split"])
@EVERY_KERNEL
def test_specials_reach_the_rows_that_see_them_and_no_others(rng, device, pair, copies, split):
    hidden = Hidden(rng, pair, copies, split=split, device=device)
    finite = hidden.attend(hidden.cache)
    assert all(np.isfinite(x.astype(np.float32))[:4].all() for x in finite)
    check_values(hidden, finite)
    check_keys(hidden, finite)


@pytest.mark.parametrize("group", [1, 2, 3, 8, 12, 16])
@pytest.mark.parametrize(("pair", "copies"), [("b16", "cp_async"), ("i4", "cp_async"), ("b16", "tma"), ("i8", "tma")])
def test_groups_of_every_size(rng, device, pair, copies, group):
    # A row tile then has rows of several tokens, a part of a token, or both.
    hidden = Hidden(rng, pair, copies, group=group, split=True, device=device)
    finite = hidden.attend(hidden.cache)
    check_values(hidden, finite)
    check_keys(hidden, finite)


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize(("pair", "copies"), [("b16", "cp_async"), ("b16", "tma"), ("i8", "cp_async")])
def test_wide_heads_in_float16(rng, device, pair, copies, head_dim):
    hidden = Hidden(rng, pair, copies, dtype=FLOAT16, head_dim=head_dim, device=device)
    finite = hidden.attend(hidden.cache)
    check_values(hidden, finite)
    check_keys(hidden, finite)


# --- rows of other tokens -------------------------------------------------------------------------------------------


def rising(rng, hidden, rise, constant=False):
    """Changes q and a copy of the cache so that the scores of query 1 rise by so much, in log2 units, from tile to tile
    of its keys, those of query 3 by a third of it, and those of others by chance alone. With `constant`, every row of V
    has one value, so that its scale is the least.
    """
    head_dim = hidden.q.shape[-1]
    q = hidden.q.reshape(len(hidden.lengths), NEW, 2 * hidden.group, head_dim)
    q[..., :2] = 0
    q[:, [1, 3]] = 0
    q[:, 1, :, 0] = q[:, 3, :, 1] = 1
    step = rise / np.log2(np.e) * head_dim**0.5
    for sequence, length in enumerate(hidden.lengths):
        k, v = (rng.standard_normal((length, 2, head_dim)).astype(hidden.dtype) for _ in range(2))
        tile = np.arange(length)[:, None] // hidden.tile
        k[..., 0], k[..., 1] = tile * step, tile * step / 3
        if constant:
            v[:] = v[..., :1]
        reference.append(hidden.cache, reference.Table([hidden.table.pages[sequence]], [length]), k, v, [length])


@pytest.mark.parametrize("rise", [-20.0, 7.9, 8.005, 8.1, 20.0])
@EVERY_KERNEL
def test_a_maximum_that_rises_in_one_row_changes_no_row_of_another_token(rng, device, pair, copies, rise):
    # A step in which some row outgrows its base makes all rows of the tile look at theirs again.
    hidden = Hidden(rng, pair, copies, split=True, tiles=4, device=device)
    rising(rng, hidden, rise)
    hidden.assert_alone(hidden.cache, hidden.attend(hidden.cache), range(NEW))


@pytest.mark.parametrize(("pair", "copies"), [(pair, "cp_async") for pair in ("i8", "i4")])
def test_nor_where_rows_of_v_are_constant(rng, device, pair, copies):
    # A base then follows the zeros of V, which a step of small scales does not look at by itself.
    hidden = Hidden(rng, pair, copies, split=True, tiles=4, device=device)
    for rise in range(75, 105, 3):
        rising(rng, hidden, rise, constant=True)
        hidden.assert_alone(hidden.cache, hidden.attend(hidden.cache), range(NEW))
