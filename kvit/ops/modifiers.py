"""What an Attention does besides causal or full masks and a scale: windows, softcap, sinks, trees and the like."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

from kvit import _checks, dtypes
from kvit._native.tensor import Tensor
from kvit.errors import DtypeError, LayoutError, ShapeError
from kvit.layouts.latent_rows import LatentRows
from kvit.layouts.views import CacheView

Window: TypeAlias = "int | tuple[int | None, int | None] | None"
"""Keys that a query sees up to its own, and from its own on; an int says the first alone, None that there is no end."""


class Modifiers(NamedTuple):
    """Of masks and scores, all checked; 0 and None for what is not asked for."""

    window: tuple[int, int]  # left, right
    chunk: int
    softcap: float
    sinks: Tensor | None  # float32 [query_heads], as alibi
    alibi: Tensor | None
    temperature: Tensor | None  # float32 [positions]
    takes_spans: bool
    takes_trees: bool

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """The memory that every launch reads."""
        return tuple(array for array in (self.sinks, self.alibi, self.temperature) if array is not None)

    @property
    def variant(self) -> str:
        """The axis of kernels that do all of it: "plain" where nothing is asked for."""
        return "general" if self.words() else "plain"

    def words(self) -> list[str]:
        """What is asked for, for people: one phrase each."""
        left, right = self.window
        found = {
            f"{left} keys up to a query's own": left,
            f"{right} keys from a query's own on": right,
            f"chunks of {self.chunk} keys": self.chunk,
            "spans": self.takes_spans,
            "trees of new tokens": self.takes_trees,
            f"scores capped at {self.softcap:g}": self.softcap,
            "sinks": self.sinks is not None,
            "ALiBi": self.alibi is not None,
            "temperature": self.temperature is not None,
        }
        return [phrase for phrase, is_asked in found.items() if is_asked]


def require_whole_scores(view: CacheView | LatentRows, made: Modifiers) -> None:
    """Raise DtypeError for sinks or a softcap where the scores of a row lack a number: where keys lack a mean."""
    names = [name for name, wish in (("sinks", made.sinks), ("softcap", made.softcap or None)) if wish is not None]
    if names and view.smoothing is not None and view.smoothing.has_mean:
        raise DtypeError(
            f"the cache's KeySmoothing takes a mean away from keys, and {' and '.join(names)} want the scores of whole "
            "keys; give KeySmoothing widths alone for this model"
        )


def modifiers(
    device: str,
    query_heads: int,
    *,
    window: Window = None,
    chunk: Any = None,
    softcap: Any = None,
    sinks: Any = None,
    alibi: Any = None,
    temperature: Any = None,
    spans: bool = False,
    tree: bool = False,
) -> Modifiers:
    """The arguments of kvit.Attention, checked. Raises ShapeError, DtypeError, DeviceError, LayoutError."""
    return Modifiers(
        window=_window(window),
        chunk=0 if chunk is None else _count("chunk", chunk),
        softcap=0.0 if softcap is None else _cap(softcap),
        sinks=_array("sinks", sinks, device, query_heads=query_heads),
        alibi=_array("alibi", alibi, device, query_heads=query_heads),
        temperature=_array("temperature", temperature, device, positions=None),
        takes_spans=_checks.flag("spans", spans),
        takes_trees=_checks.flag("tree", tree),
    )


def _window(window: Any) -> tuple[int, int]:
    sides = window if isinstance(window, tuple | list) else (window, None)
    if len(sides) != 2:
        raise ShapeError(
            f"window is {window!r}; give a number of keys up to the query's own, or (left, right), of which None is all"
        )
    left, right = (0 if side is None else _count("window", side) for side in sides)
    return left, right


def _count(name: str, given: Any) -> int:
    (found,) = _checks.require_counts(**{name: given})
    return found


def _cap(softcap: Any) -> float:
    cap = _checks.number("softcap", softcap)
    if not (cap > 0 and math.isfinite(cap)):
        raise ShapeError(f"softcap is {cap}; give what scores are capped at, more than 0, or None for no cap")
    return cap


def _array(name: str, source: Any, device: str, **axes: int | None) -> Tensor | None:
    if source is None:
        return None
    found = _checks.tensor(name, source, dtypes.float32)
    _checks.require_shape(name, found, **axes)
    _checks.require_dense(name, found)
    _checks.require_device(device, **{name: found})
    if not found.shape[0]:
        raise ShapeError(f"{name} is empty; give one number at least, or None")
    return found


def of_call(
    made: Modifiers, device: str, tokens: int, spans: Tensor | None, tree: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The arrays of one call, if they fit the operation that was made. Raises ShapeError, DtypeError, LayoutError."""
    for name, given, is_taken in (("spans", spans, made.takes_spans), ("tree", tree, made.takes_trees)):
        if given is not None and not is_taken:
            raise ShapeError(f"{name} is given to an operation that was made without; make it with {name}=True")
    if spans is not None:
        spans = _checks.tensor("spans", spans, dtypes.int32)
        _checks.require_shape("spans", spans, tokens=tokens, **{"begin and end": 2})
        _require_rows("spans", spans)
    if tree is not None:
        tree = _checks.tensor("tree", tree, dtypes.int64)
        if len(tree.shape) != 2 or tree.shape[0] != tokens or tree.shape[1] not in (1, 2):
            raise ShapeError(
                f"tree has shape {list(tree.shape)}; it must be [tokens = {tokens}, words = 1 or 2], a bit for each of "
                "64 or 128 new tokens of a sequence"
            )
        _require_rows("tree", tree)
    _checks.require_device(device, spans=spans, tree=tree)
    return spans, tree


def named(made: Modifiers, spans: Tensor | None, tree: Tensor | None) -> tuple[tuple[str, Tensor | None], ...]:
    """The memory that a call reads for all this, for checks of what it writes."""
    own = (("sinks", made.sinks), ("alibi", made.alibi), ("temperature", made.temperature))
    return (*own, ("spans", spans), ("tree", tree))


def _require_rows(name: str, found: Tensor) -> None:
    """Raise LayoutError unless the elements lie one after the other, at a multiple of their size."""
    size = found.dtype.bits // 8
    _checks.require_dense(name, found)
    if found.shape[0] > 1 and found.strides[0] != size * found.shape[1]:
        raise LayoutError(
            f"{name} has rows {found.strides[0]} bytes apart; they must lie one after the other "
            f"({size * found.shape[1]} bytes)"
        )
    if found.pointer % size:
        raise LayoutError(f"{name} begins at {found.pointer:#x}; it must begin at a multiple of {size} bytes")
