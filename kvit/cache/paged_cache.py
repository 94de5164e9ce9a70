"""A cache that owns its pages: hands them to sequences, shares them between forks, and moves tokens in and out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, chain
from typing import Any, Literal, NoReturn

from kvit import _checks, codecs, dtypes
from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit.cache.batch import SentTables, counts_of, listed, new_table, numbers_of
from kvit.cache.operations import CachedOperations
from kvit.cache.page_owners import chains_of
from kvit.cache.page_pool import PagePool
from kvit.cache.sequence import Sequence
from kvit.cache.storage import new_pools, upload
from kvit.errors import ShapeError, refuse_copy
from kvit.layouts.parameters import compute_dtype
from kvit.layouts.views import CacheView, Layout, PageTable
from kvit.ops.append import Append
from kvit.ops.copy_pages import CopyPages
from kvit.ops.faults import FaultRecord
from kvit.ops.gather import Gather, pair_of
from kvit.ops.rope import Rope
from kvit.ops.transfer import rows_like_each_other


class PagedCache(_checks.Made):
    """K and V of many sequences in one pool of pages on one device.

    pages       in the pool; a page holds page_size tokens of all KV heads
    page_size   any number of tokens from 1
    dtype       of queries, and of rows of K and V before they are stored: "bfloat16" or "float16"
    k, v        how they are stored: "int8", "int4", "float8_e4m3", "float8_e5m2", or the dtype itself, if absent;
                docs/quantisation.md says which pair to use when
    k_scale     of float8, as in CacheView: float32, [] or [kv_heads]; rows are stored as row / scale. 1 if absent
    v_scale     the same
    layout      how a page lies in memory: "HND" (a head's tokens side by side) or "NHD"
    rope        how append turns K, and Q with it; K is stored as it comes if absent
    device      "cuda:0", ..., or "host", which needs no GPU

    Calls given no stream run on the device's default stream. Calls on different streams must be ordered by the caller
    (Event), frees of sequences among them: a page that goes back is handed out again at once. Not safe to call from
    several threads.

    Raises ShapeError, DtypeError, LayoutError, KernelMissing (dtype and head_dim that no kernel covers), NoGpuError.
    Paging: Kwon et al., Efficient Memory Management for LLM Serving with PagedAttention, 2023.
    """

    view: CacheView
    """K and V in their pages, as operations on raw buffers take them."""
    operations: CachedOperations
    """What calls of kvit.attention are made with."""
    _append: Append
    _gather: Gather
    _copy: CopyPages
    _shifts: dict[bool, Any]  # the operations of shift, by whether keys turn; made when first asked for

    def __init__(
        self,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: Any = "bfloat16",
        k: Any = None,
        v: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        layout: Layout = "HND",
        rope: Rope | None = None,
        device: str | Device = "cuda:0",
    ):
        if rope is not None:
            _checks.made("rope", rope, Rope, "a kvit.Rope")
        shape = pages, page_size, kv_heads, head_dim = _checks.require_counts(
            pages=pages, page_size=page_size, kv_heads=kv_heads, head_dim=head_dim
        )
        _checks.require_layout(layout)
        compute = compute_dtype(dtypes.dtype_of(dtype))
        sides = tuple(codecs.codec_of(compute if stored is None else stored) for stored in (k, v))
        view = new_pools(shape, layout, compute, sides, (k_scale, v_scale), Device.of(device))
        self.page_size = page_size
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.dtype = compute
        self.device: str = view.device
        self.rope = rope
        self.pool = PagePool(pages, page_size)
        self.tables = SentTables()
        self._faults = FaultRecord(self.device)
        self._use(view)

    def _use(self, view: CacheView) -> None:
        """Keep K and V in this memory from now on: all that goes with it at once, or nothing."""
        made = {
            "view": view,
            "_append": Append(view, rope=self.rope, faults=self._faults),
            "_append_as_it_is": Append(view, faults=self._faults),
            "_gather": Gather(view, faults=self._faults),
            "_copy": CopyPages(view, faults=self._faults),
            "_shifts": {},
            "operations": CachedOperations(view, self._faults),
        }
        self.__dict__.update(made)  # one step: an exception comes before it or after it

    @property
    def num_pages(self) -> int:
        """Pages in the pool."""
        return self.pool.num_pages

    @property
    def num_free_pages(self) -> int:
        """Pages that no sequence has."""
        return self.pool.num_free

    @property
    def nbytes(self) -> int:
        """Bytes of K, V and their parameters, used or not."""
        return self.view.nbytes

    def sequence(self) -> Sequence:
        """A new sequence without tokens; it takes pages as it grows."""
        found = Sequence.outside(self)
        self.pool.add(found.number)
        return found

    def append(
        self,
        seqs: Iterable[Sequence],
        k: Any,
        v: Any,
        new_tokens: Iterable[int] | None = None,
        *,
        q: Any = None,
        q_out: Any = None,
        rotate: bool = True,
        stream: Any = None,
    ) -> None:
        """Add tokens to the end of sequences. With a rope, rows of k turn to their places in the sequences.

        seqs        sequences of this cache, each at most once
        k, v        [tokens, kv_heads, head_dim] in the cache's dtype and on its device, sequence after sequence
        new_tokens  how many of the tokens each sequence gets; equally many if absent
        q           [tokens, query_heads, head_dim], with a rope: turned as k is
        q_out       like q, written; q itself, in place, if absent
        rotate      False: k is stored as it is. For rows that are turned already, as those that gather returns are:
                    turned again they would stand for other positions
        stream      Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        All or nothing: raises CacheFull (too few free pages), SequenceFreed, ShapeError, DtypeError, DeviceError or
        LayoutError before any page is taken or written. Returns before the work is done.
        Defined by kvit.reference.append.
        """
        # All that may run the caller's code comes first; from numbers_of on, nobody else changes a sequence.
        seqs = listed(seqs)
        stream, is_turned = Stream.wrap(stream, self.device), _checks.flag("rotate", rotate)
        k, v = rows_like_each_other(k, v, self.view, stream)
        q, q_out = (None if rows is None else _checks.tensor("q", rows, None, stream) for rows in (q, q_out))
        counts = counts_of("k", k.shape[0], len(seqs), new_tokens)
        numbers = numbers_of(self.pool, seqs, distinct=True)
        growth = self.pool.grow(numbers, counts)
        if growth.copies:
            source, target = (upload(list(pages), stream) for pages in zip(*growth.copies, strict=True))
            self._copy(self.view, source, target, stream=stream)
        table, indptr = self.tables.send(growth.after, counts, stream)
        append = self._append if is_turned else self._append_as_it_is
        append(k, v, self.view, table, query_indptr=indptr, q=q, q_out=q_out, stream=stream)
        self.pool.keep(growth)

    def gather(
        self,
        seqs: Iterable[Sequence],
        *,
        out: tuple[Any, Any] | None = None,
        layout: Layout = "NHD",
        stream: Any = None,
    ) -> tuple[Any, Any, Buffer]:
        """The tokens of sequences, end to end and decoded, in dense memory. With a rope, k comes turned, as stored.

        seqs    sequences of this cache, any number of times each
        out     (k, v) in the cache's dtype and on its device, a row for each token, written in place; any strides,
                dense channels; allocated if absent
        layout  of k and v. "NHD": [tokens, kv_heads, head_dim]; "HND": [kv_heads, tokens, head_dim]
        stream  Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        Returns k, v, and int32 indptr [sequences + 1] on the cache's device: sequence s has the rows indptr[s] to
        indptr[s + 1]. The work may not be done yet.
        Raises SequenceFreed, ShapeError, DtypeError, DeviceError, LayoutError, TypeError (out is no pair); nothing is
        launched then. Defined by kvit.reference.gather.
        """
        _checks.require_layout(layout)
        seqs, stream = listed(seqs), Stream.wrap(stream, self.device)
        if out is not None:
            out = pair_of(out)
            rows = [_checks.tensor(name, given, self.dtype, stream) for name, given in zip("kv", out, strict=True)]
        # From here on no code of the caller runs.
        of_each = self.pool.pages_of_all(numbers_of(self.pool, seqs))
        starts = [0, *accumulate(length for _, length in of_each)]
        if starts[-1] > _checks.MOST:
            raise ShapeError(f"the sequences have {starts[-1]} tokens; at most {_checks.MOST} can be gathered at once")
        axes = {"tokens": starts[-1], "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        if layout == "HND":
            axes = {name: axes[name] for name in ("kv_heads", "tokens", "head_dim")}
        if out is None:
            out = rows = [Buffer.empty(tuple(axes.values()), self.dtype, self.device, stream) for _ in range(2)]
        for name, found in zip("kv", rows, strict=True):
            _checks.require_shape(name, found, **axes)
        indptr = upload(starts, stream)
        table, _ = self.tables.send(of_each, [0] * len(of_each), stream)
        self._gather(self.view, table, query_indptr=indptr, out=tuple(rows), layout=layout, stream=stream)
        return *out, indptr

    def defragment(self, *, order: Literal["front", "sequences"] = "front", stream: Any = None) -> int:
        """Move pages to the front of the pool. Sequences keep their tokens; the ids of their pages change.

        order   "front": as few moves as possible; free pages come last. "sequences": also each sequence's pages one
                after another, in the order in which sequences were made; a page that several hold comes with the first
        stream  Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        Returns how many pages moved, before they have. Page tables that were made before, in captured graphs too, name
        pages that others may have now: make them anew. Defined by kvit.reference.copy_pages, all pages at once.
        """
        _checks.choice("order", order, "front", "sequences")
        stream = Stream.wrap(stream, self.device)
        moves = self.pool.moves_to_front(by_sequence=order == "sequences")
        if moves:
            plan = chains_of(moves)
            source, target = (upload(list(pages), stream) for pages in zip(*chain.from_iterable(plan), strict=True))
            starts = upload([0, *accumulate(map(len, plan))], stream)
            self._copy.then_set(self.view, source, target, starts, stream, self.pool.renaming(moves))
        return len(moves)

    def shift(self, seqs: Iterable[Sequence], drop: Any, *, keep: Any = 0, rotate=True, stream: Any = None) -> None:
        """Drop tokens behind the first ones of sequences, and move those behind them to the front (context shift).

        seqs    sequences of this cache, each at most once
        drop    how many tokens go, and
        keep    how many stay in front of them: numbers for all sequences, or one for each. Whole pages move fastest
        rotate  False: keys hold no position and only move. Else they turn to their new places by the cache's rope

        All or nothing, as append: raises CacheFull (moved rows take pages of dropped tokens, then free ones, never
        pages of others), SequenceFreed, ShapeError, ValueError (no rope). Defined by kvit.reference.shift.
        """
        seqs, stream, is_turned = listed(seqs), Stream.wrap(stream, self.device), _checks.flag("rotate", rotate)
        from kvit.cache.shift import operation_of, shift_sequences  # with an operation that most caches never need

        operation = operation_of(self._shifts, self.view, self.rope, is_turned, self._faults)
        shift_sequences(operation, self.view, self.pool, seqs, drop, keep, stream)

    def requantise(
        self, *, k: Any = None, v: Any = None, k_scale: Any = None, v_scale: Any = None, stream: Any = None
    ) -> None:
        """Store K and V in another way from now on. Sequences keep their tokens and their pages.

        k, v              as in PagedCache; what is absent stays as it is
        k_scale, v_scale  of float8, as in PagedCache
        stream            Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        Takes new memory and gives the old back: both are held while pages are converted. ConvertPages works in place,
        on memory of your own. Returns before the work is done.
        Raises DtypeError, KernelMissing (no kernels for the pair, or no such change), LayoutError (float8 that stays,
        with other scales); nothing has changed then. Defined by kvit.reference.convert_pages.
        """
        stream = Stream.wrap(stream, self.device)
        from kvit.cache.requantise import requantised  # with all that converts pages, which most caches never are

        named = (("k_scale", k_scale), ("v_scale", v_scale))
        scales = tuple(None if x is None else _checks.tensor(name, x, None, stream) for name, x in named)
        self._use(requantised(self.view, (k, v), scales, self.pool.used(), self._faults, stream))

    def table(self, seqs: Iterable[Sequence], *, stream: Any = None) -> PageTable:
        """The page table of sequences as they are now, to attend to `view`. It is the caller's own, to write in too.

        Raises SequenceFreed, ShapeError.
        """
        seqs, stream = listed(seqs), Stream.wrap(stream, self.device)
        of_each = self.pool.pages_of_all(numbers_of(self.pool, seqs))
        return new_table(of_each, [0] * len(of_each), stream)[0]

    def check(self, stream: Any = None) -> None:
        """Wait for the work of `stream`, by default of the last call, and raise PageTableError if a kernel met a fault.

        Tables that the cache makes are right; a fault means that its memory or a table was overwritten by somebody
        else.
        """
        self._faults.check(stream)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "it owns its pages; make another PagedCache and append what gather gives")

    @_checks.words_of_made
    def __repr__(self) -> str:
        return (
            f"PagedCache({self.num_pages} pages of {self.page_size} tokens, {self.num_free_pages} free, "
            f"{self.kv_heads} KV heads, head_dim {self.head_dim}, {self.view.holds}, {self.view.layout}, {self.device})"
        )
