"""Checks of arguments before anything is launched. Each names the argument, what it is, and what would do."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from types import UnionType
from typing import TYPE_CHECKING, Any

from . import dtypes
from ._native.stream import Stream
from ._native.tensor import Tensor
from .dtypes import Dtype
from .errors import DeviceError, DtypeError, LayoutError, ShapeError

VECTOR_BYTES = 16
"""Kernels move rows of the cache in vectors of this size, so every row must begin at a multiple of it."""

MOST = 2**31 - 1
"""Largest count of rows, pages or tokens: kernels index them with int32. Offsets in memory are 64 bits wide."""


def tensor(name: str, source: Any, dtype: Dtype | None = None, stream: Stream | None = None) -> Tensor:
    """View `source` in place. Raw integers of the same width pass as `dtype`: numpy alone has no bfloat16."""
    found = Tensor.wrap(source, stream=0 if stream is None or stream.device == "host" else stream.handle)
    if dtype is None or found.dtype is dtype:
        return found
    try:
        return Tensor.wrap(found, dtype)
    except DtypeError:
        raise DtypeError(f"{name} is {found.dtype}; it must be {dtype}") from None


def require_shape(name: str, found: Tensor, **axes: int | None) -> None:
    """Raise ShapeError unless the axes have these lengths; None is any length."""
    shape = found.shape
    if len(shape) == len(axes):
        # A plain loop: this is on the path of every call, and a generator costs three times as much.
        for have, want in zip(shape, axes.values(), strict=True):
            if have > MOST or (want is not None and have != want):
                break
        else:
            return
    words = ", ".join(axis if want is None else f"{axis} = {want}" for axis, want in axes.items())
    raise ShapeError(f"{name} has shape {list(shape)}; it must be [{words}]")


def require_device(device: str, **tensors: Tensor | None) -> None:
    """Raise DeviceError unless all the tensors are on `device`. None is skipped."""
    for name, found in tensors.items():
        if found is not None and found.device != device:
            raise DeviceError(
                f"{name} is on {found.device}, the call on {device}; copy it there first, kvit moves nothing by itself"
            )


def require_rows(name: str, found: Tensor, vector_bytes: int = VECTOR_BYTES) -> None:
    """Raise LayoutError unless kernels can read the rows along the last axis in vectors."""
    shape, strides = found.shape, found.strides
    if 0 in shape:
        return  # strides of nothing mean nothing
    if shape[-1] > 1 and strides[-1] != found.dtype.bits // 8:
        raise LayoutError(
            f"{name} has channels {strides[-1]} bytes apart; they must lie side by side ({found.dtype.bits // 8} bytes)"
        )
    fits = found.pointer % vector_bytes == 0
    for stride, length in zip(strides[:-1], shape[:-1], strict=True):
        fits = fits and (length == 1 or stride % vector_bytes == 0)
    if not fits:
        raise LayoutError(
            f"{name} begins at {found.pointer:#x} with strides {list(strides)} bytes; "
            f"the address and all strides but the last must be multiples of {vector_bytes} bytes"
        )


def require_dense(name: str, found: Tensor) -> None:
    """Raise LayoutError unless neighbours on the last axis are neighbours in memory."""
    size = found.dtype.bits // 8
    if 0 not in found.shape and found.shape[-1] > 1 and found.strides[-1] != size:
        raise LayoutError(
            f"{name} has entries {found.strides[-1]} bytes apart; they must lie side by side ({size} bytes)"
        )


def require_writable(name: str, found: Tensor) -> None:
    """Raise LayoutError for memory whose owner forbids writing."""
    if found.readonly:
        raise LayoutError(f"{name} is read-only and would be written; give writable memory")


def require_block(name: str, found: Tensor) -> None:
    """Raise LayoutError unless the elements lie one after the other, from an address that suits vectors."""
    step = found.dtype.bits // 8
    for length, stride in zip(reversed(found.shape), reversed(found.strides), strict=True):
        if length > 1 and stride != step:
            raise LayoutError(f"{name} has strides {list(found.strides)} bytes; it must be one block, C-contiguous")
        step *= length
    if found.pointer % VECTOR_BYTES:
        raise LayoutError(f"{name} begins at {found.pointer:#x}; it must begin at a multiple of {VECTOR_BYTES} bytes")


def require_layout(layout: Any) -> None:
    """Raise LayoutError unless this is an order of axes that kvit knows by name."""
    if not isinstance(layout, str) or layout not in ("NHD", "HND"):
        raise LayoutError(
            f"layout is {layout!r}; it must be 'NHD' (tokens before heads) or 'HND' (heads before tokens)"
        )


def instance(name: str, given: Any, kind: type | UnionType, wanted: str) -> None:
    """Raise TypeError, which says what to give, unless `given` is of this class."""
    if not isinstance(given, kind):
        raise TypeError(f"{name} is a {type(given).__name__}; give {wanted}")


def made(name: str, given: Any, kind: type | UnionType, wanted: str) -> None:
    """The same for a class written in Python, whose __init__ must have been called."""
    instance(name, given, kind, wanted)
    if not vars(given):
        raise TypeError(
            f"{name} is a {type(given).__name__} whose __init__ was not called; let a subclass call super().__init__"
        )


def listed(name: str, given: Any, wanted: str) -> list[Any]:
    """`given` as a list. Raises TypeError, which says what to give, for what cannot be gone through."""
    try:
        items = iter(given)
    except TypeError:
        raise TypeError(f"{name} is a {type(given).__name__}; give {wanted}") from None
    return list(items)


def choice(name: str, given: Any, *known: str) -> None:
    """Raise ValueError, which names them, unless `given` is one of the words that are known."""
    if not isinstance(given, str) or given not in known:
        words = " or ".join(f'"{word}"' for word in known)
        raise ValueError(f"{name} is {given!r}; give {words}")


def flag(name: str, given: Any) -> bool:
    """`given` as a bool. Raises TypeError for an array, which is neither true nor false."""
    try:
        return bool(given)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(given).__name__}; give True or False") from None


def whole(name: str, number: Any) -> int:
    """`number` as an int, numpy's whole numbers of any width too. Raises ShapeError for floats, text and the like."""
    try:
        return operator.index(number)
    except TypeError:
        raise ShapeError(f"{name} is {number!r}; it must be a whole number") from None


