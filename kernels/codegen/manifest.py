"""Reads kernels/manifest.toml, checks every row, and multiplies the axes out into one Spec per kernel."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.errors import ManifestError
from codegen.toml import TomlError, parse_toml

AxisValue = int | str

_TEXT_FIELDS = ("header", "type", "params", "symbol", "unit")
_FIELDS = {*_TEXT_FIELDS, "archs", "axes", "skip"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SYMBOL = re.compile(r"[a-z0-9_]+")
_ARCH = re.compile(r"(sm|compute)_[1-9][0-9]+[af]?")


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
class Skip:
    """Points of the axes that are not built: those that agree with every entry of `when`."""

    when: Mapping[str, tuple[AxisValue, ...]]
    reason: str

    def covers(self, axes: Mapping[str, AxisValue]) -> bool:
        return all(axes[axis] in values for axis, values in self.when.items())


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
    skips: tuple[Skip, ...]

    def points(self) -> Iterator[dict[str, AxisValue]]:
        """Every combination of the axes, skipped ones included."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))


@dataclass(frozen=True)
class Manifest:
    families: tuple[Family, ...]
    types: Mapping[str, str]  # axis value -> C++ spelling

    @property
    def archs(self) -> tuple[str, ...]:
        """Every target that some family is built for, in the order of first mention."""
        return tuple(dict.fromkeys(arch for family in self.families for arch in family.archs))

    def specs(self) -> list[Spec]:
        """Every kernel, in manifest order. Raises ManifestError where two share a symbol, or two families a file."""
        specs = [
            self._spec(family, axes)
            for family in self.families
            for axes in family.points()
            if not any(skip.covers(axes) for skip in family.skips)
        ]
        first_with: dict[str, Spec] = {}
        for spec in specs:
            other = first_with.setdefault(spec.symbol, spec)
            if other is not spec:
                raise ManifestError(
                    f"[{spec.family}] symbol: {dict(other.axes)} and {dict(spec.axes)} are both {spec.symbol}; "
                    "every axis must show in the symbol pattern"
                )
        owner: dict[str, str] = {}
        for spec in specs:
            other_family = owner.setdefault(spec.file_stem, spec.family)
            if other_family != spec.family:
                raise ManifestError(
                    f"[{spec.family}] unit: {spec.file_stem} is a unit of [{other_family}] too; rename one of them"
                )
        return specs

    def _spec(self, family: Family, axes: dict[str, AxisValue]) -> Spec:
        cpp_values = {axis: self.types.get(str(value), str(value)) for axis, value in axes.items()}
        suffix = family.symbol.format_map(axes)
        unit = family.unit.format_map(axes)
        for field, text in (("symbol", suffix), ("unit", unit)):
            if not _SYMBOL.fullmatch(text):
                raise ManifestError(f"[{family.name}] {field}: {text!r} is no name; use a-z, 0-9 and _")
        return Spec(
            family=family.name,
            axes=axes,
            symbol=f"kvit_{family.name}__{suffix}",
            header=family.header,
            cpp_type=family.type.format_map(cpp_values),
            params=family.params,
            unit=unit,
            archs=family.archs,
        )


def load_manifest(path: Path) -> Manifest:
    """Read and check `path`. Raises ManifestError, which names the file and the row."""
    try:
        return parse_manifest(path.read_text(encoding="utf-8"))
    except (ManifestError, TomlError) as error:
        raise ManifestError(f"{path}: {error}") from None


def parse_manifest(text: str) -> Manifest:
    """Check the manifest's text. Raises ManifestError, which names the row, or TomlError."""
    tables = parse_toml(text)
    types = tables.pop("types", {})
    for value, spelling in types.items():
        if not isinstance(spelling, str):
            raise ManifestError(f"[types] {value}: {spelling!r} is no C++ type; write it as a string")
    manifest = Manifest(tuple(_family(name, table) for name, table in tables.items()), types)
    manifest.specs()  # patterns that collide are the manifest's fault too, so they are found here
    return manifest


