"""Attention of sequences that begin with the same pages: these are read once for all of them (cascade attention)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from kvit import _checks
from kvit._native.buffer import Buffer
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.cache import calls
from kvit.cache.layer_group import Place
from kvit.cache.storage import upload
from kvit.errors import ShapeError
from kvit.ops.merge import merge_state


class Held(NamedTuple):
    """What a call reads of one sequence: its pages, its tokens, and how many of them have queries."""

    pages: Sequence[int]
    length: int
    queries: int


class Run(NamedTuple):
    """Sequences of a call that follow one another and begin with the same pages."""

    count: int  # sequences
    shared: int  # pages


def runs_of(held: list[Held], page_size: int) -> list[Run]:
    """The sequences in runs: each begins where the first page is another one. A sequence alone shares nothing.

    A page is shared that all of a run begin with, and behind which all their queries lie: all of them see all of it.

        pages 3 7 1, 3 7 9, 3 8, 5 2    3 sequences share page 3, then one that shares none
    """
    found: list[Run] = []
    begin = 0
    while begin < len(held):
        end = begin + 1
        while end < len(held) and _common(held[begin], held[end], page_size):
            end += 1
        pages = min((_common(held[begin], each, page_size) for each in held[begin + 1 : end]), default=0)
        found.append(Run(end - begin, pages))
        begin = end
    return found


def _common(a: Held, b: Held, page_size: int) -> int:
    """Leading pages that both have, in front of the queries of both."""
    most = min((each.length - each.queries) // page_size for each in (a, b))
    count = 0
    while count < most and a.pages[count] == b.pages[count]:
        count += 1
    return count


def refuse_modifiers(modifiers: dict[str, Any]) -> None:
    """Raise ShapeError for what depends on where keys are: each part of the keys counts from 0."""
    wrong = sorted(modifiers.keys() - {"softcap", "sinks"})
    if wrong:
        raise ShapeError(
            f"shared_prefix reads keys in two parts, and {' and '.join(wrong)} go by their positions in one; leave "
            "shared_prefix out"
        )


def attend(
    q: Tensor,
    place: Place,
    held: list[Held],
    runs: list[Run],
    *,
    causal: bool,
    scale: float | None,
    modifiers: dict[str, Any],
    out: Tensor | None,
    lse: Tensor | None,
    stream: Stream,
) -> tuple[Any, Any]:
    """The attention of rows q over the pages of all sequences: what is shared, what is not, and both joined.

    Launches three kernels, and allocates the tables and the outputs of both parts.
    """
    group, view, _, _ = place
    heads, size = q.shape[1], view.page_size
    shared = [run.shared for run in runs for _ in range(run.count)]
    rows = [0, *accumulate(each.queries for each in held)]
    ends = [0, *accumulate(run.count for run in runs)]
    of_runs = [rows[end] for end in ends]
    prefixes = [(held[end].pages[: run.shared], run.shared * size) for end, run in zip(ends, runs, strict=False)]
    rests = [(each.pages[n:], each.length - n * size) for each, n in zip(held, shared, strict=True)]
    capped = {name: wish for name, wish in modifiers.items() if name != "sinks"}  # those count once
    parts = []
    for tables, starts, sees_causally, own in (
        (prefixes, of_runs, False, capped),
        (rests, rows, causal, modifiers),
    ):
        most = max((high - low for low, high in zip(starts, starts[1:], strict=False)), default=1)
        op = group.operations.find(heads, most, sees_causally, scale, **own)
        part = Buffer.empty((*q.shape[:2], view.v_dim), view.dtype, view.device, stream)
        sums = Buffer.empty(q.shape[:2], "float32", view.device, stream)
        table = calls.table_of(tables, 1, stream)
        q = _checks.tensor("q", q, op.dtype, stream)
        op(q, view, table, query_indptr=upload(starts, stream), out=part, lse=sums, stream=stream)
        parts.append((part, sums))
    (out_a, lse_a), (out_b, lse_b) = parts
    return merge_state(out_a, lse_a, out_b, lse_b, out=out, lse=lse, stream=stream)
