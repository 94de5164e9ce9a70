"""The pools of a PagedCache, stored in another way: what PagedCache.requantise does with its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvit import codecs
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit.cache.storage import new_pools, upload
from kvit.errors import DtypeError
from kvit.layouts.views import CacheView
from kvit.ops.convert import ConvertPages
from kvit.ops.faults import FaultRecord


def requantised(
    old: CacheView,
    wanted: tuple[Any, Any],
    given: tuple[Any, Any],
    pages: Sequence[int],
    faults: FaultRecord,
    stream: Stream,
) -> CacheView:
    """New pools that hold the same pages, K and V as `wanted`; None keeps the codec.

    given  scales of float8; None keeps those that there are
    pages  ids of the pages to convert; the others hold anything

    Raises before memory is taken for what cannot be converted.
    """
    sides = tuple(now if name is None else codecs.codec_of(name) for now, name in zip(old.codecs, wanted, strict=True))
    scales = []
    for i, (side, scale) in enumerate(zip(sides, given, strict=True)):
        if scale is not None and side.params != "scale":
            raise DtypeError(f"a scale is of float8, and the cache would hold {side}; leave it out")
        stays = side is old.codecs[i] and side.params == "scale" and not old.has_unit_scale[i]
        scales.append((old.k_params, old.v_params)[i] if scale is None and stays else scale)

    def pools(count: int) -> CacheView:
        shape = (count, old.page_size, old.kv_heads, old.head_dim)
        return new_pools(shape, old.layout, old.dtype, (sides[0], sides[1]), (scales[0], scales[1]), device)

    device = Device.of(old.device)
    convert = ConvertPages(old, pools(0), faults=faults)
    new = pools(old.num_pages)
    if pages:
        ids = upload(list(pages), stream)
        convert(old, new, source_pages=ids, target_pages=ids, stream=stream)
    return new
