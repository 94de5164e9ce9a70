"""Sizes of the models are whole numbers, as the template arguments of the C++ classes are."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from kvit.errors import ShapeError


def require_whole(model: Any, *names: str) -> None:
    """Raise ShapeError unless these attributes are ints, or whole numbers of numpy."""
    for name in names:
        value = getattr(model, name)
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ShapeError(f"{name} of {type(model).__name__} is {value!r}; it must be a whole number")
