"""Checks that operations on whole pages share: lists of page ids, and what of a cache a call may write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvit import _checks, dtypes
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor

if TYPE_CHECKING:
    from kvit.layouts.vllm import Pages


def page_list(name: str, pages: Any, stream: Stream) -> Tensor | None:
    if pages is None:
        return None
    found = _checks.tensor(name, pages, dtypes.int32, stream)
    _checks.require_shape(name, found, count=None)
    _checks.require_dense(name, found)
    return found


def belongs_to_rows(params: Tensor | None) -> bool:
    """Whether parameters lie with every row, not once for all rows or for a head."""
    return params is not None and (len(params.shape) > 1 or params.dtype is not dtypes.float32)


def require_writable(name: str, view: Pages) -> None:
    """All that a call may write of a cache; scales for all rows are only read."""
    _checks.require_writable(f"{name}.k", view.k)
    _checks.require_writable(f"{name}.v", view.v)
    for side, params in (("k", view.k_params), ("v", view.v_params)):
        if params is not None and belongs_to_rows(params):
            _checks.require_writable(f"{name}.{side}_params", params)
