"""What converting pages does with K and with V, and whether pages may be converted where they lie."""

from __future__ import annotations

from typing import TypeAlias

from kvit import codecs
from kvit.codecs import Codec
from kvit.errors import KernelMissing, LayoutError, ShapeError
from kvit.layouts import overlap
from kvit.layouts.vllm import Pages, VllmPages
from kvit.ops.page_lists import belongs_to_rows
from kvit.selection import registry

_Rows: TypeAlias = tuple[overlap.Rows | None, ...]


class Side:
    """K (index 0) or V (1) of a conversion: what is done with its rows."""

    def __init__(self, index: int, source: Pages, target: Pages, old: Codec, new: Codec):
        self.index, self.old, self.new = index, old, new
        channels = (source.k_dim, source.v_dim)[index]
        self.row_bytes = old.dtype.bytes_for(channels)
        self.param_bytes = 0
        self.kernel: registry.KernelInfo | None = None
        name = "kv"[index]
        if old is new:
            self.check_scales(source, target)
            return
        if isinstance(source, VllmPages) or isinstance(target, VllmPages):
            raise LayoutError(
                f"{name} is {old} in source and {new} in target, and one of them is in vLLM's layout; change the "
                "layout to NHD or HND in one ConvertPages and the codec in another"
            )
        if old.short == new.short:
            raise KernelMissing(
                f"{name} is {old} in source and {new} in target; rows are transformed on the way from 16 bits, to them "
                f"or to fewer bits: convert to {source.dtype} in one ConvertPages and to {new} in another"
            )
        lanes = channels // 8
        if channels % 8 or lanes & (lanes - 1) or not 1 <= lanes <= 32:
            raise ShapeError(
                f"head_dim is {channels}; codecs of rows are changed at head_dim 8, 16, 32, 64, 128 and 256"
            )
        self.kernel = registry.find("requantise", dtype=source.dtype.short, change=f"{old.short}_{new.short}")

    def check_scales(self, source: Pages, target: Pages) -> None:
        """float8 that stays float8 is moved as it is, so its scales must be the same, or move along."""
        if self.kernel is not None or self.old.params == "":
            return
        old, new = (view.k_params if self.index == 0 else view.v_params for view in (source, target))
        assert old is not None and new is not None, f"{self.old} has parameters"
        self.param_bytes = codecs.PARAM_BYTES if belongs_to_rows(old) and belongs_to_rows(new) else 0
        if self.param_bytes or (source.has_unit_scale[self.index] and target.has_unit_scale[self.index]):
            return
        if (old.pointer, old.shape, old.strides) != (new.pointer, new.shape, new.strides):
            name = "kv"[self.index]
            raise LayoutError(
                f"{name} stays {self.old}, whose bytes are moved as they are, but {name}_scale of source and of target "
                "are different memory; give both views the same scales, or both scales of every row"
            )


def places_of(sides: tuple[Side, ...], old: _Rows, new: _Rows, same_pages: bool) -> tuple[bool, bool]:
    """Which of K and V are converted in place. Raises LayoutError where something would be lost.

    Requantised sides go first, K before V; sides that are moved go last, and in one launch.
    """
    order = sorted(sides, key=lambda side: (side.kernel is None, side.index))
    in_place = [False, False]
    written = [pool for side in sides for pool in _written(side, new)]
    for i, rows in enumerate(written):
        for other in written[i + 1 :]:
            overlap.refuse_if_they_meet(rows, other, "both are written")
    for i, side in enumerate(order):
        codes, params = new[side.index], new[side.index + 2]
        source, source_params = old[side.index], old[side.index + 2]
        assert codes is not None and source is not None, "K and V have rows"
        later = [pool for other in order[i + 1 :] for pool in (old[other.index], old[other.index + 2])]
        if side.kernel is None:  # with the other moved side, if any, in one launch
            later += [
                pool for other in order if other.kernel is None for pool in (old[other.index], old[other.index + 2])
            ]
        for rows in _written(side, new):
            for other in later:
                overlap.refuse_if_they_meet(rows, other, "it has not been read when that is written")
        if side.kernel is None:
            continue
        if side.new.params == "scale":
            overlap.refuse_if_they_meet(codes, params, "it is read until the last row is written")
        overlap.refuse_if_they_meet(codes, source_params, "it is read while rows are written")
        in_place[side.index] = overlap.is_in_place(source, codes)
        if side.new.params == "pair" and params is not None:
            overlap.refuse_parameters_of_other_pages(params, source, source_params)
            in_place[side.index] |= any(
                rows is not None and overlap.meet(params, rows) for rows in (source, source_params)
            )
        if in_place[side.index] and not same_pages:
            raise LayoutError(
                "target lies over source, and source_pages are not target_pages; in place, a page is converted to "
                "itself: give the same list for both, or none"
            )
        most = side.kernel.facts["most_rows_in_order"]
        if in_place[side.index] and source.tokens * source.heads > most:
            raise ShapeError(
                f"a page has {source.tokens * source.heads} rows; in place, pages of at most {most} are converted"
            )
    return in_place[0], in_place[1]


def _written(side: Side, new: _Rows) -> list[overlap.Rows]:
    """The pools that converting a side writes: codes, and parameters unless they are the user's scales."""
    writes_params = side.new.params == "pair" or (side.kernel is None and side.param_bytes != 0)
    pools = (new[side.index], new[side.index + 2] if writes_params else None)
    return [pool for pool in pools if pool is not None]
