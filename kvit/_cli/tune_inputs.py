"""A cache full of random rows for `kvit tune`, and calls over it whose results are known to be right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import kvit
from kvit import codecs, dtypes
from kvit._cli import compare
from kvit._cli.tune_calls import Load, Store, Work
from kvit.errors import KvitError
from kvit.selection.registry import KernelInfo
from kvit.selection.rules import Rule, installed_rules
from kvit.selection.tuning import using

_CHUNK = 1000  # tokens that are appended again and again: no whole number of pages, so that neighbours differ
_RANDOM = 1_000_003  # numbers that are repeated; a prime, so that rows differ
_COMPARED = 1 << 19  # elements of a result, at most: some of its tokens, all of their heads
_OVER_L2 = 2  # calls take turns at so many times the memory that L2 holds
_SPREAD = 2.5  # of scores: a few tokens of thousands decide a result, so that a lost one is seen
_DTYPE = "bfloat16"
_TOO_MANY_PASSES = 4  # a kernel that reads K and V so many times as often as another is not measured


class Contender(NamedTuple):
    """An operation that is measured, and the rules for the card under which it runs."""

    op: kvit.Attention
    rules: tuple[Rule, ...]


class Inputs:
    """Pages full of rows; the calls of a load take turns at page tables that share no page.

    store   how K and V are kept
    work    the calls that there will be
    stream  of the device, not the default one
    rng     for rows and the order of pages
    """

    def __init__(self, store: Store, work: Work, stream: kvit.Stream, rng: np.random.Generator) -> None:
        self._store, self._work, self._stream = store, work, stream
        self._k, self._v = codecs.pair_of_key(store.kv, dtypes.bfloat16)
        self._token_bytes = work.kv_heads * codecs.pair_bytes(self._k, self._v, store.head_dim)
        l2_bytes = kvit.Device.of(stream.device).l2_bytes or 0
        self._rotated_tokens = math.ceil(_OVER_L2 * l2_bytes / self._token_bytes)
        pages = math.ceil((self._rotated_tokens + work.most_tokens) / store.page_size)
        self._normal = rng.standard_normal(_RANDOM, np.float32)
        self._cache = kvit.PagedCache(
            pages,
            store.page_size,
            work.kv_heads,
            store.head_dim,
            dtype=_DTYPE,
            k=self._k.name,
            v=self._v.name,
            layout=store.layout,
            device=stream.device,
        )
        self._fill(pages * store.page_size)
        self._order = rng.permutation(pages).astype(np.int32)

    def contenders(self, load: Load) -> list[Contender]:
        """Every kernel that is worth a measurement, the one that kvit's own rules choose first."""
        shipped = installed_rules()
        chosen = self._contender(load, shipped)
        ranked = chosen.op.plan.choice.ranked
        passes = {kernel: _passes(kernel, chosen.op.plan.rows) for _, kernel in ranked}
        least = min(passes.values())
        others = [kernel for _, kernel in ranked[1:] if passes[kernel] < _TOO_MANY_PASSES * least]
        return [chosen, *(self._contender(load, shipped, kernel) for kernel in others)]

    def contenders_under(self, load: Load, rules: Sequence[Rule]) -> list[Contender]:
        """What kvit's own rules choose, once with each of these in front of them."""
        return [self._contender(load, (rule, *installed_rules())) for rule in rules]

    def calls(self, load: Load, contenders: Sequence[Contender]) -> list[list[Callable[[], object]]]:
        """For each contender its calls, which take turns at the tables of a load.

        Raises KvitError unless all give the same over the first table, within what rounding explains.
        """
        q, out, lse = self._arrays(load)
        views, tables = [self._view() for _ in contenders], self._tables(load)
        results = []
        for contender, view in zip(contenders, views, strict=True):
            with using(contender.rules):  # the first call over a view makes its tensor maps
                results.append(self._result(contender.op, view, q, tables[0], out, lse))
        self._require_same(load, [contender.op for contender in contenders], results)

        def call(op: kvit.Attention, view: kvit.CacheView, table: kvit.PageTable) -> Callable[[], object]:
            return lambda: op(q, view, table, out=out, lse=lse, stream=self._stream)

        pairs = zip(contenders, views, strict=True)
        return [[call(contender.op, view, table) for table in tables] for contender, view in pairs]

    def _contender(self, load: Load, rules: Sequence[Rule], kernel: KernelInfo | None = None) -> Contender:
        with using(rules):
            op = kvit.Attention(
                self._cache.view,
                self._work.kv_heads * self._work.group,
                tokens_per_sequence=load.new_tokens,
                kernel=None if kernel is None else kernel.symbol,
            )
        return Contender(op, tuple(rules))

    def _fill(self, tokens: int) -> None:
        """Rows of K around zero, and of V above it: a sum of them is as large as the sum of their sizes."""
        store, work = self._store, self._work
        shape = (min(_CHUNK, tokens), work.kv_heads, store.head_dim)
        rows = [self._random(shape, self._normal), self._random(shape, np.abs(self._normal[::-1]))]
        sequence = self._cache.sequence()
        while len(sequence) < tokens:
            count = min(shape[0], tokens - len(sequence))
            self._cache.append([sequence], *(array[:count] for array in rows), stream=self._stream)
        self._cache.check()

    def _arrays(self, load: Load) -> tuple[kvit.Buffer, kvit.Buffer, kvit.Buffer]:
        shape = (load.batch * load.new_tokens, self._work.kv_heads * self._work.group, self._store.head_dim)
        device, stream = self._stream.device, self._stream
        return (
            self._random(shape, _SPREAD * self._normal),
            kvit.Buffer.empty(shape, _DTYPE, device, stream),
            kvit.Buffer.empty(shape[:2], "float32", device, stream),
        )

    def _tables(self, load: Load) -> list[kvit.PageTable]:
        slots = math.ceil(load.context / self._store.page_size)
        tokens = load.batch * load.context
        count = max(1, min(math.ceil(self._rotated_tokens / tokens), len(self._order) // (load.batch * slots)))
        lengths = self._upload(np.full(load.batch, load.context, np.int32))
        pages = self._order[: count * load.batch * slots].reshape(count, load.batch, slots)
        return [kvit.PageTable(self._upload(rows), lengths=lengths) for rows in pages]

    def _view(self) -> kvit.CacheView:
        """The cache again: each has tensor maps of its own, made when the first call over it asks for them."""
        view = self._cache.view
        extras = {
            f"{side}_{codec.params if codec.params == 'scale' else 'params'}": params
            for side, codec, params in (("k", self._k, view.k_params), ("v", self._v, view.v_params))
            if params is not None
        }
        kv = (self._k.name, self._v.name)
        return kvit.CacheView(view.k, view.v, layout=view.layout, kv=kv, dtype=_DTYPE, **extras)

    def _result(
        self, op: kvit.Attention, view: kvit.CacheView, q: kvit.Buffer, table: kvit.PageTable, *outputs: kvit.Buffer
    ) -> tuple[NDArray, NDArray]:
        for output in outputs:
            output.fill_bytes(0xFF, self._stream)
        out, lse = outputs
        op(q, view, table, out=out, lse=lse, stream=self._stream)
        op.check(self._stream)
        return out.numpy(), lse.numpy()

    def _require_same(self, load: Load, ops: Sequence[kvit.Attention], results: list[tuple[NDArray, NDArray]]) -> None:
        (whole, lse), is_coded = results[0], any(codec.dtype.bits < 16 for codec in (self._k, self._v))
        step = math.ceil(whole.size / _COMPARED)
        out = whole[::step]
        # Each differs from what is right by its own roundings, so two of them by twice as much. V is positive, so the
        # sum of the sizes is the result itself.
        magnitude = np.abs(out.astype(np.float64))
        bound = compare.attention_bound(magnitude, out.dtype) + is_coded * compare.CODED_SCORE_BOUND * 2 * magnitude
        # Weights of coded values are float16, of which half the least step is 2**-25: it shows in outputs near 0.
        bound += is_coded * 2.0**-25 * load.context * magnitude.max()
        lse_bound = compare.CODED_SCORE_BOUND if is_coded else compare.LSE_BOUND
        try:
            for op, (other, other_lse) in zip(ops, results, strict=True):
                name = op.kernel.symbol
                compare.expect(bool(np.isfinite(other_lse).all()), f"lse of {name} is not finite everywhere")
                compare.expect_close(f"out of {name}", other[::step], out, 2 * bound)
                compare.expect_close(f"lse of {name}", other_lse, lse, 2 * lse_bound)
        except compare.Mismatch as mismatch:
            raise KvitError(
                f"kernels for the same call disagree, so none was timed and nothing is written. {self._store}, {load}, "
                f"beside {ops[0].kernel.symbol}: {mismatch}.\n"
                f"  Run: kvit selfcheck --device {self._stream.device}"
            ) from None

    def _random(self, shape: tuple[int, ...], numbers: NDArray) -> kvit.Buffer:
        return self._upload(np.resize(numbers.astype(dtypes.numpy_dtype(dtypes.bfloat16)), shape))

    def _upload(self, array: NDArray) -> kvit.Buffer:
        return kvit.Buffer.from_numpy(np.ascontiguousarray(array), self._stream.device, self._stream)


def _passes(kernel: KernelInfo, rows: int) -> int:
    return math.ceil(rows / int(kernel.axes["rows"])) * kernel.facts.get("pass_cost", 1)
