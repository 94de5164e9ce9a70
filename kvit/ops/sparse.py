"""Attention of queries to entries of the cache that each has chosen: a launch that makes page tables, and attention."""

from __future__ import annotations

from typing import Any

from kvit import _checks, dtypes
from kvit._native import select_op
from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import LayoutError, ShapeError
from kvit.layouts.views import CacheView, PageTable
from kvit.ops import aliases
from kvit.ops.attention import Attention
from kvit.ops.chosen_view import ChosenView
from kvit.ops.faults import FaultRecord
from kvit.ops.modifiers import require_whole_scores
from kvit.ops.operation import Launch, Operation, rows_per_sequence
from kvit.selection import choose, registry


class SparseAttention(Operation):
    """Attention that reads, of a sequence, the entries which each query has chosen, and nothing else.

    view          CacheView of the caches to come: their dtype, KV heads, head_dim and layout count
    query_heads   a multiple of the view's KV heads
    entry_tokens  tokens of an entry: entry i of a sequence is tokens [i * entry_tokens, (i + 1) * entry_tokens). A
                  divisor of the view's page size, or a multiple of it: 1, 4, 64 and 128 are usual
    entries       how many entries a query may choose
    queries       most query tokens of a call; memory for their tables is taken now, 4 bytes for each page they choose
    per_head      whether every KV head chooses for itself, or all together
    causal        a query sees no token behind its own, of its own entry either
    scale, softcap, sinks, kernel, launch, faults
                  as kvit.Attention has them; launch is of its kernel

    A call is two launches, captures into a graph, and allocates nothing but the outputs that are not given.
    Raises ShapeError (entry_tokens, counts), LayoutError (no smaller pages lie at equal distances in such a view;
    scales for each head with per_head), KernelMissing, NoGpuError, DtypeError.
    Defined by kvit.reference.sparse_attention.
    """

    def __init__(
        self,
        view: CacheView,
        query_heads: int,
        *,
        entry_tokens: int,
        entries: int,
        queries: int,
        per_head: bool = False,
        causal: bool = True,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Any = None,
        kernel: choose.Wanted = None,
        launch: Launch = "direct",
        faults: FaultRecord | None = None,
    ):
        super().__init__(view, faults, launch)
        self.entry_tokens, self.entries, self.queries = _checks.require_counts(
            entry_tokens=entry_tokens, entries=entries, queries=queries
        )
        self.causal, self.per_head = _checks.flag("causal", causal), _checks.flag("per_head", per_head)
        self.query_heads = _checks.group_size(query_heads, view.kv_heads) * view.kv_heads
        if self.per_head and sinks is not None and view.kv_heads > 1:
            raise LayoutError(
                "sinks are those of all query heads; with per_head=True no call has more than a KV head's"
            )
        self.choosers = view.kv_heads if self.per_head else 1
        chosen = ChosenView(view, self.entry_tokens, self.per_head)
        self.pages_per_entry = chosen.pages_per_entry
        rows, slots = self.queries * self.choosers, self.entries * self.pages_per_entry
        if rows * slots > _checks.MOST or self.entries * self.entry_tokens > _checks.MOST:
            raise ShapeError(
                f"{self.queries} queries that choose {self.entries} entries of {self.entry_tokens} tokens need "
                f"tables of {rows * slots} pages; kernels count at most {_checks.MOST}: give fewer queries to a call"
            )
        self._pages = Buffer.empty((rows, slots), "int32", self.device)
        self._lengths = Buffer.empty((rows,), "int32", self.device)
        self._select = registry.find("select", warps=4)
        self.attention = Attention(
            chosen.view, self.query_heads // self.choosers, causal=False, scale=scale, softcap=softcap, sinks=sinks,
            kernel=kernel, launch=launch, faults=self.faults,
        )  # fmt: skip
        require_whole_scores(view, self.attention.plan.modifiers)

    def __call__(
        self,
        q: Any,
        view: CacheView,
        table: PageTable,
        indices: Any,
        *,
        query_indptr: Any = None,
        out: Any = None,
        lse: Any = None,
        stream: Any = None,
    ) -> Any:
        """Attention of q to what it has chosen. Returns out, or a new Buffer, before the work is done.

        q             [tokens, query_heads, head_dim], sequence after sequence; with per_head, tokens lie one behind the
                      other
        table         PageTable of the sequences, as kvit.Attention takes it
        indices       int32 [tokens, kv_heads with per_head or else 1, entries] on the device: entries of the token's
                      sequence, -1 for none, in any order. An entry that is chosen twice counts twice, but the one that
                      the query sees in part. Entries behind the query's position, or the sequence, are left out
        query_indptr  int32 [sequences + 1]: where each sequence's rows of q begin; absent: all have as many
        out, lse      as kvit.Attention takes them, dense
        stream        Stream, int handle, or an object with __cuda_stream__

        A query that has chosen nothing gives zeros, and an lse of -inf; so does a row of q that no sequence has.
        Raises ShapeError, DtypeError, DeviceError, LayoutError; nothing is launched then.
        """
        stream = Stream.wrap(stream, self.device)
        self._check_view(view)
        _checks.made("table", table, PageTable, "a kvit.PageTable")
        q = _checks.tensor("q", q, self.dtype, stream)
        _checks.require_shape("q", q, tokens=None, query_heads=self.query_heads, head_dim=self.k_dim)
        tokens = q.shape[0]
        if tokens > self.queries:
            raise ShapeError(
                f"q has {tokens} tokens; this operation has room for {self.queries}: make it with queries="
            )
        each, indptr = rows_per_sequence("q", q, table.num_sequences, query_indptr, stream)
        indices = _checks.tensor("indices", indices, dtypes.int32, stream)
        _checks.require_shape("indices", indices, tokens=tokens, choosers=self.choosers, entries=self.entries)
        _checks.require_block("indices", indices)
        on = {"q": q, "view": view.k, "table": table.lengths, "indices": indices, "query_indptr": indptr}
        _checks.require_device(self.device, **on)
        chosen = ChosenView(view, self.entry_tokens, self.per_head)
        shape = (tokens, self.query_heads, self.v_dim)
        made = Buffer.empty(shape, self.dtype, self.device, stream) if out is None else out
        rows = _checks.tensor("out", made, self.dtype, stream)
        if rows.shape != shape:
            raise ShapeError(f"out has shape {list(rows.shape)}; it must be {list(shape)}")
        stats = None if lse is None else _checks.lse("lse", lse, shape)
        read = ("indices", indices), ("query_indptr", indptr), *aliases.numbers_of(table)
        aliases.require_apart("out", rows, *read, ("lse", stats))
        aliases.require_apart("lse", stats, *read)
        count = tokens * self.choosers
        width = self._pages.shape[1]
        pages = Tensor.from_pointer(self._pages.pointer, (count, width), "int32", self.device, owner=self._pages)
        lengths = Tensor.from_pointer(self._lengths.pointer, (count,), "int32", self.device, owner=self._lengths)
        parts = [self._split(name, x) for name, x in (("q", q), ("out", rows), ("lse", stats))]
        self.attention.require_view(chosen.view)
        select_op.select(
            self._select,
            Device.of(self.device),
            table.packed,
            indptr,
            each,
            tokens,
            indices,
            pages,
            lengths,
            view.num_pages,
            view.page_size,
            self.entry_tokens,
            self.pages_per_entry,
            chosen.steps,
            self.causal,
            self.faults.buffer,
            stream,
        )
        chosen_table = PageTable(pages, lengths=lengths)
        self.attention(parts[0], chosen.view, chosen_table, out=parts[1], lse=parts[2], stream=stream)
        return made

    def _split(self, name: str, rows: Tensor | None) -> Tensor | None:
        """Rows of tokens as rows of tokens and choosers. Raises LayoutError unless tokens lie one behind the other."""
        if rows is None or self.choosers == 1:
            return rows
        tokens, heads, *rest = rows.shape
        group = heads // self.choosers
        if tokens > 1 and rows.strides[0] != heads * rows.strides[1]:
            raise LayoutError(
                f"{name} has strides {list(rows.strides)} bytes; with per_head=True a token's heads and the next "
                "token's must lie one behind the other"
            )
        strides = (group * rows.strides[1], *rows.strides[1:])
        return Tensor.from_pointer(
            rows.pointer, (tokens * self.choosers, group, *rest), rows.dtype, self.device, strides=strides,
            readonly=rows.readonly, owner=rows,
        )  # fmt: skip

    @_checks.words_of_made
    def __repr__(self) -> str:
        return (
            f"SparseAttention({self.entries} entries of {self.entry_tokens} tokens, {self.query_heads} query heads, "
            f"{self.choosers} choosing, {self.device})"
        )
