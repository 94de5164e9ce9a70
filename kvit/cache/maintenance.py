"""What a PagedCache does to the pages of all its layers now and then: moves to the front, shifts, other codecs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, chain
from typing import Any

from kvit import _checks, codecs
from kvit._native.context import Device
from kvit._native.growth import check_all
from kvit._native.prepared import launch_all
from kvit._native.stream import Stream
from kvit.cache import calls
from kvit.cache.layer_group import LayerGroup, send_lists
from kvit.cache.layers import LayerKind
from kvit.cache.page_moves import chains_of
from kvit.cache.page_pool import PagePool
from kvit.cache.storage import new_pools, upload
from kvit.errors import DtypeError, ShapeError
from kvit.layouts.views import CacheView
from kvit.ops.convert import ConvertPages


def move_pages(groups: list[LayerGroup], pool: PagePool, moves: dict[int, int], stream: Stream) -> None:
    """Move pages (old id -> new id) in all layers, and in the sequences that have them."""
    plan = chains_of(moves)
    sources, targets = (send_lists(groups, pages, stream) for pages in zip(*chain.from_iterable(plan), strict=True))
    starts = {
        layers: upload([0, *accumulate(map(len, plan * layers))], stream)
        for layers in {group.bytes.layers for group in groups}
    }
    launches = [
        group.copy.prepare(group.bytes.view, sources[n], targets[n], starts[n], stream)
        for group, n in ((group, group.bytes.layers) for group in groups)
    ]
    launch_all([*chain.from_iterable(launches)], stream, pool.renaming(moves))
    groups[0].faults.last_stream = stream


def shift_sequences(
    groups: list[LayerGroup],
    pool: PagePool,
    seqs: tuple[Any, ...],
    drop: Any,
    keep: Any,
    rotate: bool,
    stream: Stream,
) -> None:
    """What PagedCache.shift says."""
    # Keys of a layer without a rope hold no position, where others have one.
    has_rope = any(group.rope is not None for group in groups)
    operations = [group.shift(rotate and (group.rope is not None or not has_rope)) for group in groups]
    keeps, drops = (_of_each(name, given, len(seqs)) for name, given in (("keep", keep), ("drop", drop)))
    # From here on no code of the caller runs.
    check_all(pool, seqs, distinct=True)
    turns = any(operation.rope is not None for operation in operations)
    all_before, all_after = [(seq.pages, len(seq)) for seq in seqs], pool.shifted(seqs, keeps, drops, turns)
    columns = zip(all_before, all_after, keeps, drops, strict=True)
    moved = [each for each in columns if each[3] and each[1][1] > each[2]]  # else nothing lies behind what goes
    change = pool.becoming(seqs, all_after)
    size = pool.page_size
    is_renamed = not turns and all(first % size == 0 == gone % size for _, _, first, gone in moved)
    if not moved or is_renamed:  # pages go, and no row of another one moves within it
        setattr(*change)
        return
    before, after, first, gone = (list(column) for column in zip(*moved, strict=True))
    held, launches = [], []
    for operation, part in ((op, part) for op, group in zip(operations, groups, strict=True) for part in group.parts):
        tables = [
            calls.table_of([(part.ids(pages), length) for pages, length in of_each], part.layers, stream)
            for of_each in (before, after)
        ]
        by, begin = (upload(numbers * part.layers, stream) for numbers in ([-tokens for tokens in gone], first))
        held.append((tables, by, begin))
        launches += operation.prepare(part.view, tables[1], by, begin, tables[0], stream)
    launch_all(launches, stream, change)
    groups[0].faults.last_stream = stream


def _of_each(name: str, given: Any, count: int) -> list[int]:
    """A number of tokens for each of `count` sequences, from one for all or one for each. Raises ShapeError."""
    if not isinstance(given, Iterable) or not getattr(given, "ndim", 1):
        return [_checks.whole(name, given)] * count
    found = [_checks.whole(f"{name}[{i}]", number) for i, number in enumerate(given)]
    if len(found) != count:
        raise ShapeError(f"{name} has {len(found)} numbers for {count} sequences; give one for each, or one for all")
    return found


def requantised(
    groups: list[LayerGroup], wanted: tuple[Any, Any], given: tuple[Any, Any], pages: list[int], stream: Stream
) -> list[LayerGroup]:
    """Groups that hold the same pages, K and V as `wanted`; None keeps the codec.

    given  scales of float8; None keeps those that there are
    pages  ids of the pages to convert; the others hold anything

    Raises before memory is taken for what cannot be converted.
    """
    kinds = [_kind_of(group, wanted, given) for group in groups]
    converts = [
        ConvertPages(group.parts[0].view, _no_pages(group.parts[0].view, kind), faults=group.faults)
        for group, kind in zip(groups, kinds, strict=True)
    ]
    found = []
    for group, kind, convert in zip(groups, kinds, converts, strict=True):
        old = group.views[0]
        new = LayerGroup(
            kind, group.count, old.num_pages, old.page_size, old.layout, old.dtype, group.storage, group.faults,
            group.smoothings,
        )  # fmt: skip
        for source, target in zip(group.parts, new.parts, strict=True):
            if pages:
                ids = upload(source.ids(pages), stream)
                convert(source.view, target.view, source_pages=ids, target_pages=ids, stream=stream)
        found.append(new)
    return found


def _kind_of(group: LayerGroup, wanted: tuple[Any, Any], given: tuple[Any, Any]) -> LayerKind:
    """What layers become. Raises DtypeError."""
    old = group.kind
    if old.shares_kv and any(name is not None for name in wanted):
        raise DtypeError(
            f"layers have rows that K and V share, which are stored as {group.views[0].dtype} alone; they cannot be "
            "stored in another way"
        )
    sides = tuple(now if name is None else codecs.codec_of(name) for now, name in zip(old.sides, wanted, strict=True))
    scales = []
    for i, (side, scale) in enumerate(zip(sides, given, strict=True)):
        if scale is not None and side.params != "scale":
            raise DtypeError(f"a scale is of float8, and the cache would hold {side}; leave it out")
        stays = side is old.sides[i] and side.params == "scale"
        scales.append(old.scales[i] if scale is None and stays else scale)
    return old._replace(sides=(sides[0], sides[1]), scales=(scales[0], scales[1]))


def _no_pages(old: CacheView, kind: LayerKind) -> CacheView:
    """A view of such a kind, of no page."""
    shape = (0, old.page_size, kind.kv_heads)
    return new_pools(shape, kind.written_dims, old.layout, old.dtype, kind.sides, kind.scales, Device.of(old.device))
