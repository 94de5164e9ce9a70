"""Values of the axes that kernels/manifest.toml multiplies out, and how messages write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

AxisValue: TypeAlias = int | str


def channels(head_dim: AxisValue) -> tuple[int, int]:
    """Channels of a row of K and of V, of a value of the axis `head_dim`: 128, or "192x128" where they differ."""
    k_dim, _, v_dim = str(head_dim).partition("x")
    return int(k_dim), int(v_dim or k_dim)


def words(family: str, axes: Mapping[str, AxisValue]) -> str:
    """A point of a family's axes, as messages name it."""
    return " ".join([family] * bool(family) + [f"{axis}={value}" for axis, value in axes.items()])
