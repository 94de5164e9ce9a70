"""What a table of kernels/manifest.toml says, checked: a family, points of its axes, and a kernel at one of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from codegen.errors import ManifestError

AxisValue = int | str


@dataclass(frozen=True)
class Spec:
    """One kernel to build: a point of its family's axes."""

    family: str
    axes: Mapping[str, AxisValue]
    symbol: str
    header: str  # relative to kernels/
    cpp_type: str  # as spelled inside namespace kvit
    params: str
    unit: str
    archs: tuple[str, ...]

    @property
    def file_stem(self) -> str:
        """Name of the translation unit, shared with the other specialisations of its unit."""
        return f"{self.family}_{self.unit}"


@dataclass(frozen=True)
class Points:
    """The points of the axes that agree with every entry of `when`, and why something is said about them."""

    when: Mapping[str, tuple[AxisValue, ...]]
    reason: str

    def covers(self, axes: Mapping[str, AxisValue]) -> bool:
        return all(axes[axis] in values for axis, values in self.when.items())


@dataclass(frozen=True)
class Only:
    """Points that are built for some targets of their family only, besides the host."""

    points: Points
    archs: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One table of the manifest, checked."""

    name: str
    header: str
    type: str
    params: str
    symbol: str
    unit: str
    archs: tuple[str, ...]
    axes: Mapping[str, tuple[AxisValue, ...]]
    skips: tuple[Points, ...]
    onlys: tuple[Only, ...]
    all_archs: tuple[str, ...]  # archs, and targets with a letter, which are for points that an `only` row gives them
    asked: tuple[Points, ...]  # which are built for GPUs where somebody asks for all kernels

    def is_asked(self, axes: Mapping[str, AxisValue]) -> bool:
        return any(points.covers(axes) for points in self.asked)

    def archs_of(self, axes: Mapping[str, AxisValue]) -> tuple[str, ...]:
        """The targets of one point: the family's, or those that all `only` rows about it name. Raises ManifestError."""
        about = [only.archs for only in self.onlys if only.points.covers(axes)]
        if not about:
            return self.archs
        common = tuple(arch for arch in self.all_archs if all(arch in archs for archs in about))
        if not common and all(about):
            raise ManifestError(f"[{self.name}] only: the rows about {dict(axes)} have no target in common")
        return common

    def points(self) -> Iterator[dict[str, AxisValue]]:
        """Every combination of the axes, skipped ones included."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))
