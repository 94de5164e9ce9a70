"""A step of a model: new tokens of sequences in every layer of a cache, there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from types import TracebackType
from typing import Any, NoReturn

from kvit import _checks
from kvit._native.growth import Growth
from kvit._native.sent_tables import SentTable, SentTables
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.cache import calls
from kvit.cache.storage import upload
from kvit.errors import KvitError, ShapeError, refuse_copy
from kvit.layouts.views import PageTable


class Step(_checks.Made):
    """New tokens of sequences, in all layers of a cache. Made by PagedCache.step() and Batch.step().

        with cache.step(seqs, new_tokens=1) as step:
            for layer in cache.layers:
                layer.append(step, k, v)
                out = kvit.attention(q, layer, step)

    The room is there, pages that sequences share are being copied, and calls read the sequences with their new tokens;
    but the sequences grow when the block ends, all at once. Where an exception ends it, they are what they were.
    """

    def __init__(
        self,
        cache: Any,
        growth: Growth,
        counts: list[int] | int,
        sent: SentTable,
        stream: Stream,
        tables: SentTables | None,
    ):
        self.cache = cache  # a PagedCache, which stands above this module
        self.growth = growth
        self.sent = sent
        self.tables = tables  # where the table goes afterwards
        self.stream = stream
        self.counts = counts
        self.num_tokens: int = calls.total_of(counts, len(growth.sequences))
        self.written: set[int] = set()  # layers, by their index

    @property
    def table(self) -> PageTable:
        """The page table of the sequences with their new tokens: the step's, which nobody else may write."""
        return self.sent.table

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, the new ones included."""
        return self.growth.lengths

    @property
    def is_open(self) -> bool:
        """Whether it was neither committed nor closed."""
        return self.growth.is_open

    def rows_of(self, tokens: int, new_tokens: Iterable[int] | None) -> tuple[PageTable, Tensor | None, int]:
        """The table of a call, where each sequence's rows of q begin, and the most that one has.

        tokens  rows of q. Raises ShapeError unless they are the step's, or as `new_tokens` says; KvitError
        """
        counts, rows = self.counts, self.sent.rows
        if new_tokens is not None:
            counts = calls.counts_of("q", tokens, len(self.growth.sequences), new_tokens)
            if counts != self.counts:
                rows = None
                if isinstance(counts, list) and len(set(counts)) > 1:
                    rows = upload([0, *accumulate(counts)], self.stream)
        elif tokens != self.num_tokens:
            raise ShapeError(
                f"q has {tokens} tokens and the step {self.num_tokens}; give a row for each of them, or new_tokens if "
                "only the last ones of each sequence have queries"
            )
        self.growth.require_current()
        return self.sent.table, rows, counts if isinstance(counts, int) else max(counts, default=1)

    def stream_of(self, stream: Any) -> Stream:
        """The step's stream. Raises ShapeError for another one."""
        return same_stream(self.stream, stream)

    def commit(self) -> None:
        """Let the sequences have their new tokens, in all layers.

        Raises KvitError, and closes the step: where K and V of some layers were appended and of others not, where a
        sequence was changed since the step began, or pages moved.
        """
        try:
            missing = sorted(set(range(self.cache.num_layers)) - self.written) if self.written else []
            if missing:
                raise KvitError(
                    f"the step ends and {_words(missing)} got no K and V of its tokens; append them to every layer. "
                    "The sequences are what they were"
                )
            self.growth.keep()
        finally:
            self.close()

    def close(self) -> None:
        """Drop the step unless it was committed: its pages go back, and the sequences are what they were."""
        self.growth.close()
        tables, self.tables = self.tables, None  # given back once: by then it may be the table of another step
        if tables is not None:
            tables.give(self.sent)

    def __enter__(self) -> Step:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.is_open:
            self.commit()
        else:
            self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "its pages are counted")

    @_checks.words_of_made
    def __repr__(self) -> str:
        state = f"{len(self.written)} of {self.cache.num_layers} layers written" if self.is_open else "over"
        return f"Step({self.num_tokens} new tokens of {len(self.growth.sequences)} sequences, {state})"


def _words(layers: list[int]) -> str:
    shown = ", ".join(map(str, layers[:8]))
    return f"layer{'s' if len(layers) > 1 else ''} {shown}{' and more' if len(layers) > 8 else ''}"


def same_stream(own: Stream, given: Any) -> Stream:
    """`own`, after a check that no other one was given. Raises ShapeError."""
    if given is not None and Stream.wrap(given, own.device).handle != own.handle:
        raise ShapeError("calls of a step run on its stream; give that one, or none")
    return own
