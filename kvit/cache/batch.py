"""A batch of sequences that stays together over many steps: its page table keeps its place on the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from kvit import _checks
from kvit._native.growth import Growth
from kvit._native.sent_tables import SentTable, SentTables
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.cache import calls
from kvit.cache.layer_group import copy_pages
from kvit.cache.paged_cache import PagedCache
from kvit.cache.sequence import Sequence
from kvit.cache.step import Step, same_stream
from kvit.errors import CacheFull, KvitError, ShapeError, refuse_copy
from kvit.layouts.views import PageTable


class Batch(_checks.Made):
    """Sequences of one cache that take many steps together, whose graph stays right while they grow.

        batch = kvit.Batch(cache, seqs, max_tokens=4096, stream=stream)
        with batch.step():                                  # a new token of each: pages, and one small upload
            with kvit.Graph.capture(stream) as graph:
                for layer in cache.layers:
                    layer.append(batch, k, v)
                    kvit.attention(q, layer, batch, out=out)
            graph.launch()
        for _ in range(100):
            with batch.step():
                graph.launch()                              # everything else of the step

    cache       a PagedCache of any number of layers
    seqs        sequences of it, each at most once; `use` puts others in their place
    max_tokens  of each sequence: the table has room for as many pages of all of them together. For twice as many pages
                as the cache has if absent, which is enough unless most are shared
    stream      of all calls: Stream, int handle, or an object with __cuda_stream__; the device's default stream if
                absent, which no graph can be captured from

    Lengths and page ids lie at the same addresses from step to step, and a step sends what changed: lengths, and a page
    id now and then. A graph that was captured inside of a step stands for later steps of as many new tokens of each
    sequence. It is launched inside of `with batch.step(...)`, on the batch's stream.

    Raises SequenceFreed, ShapeError, DeviceError.
    """

    def __init__(
        self, cache: PagedCache, seqs: Iterable[Sequence], *, max_tokens: int | None = None, stream: Any = None
    ):
        _checks.made("cache", cache, PagedCache, "a kvit.PagedCache")
        stream = Stream.wrap(stream, cache.device)
        seqs = calls.members(seqs)
        needed = sum(-(-len(seq) // cache.page_size) for seq in seqs if isinstance(seq, Sequence))
        capacity = needed + 2 * cache.num_pages
        if max_tokens is not None:
            [max_tokens] = _checks.require_counts(max_tokens=max_tokens)
            capacity = min(cache.num_pages, -(-max_tokens // cache.page_size)) * len(seqs)
        if needed > capacity:
            raise ShapeError(f"the sequences have {needed} pages, and max_tokens leaves room for {capacity}; give more")
        Growth(cache.pool, seqs, 0).close()  # all of the cache, each once
        self._tables = SentTables(PageTable, 1)
        self._sent: SentTable = self._tables.take(cache.pool, seqs, None, 0, stream, capacity)
        self.cache = cache
        self.seqs: tuple[Sequence, ...] = seqs
        self.stream = stream
        self.capacity: int = self._sent.table.pages.shape[0]  # pages of all sequences, no less than was asked for
        self._step: Step | None = None

    @property
    def table(self) -> PageTable:
        """The page table of the sequences, with their new tokens while a step is open. Calls read it; nobody else may
        write it.
        """
        return self._sent.table

    @property
    def has_open_step(self) -> bool:
        """Whether a step was begun, and neither committed nor closed."""
        return self._step is not None and self._step.is_open

    @property
    def open_step(self) -> Step:
        """The step that is open. Raises KvitError."""
        step = self._step
        if step is None or not step.is_open:
            raise KvitError("the batch has no step that is open; begin one: `with batch.step():`")
        return step

    def step(self, new_tokens: Iterable[int] | int = 1) -> Step:
        """Begin a step: room for new tokens of each sequence, in all layers. PagedCache.step with the batch's table.

        Raises CacheFull (too few free pages, in the cache or in the table), SequenceFreed, KvitError (a step is open);
        DriverError in a capture, for a graph begins inside of a step.
        """
        counts = calls.new_tokens_of(new_tokens, len(self.seqs))
        growth = Growth(self.cache.pool, self.seqs, counts)
        try:
            if growth.num_copies:
                copy_pages(self.cache.groups, growth.copies, self.stream)
            self._fill(growth, counts)
            step = self._step = Step(self.cache, growth, counts, self._sent, self.stream, None)
            return step
        except BaseException:
            growth.close()
            raise

    def use(self, seqs: Iterable[Sequence]) -> None:
        """Go on with other sequences, as many as before: the next beams, or the next prompts. Graphs stay right.

        seqs  sequences of the cache, each at most once; the table's room is as it was

        Raises KvitError (a step is open), SequenceFreed, ShapeError; the batch has the old ones then.
        """
        seqs = calls.members(seqs)
        if self.has_open_step:
            raise KvitError("the batch has a step that is open; commit that one, or close it, before other sequences")
        if len(seqs) != len(self.seqs):
            raise ShapeError(
                f"{len(seqs)} sequences for a batch of {len(self.seqs)}, whose table has rows for so many; make a "
                "kvit.Batch of them"
            )
        Growth(self.cache.pool, seqs, 0).close()  # all of the cache, each once
        self.seqs = seqs

    def rows_of(self, tokens: int, new_tokens: Iterable[int] | None) -> tuple[PageTable, Tensor | None, int]:
        """Step.rows_of of the step that is open; else the sequences as they are, and as many rows of each."""
        if self._step is not None and self._step.is_open:
            return self._step.rows_of(tokens, new_tokens)
        counts = calls.counts_of("q", tokens, len(self.seqs), new_tokens)
        self._fill(None, counts)
        return self._sent.table, self._sent.rows, counts if isinstance(counts, int) else max(counts, default=1)

    def stream_of(self, stream: Any) -> Stream:
        """The batch's stream. Raises ShapeError for another one."""
        return same_stream(self.stream, stream)

    def _fill(self, growth: Growth | None, counts: list[int] | int) -> None:
        if not self._tables.refill(self._sent, self.cache.pool, self.seqs, growth, counts):
            raise CacheFull(
                f"the table of the batch has room for {self.capacity} pages of all sequences; make a Batch of more "
                "max_tokens"
            )

    def __len__(self) -> int:
        return len(self.seqs)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "calls write its table; make another of forks")

    @_checks.words_of_made
    def __repr__(self) -> str:
        return f"Batch({len(self.seqs)} sequences of {self.cache!r})"
