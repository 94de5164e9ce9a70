"""A cache that owns its pages: hands them to sequences, shares them between forks, and moves tokens in and out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from kvit import _checks, codecs, dtypes
from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.growth import Growth, check_all
from kvit._native.sent_tables import SentTables
from kvit._native.stream import Stream
from kvit.cache import calls
from kvit.cache.gathered import gather_layer
from kvit.cache.layer import CacheLayer
from kvit.cache.layer_group import Members, Place, Storage, copy_pages, new_members
from kvit.cache.layers import LayerKind, LayerSpec, kinds_of
from kvit.cache.maintained import MaintainedCache, append_to_all, append_to_one
from kvit.cache.operations import CachedOperations
from kvit.cache.page_pool import PagePool
from kvit.cache.sequence import Sequence
from kvit.cache.step import Step
from kvit.errors import ShapeError, refuse_copy
from kvit.layouts.key_smoothing import KeySmoothing
from kvit.layouts.parameters import compute_dtype
from kvit.layouts.views import CacheView, Layout, PageTable
from kvit.ops.faults import FaultRecord
from kvit.ops.modifiers import Window
from kvit.ops.rope import Rope
from kvit.ops.transfer import rows_like_each_other


class PagedCache(MaintainedCache):
    """K and V of many sequences in one pool of pages on one device, for one layer of a model or for all of them.

    pages       in the pool; a page holds page_size tokens of all KV heads, in every layer
    page_size   any number of tokens from 1
    kv_heads    of every layer that says nothing else
    head_dim    the same: channels of a row of K, and of V unless v_dim says otherwise
    layers      how many; or a list of kvit.LayerSpec, whose layers differ in heads, head_dim, k, v, rope or window. All
                have one set of sequences, one page table, and one fork, truncate and free
    v_dim       channels of a row of V, and of outputs of attention; head_dim if absent
    shares_kv   True: a row of V is the first v_dim channels of the row of K, in the same memory, as the latent rows of
                MLA (576 and 512). Stored in 16 bits; a rope turns the last channels, those behind V
    dtype       of queries, and of rows of K and V before they are stored: "bfloat16" or "float16"
    k, v        how they are stored: "int8", "int4", "int8_hadamard", "int4_hadamard", "float8_e4m3", "float8_e5m2", or
                the dtype itself, if absent; docs/codec_errors.md says which pair to use when
    k_scale     of float8, as in CacheView: float32, [] or [kv_heads]; rows are stored as row / scale. 1 if absent
    v_scale     the same
    layout      how a page lies in memory: "HND" (a head's tokens side by side) or "NHD"
    storage     what lies side by side: "layers", the pages of each layer; or "pages", the layers of each page, for who
                moves pages of all layers. Of layers that are alike; calls are the same
    rope        how append turns K, and Q with it; K is stored as it comes if absent
    smoothing   KeySmoothing: keys are stored less a mean and divided by a width, and q passes through append; of many
                layers each has its own, in a LayerSpec
    device      "cuda:0", ..., or "host", which needs no GPU

    Calls given no stream run on the device's default stream. Calls on different streams must be ordered by the caller
    (Event), frees of sequences among them: a page that goes back is handed out again at once. Not safe to call from
    several threads.

    Raises ShapeError, DtypeError, LayoutError, KernelMissing (dtype and head_dim that no kernel covers), NoGpuError.
    Paging: Kwon et al., Efficient Memory Management for LLM Serving with PagedAttention, 2023.
    """

    def __init__(
        self,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        layers: int | Iterable[LayerSpec] = 1,
        v_dim: int | None = None,
        shares_kv: bool = False,
        dtype: Any = "bfloat16",
        k: Any = None,
        v: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        layout: Layout = "HND",
        storage: Storage = "layers",
        rope: Rope | None = None,
        smoothing: KeySmoothing | None = None,
        device: str | Device = "cuda:0",
    ):
        if rope is not None:
            _checks.made("rope", rope, Rope, "a kvit.Rope")
        pages, page_size, kv_heads, head_dim = _checks.require_counts(
            pages=pages, page_size=page_size, kv_heads=kv_heads, head_dim=head_dim
        )
        _checks.require_layout(layout)
        _checks.choice("storage", storage, "layers", "pages")
        compute = compute_dtype(dtypes.dtype_of(dtype))
        sides = codecs.codec_of(compute if k is None else k), codecs.codec_of(compute if v is None else v)
        shares_kv = _checks.flag("shares_kv", shares_kv)
        own = LayerKind(kv_heads, head_dim, sides, (k_scale, v_scale), rope, v_dim, shares_kv, smoothing)
        kinds = kinds_of(layers, own, compute)
        self.device: str = Device.of(device).spec
        self._faults = FaultRecord(self.device)
        self._own, self._how = own, (pages, page_size, layout, compute, storage, self._faults)
        members = new_members(kinds, 0, [], *self._how)
        self.page_size = page_size
        self.kv_heads, self.head_dim, self.dtype, self.rope = kv_heads, head_dim, compute, rope
        self.pool = PagePool(pages, page_size)
        self.tables = SentTables(PageTable)
        self._use(members, [window for _, window in kinds])

    def _use(self, members: list[Members], windows: list[Window]) -> None:
        """Have these layers from now on: all that goes with them at once, or nothing."""
        places: dict[int, Place] = {}
        for group, indices in members:
            for i, view, rows in zip(indices, group.views, group.rows, strict=True):
                places[i] = Place(group, view, windows[i], rows)
        in_order = tuple(places[i] for i in range(len(places)))
        made = {"groups": [group for group, _ in members], "members": members, "places": in_order}
        self.__dict__.update(made)  # one step: an exception comes before it or after it

    @property
    def num_layers(self) -> int:
        """Layers that have K and V here."""
        return len(self.places)

    def layer(self, index: int) -> CacheLayer:
        """Layer `index` of the cache, from 0: what kvit.attention and a step take. Raises ShapeError."""
        index = _checks.whole("layer", index)
        if not 0 <= index < len(self.places):
            raise ShapeError(f"layer {index} of a cache of {len(self.places)}; give 0 to {len(self.places) - 1}")
        return CacheLayer(self, index)

    @property
    def layers(self) -> tuple[CacheLayer, ...]:
        """All layers, in order."""
        return tuple(CacheLayer(self, i) for i in range(len(self.places)))

    @property
    def view(self) -> CacheView:
        """K and V in their pages, as operations on raw buffers take them; of one layer. Raises ShapeError."""
        return self.only_place("view").view

    @property
    def operations(self) -> CachedOperations:
        """What calls of kvit.attention are made with, of a cache of one layer. Raises ShapeError."""
        return self.only_place("operations").group.operations

    def pages_needed(self, seqs: Iterable[Sequence], new_tokens: Iterable[int] | int) -> int:
        """How many free pages an append of so many tokens would take, copies of shared pages included.

        It fits if cache.num_free_pages is no less. Takes none. Raises SequenceFreed, ShapeError.
        """
        return self.pool.pages_needed(seqs, new_tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of K, V and their parameters in all layers, used or not."""
        return sum(group.nbytes for group in self.groups)

    def sequence(self) -> Sequence:
        """A new sequence without tokens; it takes pages as it grows."""
        found = Sequence.outside(self)
        self.pool.enter(found)
        return found

    def step(self, seqs: Iterable[Sequence], new_tokens: Iterable[int] | int, *, stream: Any = None) -> Step:
        """Begin a step: room for new tokens of sequences in all layers, which `with` makes theirs when it ends well.

        seqs        sequences of this cache, each at most once
        new_tokens  of each, or one number for all
        stream      Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        Takes pages, sends the page table, and copies pages that sequences share and that will be written: once for all
        layers. Inside, layer.append(step, k, v) writes K and V of a layer, and kvit.attention(q, layer, step) attends
        the new tokens: a launch each.
        Raises CacheFull (too few free pages), SequenceFreed, ShapeError, KvitError (a sequence is in another step);
        nothing has changed then.
        """
        seqs, stream = calls.members(seqs), Stream.wrap(stream, self.device)
        counts = calls.new_tokens_of(new_tokens, len(seqs))
        growth = Growth(self.pool, seqs, counts)
        try:
            if growth.num_copies:
                copy_pages(self.groups, growth.copies, stream)
            sent = self.tables.take(self.pool, seqs, growth, counts, stream)
            return Step(self, growth, counts, sent, stream, self.tables)
        except BaseException:
            growth.close()
            raise

    def append(
        self,
        seqs: Iterable[Sequence],
        k: Any,
        v: Any = None,
        new_tokens: Iterable[int] | None = None,
        *,
        q: Any = None,
        q_out: Any = None,
        rotate: bool = True,
        positions: Any = None,
        stream: Any = None,
    ) -> None:
        """Add tokens to the end of sequences. With a rope, rows of k turn to their places in the sequences.

        seqs        sequences of this cache, each at most once
        k, v        [tokens, kv_heads, head_dim] in the cache's dtype and on its device, sequence after sequence. Of a
                    cache of several layers, an array for each layer: `step` is for K and V that come layer by layer.
                    Where K and V share rows, k is whole rows [tokens, kv_heads, head_dim] and v None; or v is their
                    first channels, [..., v_dim], and k the others, which a rope turns: MLA's latent and rotary parts
        new_tokens  how many of the tokens each sequence gets; equally many if absent
        q           [tokens, query_heads, head_dim], with a rope: turned as k is; of a cache of one layer
        q_out       like q, written; q itself, in place, if absent
        rotate      False: k is stored as it is. For rows that are turned already, as those that gather returns are:
                    turned again they would stand for other positions
        positions   int32 [tokens] on the device, with a rope: what rows of k and q turn to; their places in the
                    sequences if absent. [3, tokens] of a rope with axes. Of a cache of one layer
        stream      Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        All or nothing: raises CacheFull (too few free pages), SequenceFreed, ShapeError, DtypeError, DeviceError or
        LayoutError before any page is taken or written. Returns before the work is done.
        Defined by kvit.reference.append.
        """
        if len(self.places) != 1:
            append_to_all(self, seqs, k, v, new_tokens, (q, q_out, positions), rotate, Stream.wrap(stream, self.device))
            return
        # All that may run the caller's code comes first; from Growth on, nobody else changes a sequence.
        seqs, stream = calls.members(seqs), Stream.wrap(stream, self.device)
        is_turned = rotate is True or _checks.flag("rotate", rotate)
        k, v = self.places[0].group.written(_checks.tensor("k", k, None, stream), v, stream)
        if q is not None or q_out is not None:
            q, q_out = (None if rows is None else _checks.tensor("q", rows, None, stream) for rows in (q, q_out))
        if positions is not None:
            positions = _checks.tensor("positions", positions, None, stream)
        if len(k.shape) != 3:
            k, v = rows_like_each_other(k, v, self.places[0].rows, stream)  # which says what is wrong
        counts = calls.counts_of("k", k.shape[0], len(seqs), new_tokens)
        append_to_one(self, seqs, counts, (k, v), is_turned, {"q": q, "q_out": q_out, "positions": positions}, stream)

    def gather(
        self,
        seqs: Iterable[Sequence],
        *,
        out: tuple[Any, Any] | None = None,
        layout: Layout = "NHD",
        stream: Any = None,
    ) -> tuple[Any, Any, Buffer]:
        """The tokens of sequences, end to end and decoded, in dense memory. With a rope, k comes turned, as stored.

        Of a cache of one layer; cache.layer(i).gather(seqs) of others.

        seqs    sequences of this cache, any number of times each
        out     (k, v) in the cache's dtype and on its device, a row for each token, written in place; any strides,
                dense channels; allocated if absent. (k, None) where K and V share rows: v is the first channels of k
        layout  of k and v. "NHD": [tokens, kv_heads, head_dim]; "HND": [kv_heads, tokens, head_dim]
        stream  Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        Returns k, v, and int32 indptr [sequences + 1] on the cache's device: sequence s has the rows indptr[s] to
        indptr[s + 1]. The work may not be done yet.
        Raises SequenceFreed, ShapeError, DtypeError, DeviceError, LayoutError, TypeError (out is no pair); nothing is
        launched then. Defined by kvit.reference.gather.
        """
        return gather_layer(self, self.only_place("gather"), seqs, out, layout, stream)

    def table(self, seqs: Iterable[Sequence], *, stream: Any = None) -> PageTable:
        """The page table of sequences as they are now, to attend to views of layers. It is the caller's own, to write
        in too.

        Raises SequenceFreed, ShapeError.
        """
        seqs, stream = calls.members(seqs), Stream.wrap(stream, self.device)
        check_all(self.pool, seqs)
        return calls.table_of([(seq.pages, len(seq)) for seq in seqs], 1, stream)

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
        layers = f"{self.num_layers} layers, " if self.num_layers > 1 else ""
        kinds = " and ".join(
            f"{view.kv_heads} KV heads, head_dim {view.dims}, {view.holds}"
            for view in (group.views[0] for group in self.groups)
        )
        return (
            f"PagedCache({layers}{self.num_pages} pages of {self.page_size} tokens, {self.num_free_pages} free, "
            f"{kinds}, {self.groups[0].views[0].layout}, {self.device})"
        )
