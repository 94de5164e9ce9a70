"""One layer of a PagedCache: its K and V, with the sequences that all layers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvit import _checks
from kvit._native.buffer import Buffer
from kvit.cache.gathered import gather_layer
from kvit.cache.layer_group import Place
from kvit.cache.operations import CachedOperations
from kvit.cache.sequence import Sequence
from kvit.cache.step import Step
from kvit.dtypes import Dtype
from kvit.errors import ShapeError
from kvit.layouts.views import CacheView, Layout
from kvit.ops.modifiers import Window
from kvit.ops.rope import Rope


class CacheLayer(_checks.Made):
    """One layer of a PagedCache: cache.layer(i). Sequences, pages and lengths are those of the cache.

    kvit.attention and step take it. Queries of any layer of the model may read it: layers that share the K and V of
    another one have no layer of their own in the cache.
    """

    def __init__(self, cache: Any, index: int):
        self.cache = cache  # a PagedCache, which stands above this module
        self.index = index

    @property
    def place(self) -> Place:
        """Where the layer lies now: requantise moves it."""
        return self.cache.places[self.index]

    @property
    def view(self) -> CacheView:
        """K and V of the layer in their pages, as operations on raw buffers take them, with cache.table(seqs)."""
        return self.place.view

    @property
    def operations(self) -> CachedOperations:
        """What calls of kvit.attention on layers like this one are made with."""
        return self.place.group.operations

    @property
    def window(self) -> Window:
        """Keys that queries of this layer see; None: all. kvit.attention takes it where a call names none."""
        return self.place.window

    @property
    def rope(self) -> Rope | None:
        """How append turns K of this layer."""
        return self.place.group.rope

    @property
    def kv_heads(self) -> int:
        """Of this layer."""
        return self.view.kv_heads

    @property
    def head_dim(self) -> int:
        """Of this layer: channels of a row of K, and of a query."""
        return self.view.head_dim

    @property
    def v_dim(self) -> int:
        """Of this layer: channels of a row of V, and of an output."""
        return self.view.v_dim

    @property
    def shares_kv(self) -> bool:
        """Whether rows of V are the first channels of the rows of K, in the same memory."""
        return self.place.group.kind.shares_kv

    @property
    def dtype(self) -> Dtype:
        """Of queries, and of rows of K and V before they are stored."""
        return self.view.dtype

    @property
    def device(self) -> str:
        """ "cuda:N" or "host"."""
        return self.view.device

    def append(
        self,
        step: Any,
        k: Any,
        v: Any = None,
        *,
        q: Any = None,
        q_out: Any = None,
        rotate: bool = True,
        positions: Any = None,
    ) -> None:
        """Write K and V of a step's tokens in this layer: one launch. With a rope, rows of k turn to their places.

        step          of the cache, open: cache.step(seqs, new_tokens), or a kvit.Batch whose step is open
        k, v          [tokens, kv_heads, head_dim] in the cache's dtype and on its device, sequence after sequence;
                      where K and V share rows, as in PagedCache.append
        q, q_out, rotate, positions
                      as in PagedCache.append

        The sequences grow when the step is committed. Returns before the work is done, on the step's stream.
        Raises KvitError (the step has ended, or a sequence was changed since it began), ShapeError, DtypeError,
        DeviceError, LayoutError; nothing is written then. Defined by kvit.reference.append.
        """
        step = getattr(step, "open_step", step)
        _checks.made("step", step, Step, "an open step: cache.step(seqs, new_tokens)")
        if step.cache is not self.cache:
            raise ShapeError("the step is of another cache; begin one of this cache: cache.step(seqs, new_tokens)")
        stream, is_turned = step.stream, _checks.flag("rotate", rotate)
        k, v = self.place.group.written(_checks.tensor("k", k, None, stream), v, stream)
        q, q_out, positions = (
            None if x is None else _checks.tensor(name, x, None, stream)
            for name, x in (("q", q), ("q_out", q_out), ("positions", positions))
        )
        if k.shape[:1] != (step.num_tokens,):
            raise ShapeError(f"k has shape {list(k.shape)} and the step {step.num_tokens} tokens; give a row for each")
        # From here on no code of the caller runs, which might change a sequence.
        step.growth.require_current()
        group, rows = self.place.group, self.place.rows
        append = group.append if is_turned else group.append_as_it_is
        sent = step.sent
        append(k, v, rows, sent.table, query_indptr=sent.rows, q=q, q_out=q_out, positions=positions, stream=stream)
        step.written.add(self.index)

    def gather(
        self,
        seqs: Iterable[Sequence],
        *,
        out: tuple[Any, Any] | None = None,
        layout: Layout = "NHD",
        stream: Any = None,
    ) -> tuple[Any, Any, Buffer]:
        """The tokens of sequences in this layer, end to end and decoded: PagedCache.gather of one layer."""
        return gather_layer(self.cache, self.place, seqs, out, layout, stream)

    @_checks.words_of_made
    def __repr__(self) -> str:
        window = "" if self.window is None else f", window {self.window}"
        return f"CacheLayer({self.index} of {self.cache.num_layers}, {self.view!r}{window})"
