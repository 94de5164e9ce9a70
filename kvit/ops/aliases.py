"""Which memory a call may both write and read: what is not allowed is refused by overlap, before anything is launched.

Rows that interleave, as slices of one packed tensor do, lie apart. Where strides alone do not tell two tensors apart,
they are taken to overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, TypeAlias

from kvit._native.overlaps import tensor_meets_itself, tensors_are_same, tensors_meet
from kvit._native.packed_cache import PackedCache
from kvit._native.tensor import Tensor
from kvit.errors import LayoutError
from kvit.layouts.views import PageTable

Named: TypeAlias = tuple[str, Tensor | None]


def require_apart(name: str, written: Tensor | None, *others: Named, same: tuple[str, ...] = ()) -> None:
    """Raise LayoutError if memory that a call writes lies over memory that it reads, or writes by another name.

    same  names of others which `written` may be, element for element
    """
    if written is None:
        return
    if tensor_meets_itself(written):
        raise LayoutError(
            f"{name} has shape {list(written.shape)} with strides {list(written.strides)} bytes: elements that are "
            "written lie over each other; give each memory of its own"
        )
    for other_name, other in others:
        if other is None or not tensors_meet(written, other):
            continue
        if other_name not in same:
            raise LayoutError(
                f"{name} is written and lies over {other_name}, at {written.pointer:#x} and {other.pointer:#x} (or so "
                "close that strides do not tell them apart); give it memory apart from that"
            )
        if not tensors_are_same(written, other):
            raise LayoutError(
                f"{name} lies over {other_name}, and not row for row: shapes {list(written.shape)} and "
                f"{list(other.shape)}, strides {list(written.strides)} and {list(other.strides)}, at "
                f"{written.pointer:#x} and {other.pointer:#x}; give {other_name} itself, or memory apart from it"
            )


def require_unwritten(name: str, written: PackedCache, *others: Named) -> None:
    """Raise LayoutError if a cache that a call writes lies over memory that it reads, or its rows over each other."""
    if written.meets_itself:
        _refuse_rows_that_meet(tuple(pools_of(name, written)))
    for pool_name, pool in pools_of(name, written):
        for other_name, other in others:
            if pool is not None and other is not None and tensors_meet(pool, other):
                raise LayoutError(
                    f"{other_name} lies in {pool_name}, whose pages the call writes (or so close that strides do not "
                    f"tell them apart); give {other_name} memory apart from the cache"
                )


def _refuse_rows_that_meet(pools: tuple[Named, ...]) -> NoReturn:
    for i, (name, pool) in enumerate(pools):
        if pool is not None and tensor_meets_itself(pool):
            raise LayoutError(
                f"{name} has shape {list(pool.shape)} with strides {list(pool.strides)} bytes: rows that the call "
                "writes lie over each other (or so close that strides do not tell them apart); give each memory of its "
                "own"
            )
        for other_name, other in pools[:i]:
            if pool is not None and other is not None and tensors_meet(pool, other):
                raise LayoutError(
                    f"{name} lies over {other_name}, at {pool.pointer:#x} and {other.pointer:#x}, and the call writes "
                    "rows of this cache (or so close that strides do not tell them apart); give each memory of its own"
                )
    raise LayoutError(f"rows of {pools[0][0]} lie over each other, and the call writes them; give each its own memory")


def pools_of(name: str, cache: PackedCache) -> Iterator[Named]:
    """The memory of a cache."""
    yield f"{name}.k", cache.k
    yield f"{name}.v", cache.v
    yield f"{name}.k_params", cache.k_params
    yield f"{name}.v_params", cache.v_params
    yield f"{name}.blocks", cache.blocks
    for piece in cache.memory:
        yield f"the memory of {name}", piece


def numbers_of(table: PageTable) -> tuple[Named, ...]:
    """The memory of a page table."""
    packed = table.packed
    return ("table.pages", packed.pages), ("table.indptr", packed.indptr), ("table.lengths", packed.lengths)