def _family(name: str, table: Any) -> Family:
    row = f"[{name}]"
    if not isinstance(table, dict):
        raise ManifestError(f"{name}: a top-level entry must be a table, like [{name}]")
    if not _NAME.fullmatch(name):
        raise ManifestError(f"{row}: a family's name has a-z, 0-9 and _ only")
    for field in table:
        if field not in _FIELDS:
            raise ManifestError(f"{row} {field}: no such field; there are {', '.join(sorted(_FIELDS))}")
    for field in sorted(_FIELDS - {"skip"}):
        if field not in table:
            raise ManifestError(f"{row}: {field} is missing")
    for field in _TEXT_FIELDS:
        if not isinstance(table[field], str) or not table[field]:
            raise ManifestError(f"{row} {field}: {table[field]!r} must be a string that is not empty")
    axes = _axes(row, table["axes"])
    for field in ("type", "symbol", "unit"):
        _check_pattern(f"{row} {field}", table[field], axes)
    skips = table.get("skip", [])
    if not isinstance(skips, list):
        raise ManifestError(f"{row} skip: {skips!r} must be a list of rows")
    return Family(
        name=name,
        **{field: table[field] for field in _TEXT_FIELDS},
        archs=_archs(row, table["archs"]),
        axes=axes,
        skips=tuple(_skip(f"{row} skip[{index}]", skip, axes) for index, skip in enumerate(skips)),
    )


def _archs(row: str, archs: Any) -> tuple[str, ...]:
    if not isinstance(archs, list) or not archs:
        raise ManifestError(f"{row} archs: {archs!r} must be a list that is not empty")
    for arch in archs:
        if not isinstance(arch, str) or not _ARCH.fullmatch(arch):
            raise ManifestError(f"{row} archs: {arch!r} is no target; write sm_80, sm_90a or compute_80")
    if len(set(archs)) != len(archs):
        raise ManifestError(f"{row} archs: {archs} names a target twice")
    return tuple(archs)


def _axes(row: str, axes: Any) -> dict[str, tuple[AxisValue, ...]]:
    if not isinstance(axes, dict):
        raise ManifestError(f"{row} axes: {axes!r} must be rows like axes.head_dim = [64, 128]")
    for axis, values in axes.items():
        if not _NAME.fullmatch(axis):
            raise ManifestError(f"{row} axes.{axis}: an axis's name has a-z, 0-9 and _ only")
        if not isinstance(values, list) or not values:
            raise ManifestError(f"{row} axes.{axis}: {values!r} must be a list that is not empty")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise ManifestError(f"{row} axes.{axis}: {value!r} must be an integer or a string")
        if len(set(values)) != len(values):
            raise ManifestError(f"{row} axes.{axis}: {values} has a value twice")
    return {axis: tuple(values) for axis, values in axes.items()}


def _check_pattern(row: str, pattern: str, axes: Mapping[str, tuple[AxisValue, ...]]) -> None:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise ManifestError(f"{row}: {pattern!r} is no pattern: {error}") from None
    for name in names:
        if name not in axes:
            raise ManifestError(f"{row}: {pattern!r} uses {{{name}}}; the axes are {', '.join(axes) or 'none'}")


def _skip(row: str, skip: Any, axes: Mapping[str, tuple[AxisValue, ...]]) -> Skip:
    if not isinstance(skip, dict) or set(skip) != {"when", "reason"}:
        raise ManifestError(f"{row}: {skip!r} must be {{ when = {{ axis = value }}, reason = '...' }}")
    if not isinstance(skip["reason"], str) or not skip["reason"]:
        raise ManifestError(f"{row} reason: say why this is not built")
    if not isinstance(skip["when"], dict) or not skip["when"]:
        raise ManifestError(f"{row} when: {skip['when']!r} must name at least one axis")
    when = {}
    for axis, wanted in skip["when"].items():
        if axis not in axes:
            raise ManifestError(f"{row} when: no axis {axis}; the axes are {', '.join(axes)}")
        values = tuple(wanted) if isinstance(wanted, list) else (wanted,)
        for value in values:
            if value not in axes[axis]:
                raise ManifestError(
                    f"{row} when: axes.{axis} has no {value!r}; it has {', '.join(map(str, axes[axis]))}"
                )
        when[axis] = values
    return Skip(when, skip["reason"])
