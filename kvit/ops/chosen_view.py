"""A cache as pages so small that entries which queries choose are whole pages: the same memory, other numbers."""

from __future__ import annotations

import math

from kvit import _checks, dtypes
from kvit._native.tensor import Tensor
from kvit.errors import LayoutError, ShapeError
from kvit.layouts.views import CacheView
from kvit.ops.page_lists import belongs_to_rows


class ChosenView:
    """Page p of a view, part i of it, KV head h is page p * steps[0] + i * steps[1] + h * steps[2] of this one.

    view             the same memory. Its pages overlap in addresses: a page begins at every multiple of the unit that
                     all strides have in common, and most of them are named by nobody
    steps            (page, part, head) in pages of it; head: 0 where heads choose together
    pages_per_entry  of it
    """

    def __init__(self, source: CacheView, entry_tokens: int, per_head: bool):
        page_size = source.page_size
        tokens = math.gcd(page_size, entry_tokens)
        if tokens not in (page_size, entry_tokens):
            raise ShapeError(
                f"entry_tokens is {entry_tokens} and pages hold {page_size} tokens; an entry is a part of a page, or "
                "whole pages: give a divisor or a multiple of the page size"
            )
        if source.packed.blocks is not None:
            raise LayoutError("pages that are found by a pointer each have no parts at equal distances; convert them")
        self.pages_per_entry = entry_tokens // tokens
        self._per_head, self._tokens = per_head, tokens
        self._parts = page_size // tokens
        named = {"k": source.k, "v": source.v, "k_params": source.k_params, "v_params": source.v_params}
        places = dict(zip(named, source.packed.pools, strict=True))
        self.steps = self._steps_of(places["k"], "k")
        heads = source.kv_heads
        self.num_pages = 1 + sum(
            step * max(count - 1, 0)
            for step, count in zip(self.steps, (source.num_pages, self._parts, heads), strict=True)
        )
        if self.num_pages > _checks.MOST:
            raise LayoutError(f"such a view has {self.num_pages} pages, and kernels count at most {_checks.MOST}")
        pools: dict[str, Tensor | None] = {}
        for name, pool in named.items():
            follows_rows = name in ("k", "v") or (pool is not None and belongs_to_rows(pool))
            pools[name] = pool
            if pool is None:
                continue
            if follows_rows:
                pools[name] = self._of_pool(name, pool, places[name], heads)
            elif per_head and pool.shape:
                raise LayoutError(
                    f"{name} are scales for each KV head, and every head chooses for itself; give one each row"
                )
        words = {}
        for side, codec, is_unit in zip("kv", source.codecs, source.has_unit_scale, strict=True):
            if codec.params == "pair" or (codec.params == "scale" and not is_unit):
                words[f"{side}_{'params' if codec.params == 'pair' else 'scale'}"] = pools[f"{side}_params"]
        kv = tuple(codec.name for codec in source.codecs)
        self.view = CacheView(pools["k"], pools["v"], kv=kv, dtype=source.dtype.name, **words)

    def _steps_of(self, place: tuple[int, int, int, int], name: str) -> tuple[int, int, int]:
        unit = self._unit(place)
        _, page, token, head = place
        return page // unit, (self._tokens * token // unit if self._parts > 1 else 0), head // unit * self._per_head

    def _unit(self, place: tuple[int, int, int, int]) -> int:
        """Bytes of which the distances of pages, of their parts, and of heads that choose are multiples."""
        _, page, token, head = place
        return math.gcd(page, self._tokens * token if self._parts > 1 else 0, head if self._per_head else 0) or 1

    def _of_pool(self, name: str, pool: Tensor, place: tuple[int, int, int, int], heads: int) -> Tensor:
        if self._steps_of(place, name) != self.steps:
            raise LayoutError(
                f"pages, tokens and heads of {name} lie {place[1:]} bytes apart, in other proportions than those of k; "
                "rows and parameters must lie alike for entries to be chosen"
            )
        last = (pool.shape[-1],) if name in ("k", "v") or pool.dtype is not dtypes.float32 else ()
        shape = (self.num_pages, self._tokens, 1 if self._per_head else heads, *last)
        strides = (self._unit(place), place[2], place[3], *((pool.dtype.bits // 8,) if last else ()))
        return Tensor.from_pointer(
            place[0], shape, pool.dtype, pool.device, strides=strides, readonly=pool.readonly, owner=pool
        )