def number(name: str, given: Any) -> float:
    """`given` as a float, numpy's scalars and arrays without axes too. Raises ShapeError for text and the like."""
    try:
        if isinstance(given, str | bytes | bytearray) or getattr(given, "ndim", 0):
            raise TypeError
        return float(given)
    except (TypeError, ValueError, OverflowError):
        raise ShapeError(f"{name} is {given!r}; it must be one number") from None


def require_counts(**counts: Any) -> tuple[int, ...]:
    """The counts as ints. Raises ShapeError unless each is at least one, and no more than kernels can count."""
    found = tuple(whole(name, count) for name, count in counts.items())
    for name, count in zip(counts, found, strict=True):
        if not 1 <= count <= MOST:
            raise ShapeError(f"{name} is {count}; it must be 1 to {MOST}")
    return found


def group_size(query_heads: Any, kv_heads: int) -> int:
    """Query heads that share a KV head. Raises ShapeError unless it is a whole number."""
    query_heads = whole("query_heads", query_heads)
    if query_heads > MOST:
        raise ShapeError(f"there are {query_heads} query heads; kernels count at most {MOST}")
    if query_heads <= 0 or query_heads % kv_heads:
        raise ShapeError(
            f"there are {query_heads} query heads and {kv_heads} KV heads; query heads must be a multiple of KV heads"
        )
    return query_heads // kv_heads


def lse(name: str, source: Any, shape: tuple[int, ...]) -> Tensor:
    """View `source` as the log-sum-exp of outputs of this shape [tokens, query_heads, head_dim]."""
    found = tensor(name, source, dtypes.float32)
    require_shape(name, found, tokens=shape[0], query_heads=shape[1])
    return found


class Made:
    """What classes derive from whose objects are nothing without their __init__: a use of such an object says so."""

    __slots__ = ()

    if not TYPE_CHECKING:  # for type checkers an attribute that is missing is missing

        def __getattr__(self, name):
            kind = type(self).__name__
            if vars(self) or name.startswith("__"):  # Python asks for many a name of its own, to see what there is
                raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=self)
            raise TypeError(
                f"a {kind} is used whose __init__ was not called; make it as its class says, and let a subclass call "
                "super().__init__"
            )


def words_of_made(words: Callable[[Any], str]) -> Callable[[Any], str]:
    """A __repr__ that errors may name any object by, one whose __init__ was not called too."""

    @functools.wraps(words)
    def found(thing: Any) -> str:
        return words(thing) if vars(thing) else f"<{type(thing).__name__} whose __init__ was not called>"

    return found
