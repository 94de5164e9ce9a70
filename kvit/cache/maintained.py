"""What a PagedCache does to all its layers at once: many-layer appends, defragmentation, shifts, other codecs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from kvit import _checks
from kvit._native.growth import Growth
from kvit._native.sent_tables import SentTables
from kvit._native.stream import Stream
from kvit.cache import calls
from kvit.cache.layer import CacheLayer
from kvit.cache.layer_group import LayerGroup, Members, Place, copy_pages, new_members
from kvit.cache.layers import LayerKind, LayerSpec, kinds_of
from kvit.cache.page_pool import PagePool
from kvit.cache.sequence import Sequence
from kvit.dtypes import Dtype
from kvit.errors import KvitError, ShapeError
from kvit.ops.modifiers import Window
from kvit.ops.transfer import rows_like_each_other

if TYPE_CHECKING:
    from kvit.cache.swap import SwappedSequence


class MaintainedCache(_checks.Made):
    """Base of kvit.PagedCache: the calls on pages of all layers that are made now and then."""

    groups: list[LayerGroup]
    """Layers that are alike, with their memory and their operations."""
    members: list[Members]
    """The same, with the indices of the layers."""
    places: tuple[Place, ...]
    """Where each layer lies."""
    pool: PagePool
    """Which sequence has which pages."""
    tables: SentTables
    """Page tables of calls, for calls of the cache alone."""
    device: str
    dtype: Dtype
    _own: LayerKind
    _how: tuple[Any, ...]

    def _use(self, members: list[Members], windows: list[Window]) -> None:
        """Have these layers from now on: all that goes with them at once, or nothing."""
        raise NotImplementedError

    @property
    def num_pages(self) -> int:
        """Pages in the pool."""
        return self.pool.num_pages

    @property
    def num_free_pages(self) -> int:
        """Pages that no sequence has."""
        return self.pool.num_free

    def only_place(self, name: str) -> Place:
        """Where the layer lies, of a cache that has but one. Raises ShapeError."""
        if len(self.places) != 1:
            raise ShapeError(f"the cache has {len(self.places)} layers; say which: cache.layer(i) has {name}")
        return self.places[0]

    def add_layers(self, layers: int | Iterable[LayerSpec] = 1) -> tuple[CacheLayer, ...]:
        """More layers behind those that there are, in memory of their own; returned in order.

        For models whose layers are known one after another, as their first K and V come: a step that is open takes the
        new layers in. What a LayerSpec leaves out is what the cache was made with.

        layers  how many; or a list of kvit.LayerSpec

        Raises KvitError (a sequence has tokens, of which new layers know nothing), and what PagedCache raises of
        layers; nothing has changed then.
        """
        kinds = kinds_of(layers, self._own, self.dtype)
        if self.pool.num_tokens:
            raise KvitError(
                f"sequences of the cache have {self.pool.num_tokens} tokens, and a new layer would hold none of them; "
                "add layers before the first tokens, or free the sequences"
            )
        begin = len(self.places)
        added = new_members(kinds, begin, self.members, *self._how)
        windows = [*(place.window for place in self.places), *(window for _, window in kinds)]
        self._use([*self.members, *added], windows)
        return tuple(CacheLayer(self, i) for i in range(begin, len(self.places)))

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
            from kvit.cache.maintenance import move_pages  # with operations that most caches never need

            move_pages(self.groups, self.pool, moves, stream)
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
        seqs, stream, is_turned = calls.members(seqs), Stream.wrap(stream, self.device), _checks.flag("rotate", rotate)
        from kvit.cache.maintenance import shift_sequences

        shift_sequences(self.groups, self.pool, seqs, drop, keep, is_turned, stream)

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
        from kvit.cache.maintenance import requantised

        named = (("k_scale", k_scale), ("v_scale", v_scale))
        scales = tuple(None if x is None else _checks.tensor(name, x, None, stream) for name, x in named)
        found = requantised(self.groups, (k, v), scales, self.pool.used(), stream)
        members = [Members(group, indices) for group, (_, indices) in zip(found, self.members, strict=True)]
        self._use(members, [place.window for place in self.places])

    def swap_out(self, seq: Sequence, *, stream: Any = None) -> SwappedSequence:
        """The stored bytes of a sequence in host memory: all layers, any codec. Returns when they are there.

        The sequence stays as it is. Free it once its bytes are here, and its pages go back:

            swapped = cache.swap_out(seq)
            seq.free()
            ...
            seq = cache.swap_in(swapped)

        stream  Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        Takes up to 32 MiB on the device for the time of the call. Raises SequenceFreed, ShapeError.
        """
        from kvit.cache.swap import swapped_out

        return swapped_out(self, seq, Stream.wrap(stream, self.device))

    def swap_in(self, swapped: SwappedSequence, *, stream: Any = None) -> Any:
        """A new sequence of the tokens that swap_out took, bit for bit, in this cache or in another one like it.

        stream  as in swap_out

        Scales of float8 are the cache's, and no part of the bytes. Raises CacheFull, ShapeError (other layers or
        pages), DtypeError (other codecs, after a requantise); nothing has changed then.
        """
        from kvit.cache.swap import SwappedSequence, swapped_in

        _checks.instance("swapped", swapped, SwappedSequence, "what cache.swap_out returned")
        return swapped_in(self, swapped, Stream.wrap(stream, self.device))


# Apart from what checks the arguments: CPython 3.11 never leaves a `with` that stands far behind the beginning of its
# function, where no memory is left for the number of the instruction.
def append_to_one(
    cache: Any,
    seqs: tuple[Sequence, ...],
    counts: list[int] | int,
    new: tuple[Any, Any],
    is_turned: bool,
    others: dict[str, Any],
    stream: Stream,
) -> None:
    """PagedCache.append of a cache of one layer: rows of K and V that were checked, and what Append takes besides."""
    group, _, _, rows = cache.places[0]
    append = group.append if is_turned else group.append_as_it_is
    with Growth(cache.pool, seqs, counts) as growth:
        if growth.num_copies:
            rows_like_each_other(*new, rows, stream)
            copy_pages(cache.groups, growth.copies, stream)
        sent = cache.tables.take(cache.pool, seqs, growth, counts, stream)
        append(*new, rows, sent.table, query_indptr=sent.rows, stream=stream, **others)
        growth.keep()
    cache.tables.give(sent)


def append_to_all(
    cache: Any,
    seqs: Iterable[Any],
    k: Any,
    v: Any,
    new_tokens: Any,
    of_one_layer: tuple[Any, Any, Any],
    rotate: Any,
    stream: Stream,
) -> None:
    """PagedCache.append of a cache of several layers, all of whose rows are there."""
    seqs, is_turned = calls.members(seqs), _checks.flag("rotate", rotate)
    if any(given is not None for given in of_one_layer):
        raise ShapeError(
            "q and positions are of one layer, and append fills all of them; use cache.step and layer.append"
        )
    pairs = []
    if v is None:  # layers whose rows of K hold those of V
        v = [None] * cache.num_layers
    each = [_checks.listed(name, x, "an array for each layer") for name, x in (("k", k), ("v", v))]
    if {len(each[0]), len(each[1])} != {cache.num_layers}:
        raise ShapeError(
            f"k has rows for {len(each[0])} layers and v for {len(each[1])}, and the cache has {cache.num_layers} "
            "layers; give an array for each layer, or use cache.step"
        )
    for place, rows_k, rows_v in zip(cache.places, *each, strict=True):
        found = place.group.written(_checks.tensor("k", rows_k, None, stream), rows_v, stream)
        pairs.append(rows_like_each_other(*found, place.rows, stream))
        if pairs[-1][0].shape[0] != pairs[0][0].shape[0]:
            raise ShapeError("layers get different numbers of tokens; all have the same sequences")
    counts = calls.counts_of("k", pairs[0][0].shape[0], len(seqs), new_tokens)
    with cache.step(seqs, counts, stream=stream) as step:
        for layer, (rows_k, rows_v) in zip(cache.layers, pairs, strict=True):
            layer.append(step, rows_k, rows_v, rotate=is_turned)
