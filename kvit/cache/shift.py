"""Sequences of a PagedCache whose window moves along: what PagedCache.shift does with its pages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvit import _checks
from kvit._native.stream import Stream
from kvit.cache.batch import new_table, numbers_of
from kvit.cache.page_pool import PagePool
from kvit.cache.sequence import Sequence
from kvit.cache.storage import upload
from kvit.errors import ShapeError
from kvit.layouts.views import CacheView
from kvit.ops.faults import FaultRecord
from kvit.ops.rope import Rope
from kvit.ops.shift import Shift


def operation_of(
    made: dict[bool, Shift], view: CacheView, rope: Rope | None, rotate: bool, faults: FaultRecord
) -> Shift:
    """The operation of a cache, from those that were made, or a new one. Raises ValueError, KernelMissing."""
    if rotate and rope is None:
        raise ValueError(
            "the cache has no rope, which would say how keys turn; make it with rope=, use kvit.Shift with the rope "
            "that turned them, or say rotate=False if they hold no position"
        )
    found = made.get(bool(rotate))
    if found is None:
        found = made[bool(rotate)] = Shift(view, rope if rotate else None, faults=faults)
    return found


def shift_sequences(
    operation: Shift, view: CacheView, pool: PagePool, seqs: list[Sequence], drop: Any, keep: Any, stream: Stream
) -> None:
    """What PagedCache.shift says."""
    keeps, drops = (_of_each(name, given, len(seqs)) for name, given in (("keep", keep), ("drop", drop)))
    # From here on no code of the caller runs.
    numbers = numbers_of(pool, seqs, distinct=True)
    all_before, all_after = pool.pages_of_all(numbers), pool.shifted(numbers, keeps, drops)
    columns = zip(all_before, all_after, keeps, drops, strict=True)
    moved = [each for each in columns if each[3] and each[1][1] > each[2]]  # else nothing lies behind what goes
    if not moved:
        setattr(*pool.becoming(numbers, all_after))
        return
    before, after, first, gone = (list(column) for column in zip(*moved, strict=True))
    (source, _), (table, _) = (new_table(of_each, [0] * len(moved), stream) for of_each in (before, after))
    by, begin = upload([-tokens for tokens in gone], stream), upload(first, stream)
    operation.then_set(view, table, by, begin, source, stream, pool.becoming(numbers, all_after))


def _of_each(name: str, given: Any, count: int) -> list[int]:
    """A number of tokens for each of `count` sequences, from one for all or one for each. Raises ShapeError."""
    if not isinstance(given, Iterable) or not getattr(given, "ndim", 1):
        return [_checks.whole(name, given)] * count
    found = [_checks.whole(f"{name}[{i}]", number) for i, number in enumerate(given)]
    if len(found) != count:
        raise ShapeError(f"{name} has {len(found)} numbers for {count} sequences; give one for each, or one for all")
    return found
