"""Reads kernels/manifest.toml, checks every row, and multiplies the axes out into one Spec per kernel."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.errors import ManifestError
from codegen.family import AxisValue, Family, Only, Points, Spec
from codegen.toml import TomlError, parse_toml

_TEXT_FIELDS = ("header", "type", "params", "symbol", "unit")
_OPTIONAL_FIELDS = {"archs", "asked", "only", "skip"}
_FIELDS = {*_TEXT_FIELDS, "axes", *_OPTIONAL_FIELDS}
_TARGET_FIELDS = {"default", "all"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SYMBOL = re.compile(r"[a-z0-9_]+")
_ARCH = re.compile(r"(sm|compute)_[1-9][0-9]+[af]?")


@dataclass(frozen=True)
class Manifest:
    families: tuple[Family, ...]
    types: Mapping[str, str]  # axis value -> C++ spelling
    default_archs: tuple[str, ...]  # what is built where nobody says otherwise

    @property
    def archs(self) -> tuple[str, ...]:
        """Every target that some family can be built for, in the order of first mention."""
        return tuple(dict.fromkeys(arch for family in self.families for arch in family.all_archs))

    def specs(self, with_asked: bool = True) -> list[Spec]:
        """Every kernel, in manifest order. Without those of `asked` rows these are for the host alone.

        Raises ManifestError where two share a symbol, two families a file, or the kernels of a file differ in targets.
        """
        specs = [
            self._spec(family, axes, with_asked)
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
        owner: dict[str, Spec] = {}
        for spec in specs:
            other = owner.setdefault(spec.file_stem, spec)
            if other.family != spec.family:
                raise ManifestError(
                    f"[{spec.family}] unit: {spec.file_stem} is a unit of [{other.family}] too; rename one of them"
                )
            if other.archs != spec.archs:
                raise ManifestError(
                    f"[{spec.family}] unit: {spec.unit} has {other.symbol} for {', '.join(other.archs)} and "
                    f"{spec.symbol} for {', '.join(spec.archs)}; a file is built as a whole, so that the axis that "
                    "makes the difference must show in the unit pattern"
                )
        return specs

    def _spec(self, family: Family, axes: dict[str, AxisValue], with_asked: bool) -> Spec:
        cpp_values = {axis: self.types.get(str(value), str(value)) for axis, value in axes.items()}
        suffix = family.symbol.format_map(axes)
        is_asked = family.is_asked(axes)
        unit = family.unit.format_map(axes) + "_asked" * is_asked
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
            archs=family.archs_of(axes) if with_asked or not is_asked else (),
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
    targets = _targets(tables.pop("targets", {}))
    families = tuple(_family(name, table, targets["all"]) for name, table in tables.items())
    known = tuple(dict.fromkeys(arch for family in families for arch in family.all_archs))
    manifest = Manifest(families, types, targets["default"] or known)
    manifest.specs()  # patterns that collide are the manifest's fault too, so they are found here
    return manifest


def _targets(table: Any) -> dict[str, tuple[str, ...]]:
    """The two lists of [targets], both empty where the manifest has no such table."""
    if not isinstance(table, dict) or (table and set(table) != _TARGET_FIELDS):
        raise ManifestError("[targets]: give `default`, what a plain build makes, and `all`, what can be asked for")
    lists = {field: _archs("[targets]", field, table[field]) if table else () for field in _TARGET_FIELDS}
    for arch in lists["default"]:
        if arch not in lists["all"]:
            raise ManifestError(f"[targets] default: {arch} is not in all: {', '.join(lists['all'])}")
    return lists


def _family(name: str, table: Any, all_archs: tuple[str, ...]) -> Family:
    row = f"[{name}]"
    if not isinstance(table, dict):
        raise ManifestError(f"{name}: a top-level entry must be a table, like [{name}]")
    if not _NAME.fullmatch(name):
        raise ManifestError(f"{row}: a family's name has a-z, 0-9 and _ only")
    for field in table:
        if field not in _FIELDS:
            raise ManifestError(f"{row} {field}: no such field; there are {', '.join(sorted(_FIELDS))}")
    for field in sorted(_FIELDS - _OPTIONAL_FIELDS):
        if field not in table:
            raise ManifestError(f"{row}: {field} is missing")
    for field in _TEXT_FIELDS:
        if not isinstance(table[field], str) or not table[field]:
            raise ManifestError(f"{row} {field}: {table[field]!r} must be a string that is not empty")
    axes = _axes(row, table["axes"])
    for field in ("type", "symbol", "unit"):
        _check_pattern(f"{row} {field}", table[field], axes)
    for field in ("skip", "only", "asked"):
        if not isinstance(table.get(field, []), list):
            raise ManifestError(f"{row} {field}: {table[field]!r} must be a list of rows")
    if "archs" in table:
        archs = all_archs = _archs(row, "archs", table["archs"])
    elif all_archs:
        archs = tuple(arch for arch in all_archs if arch[-1].isdigit())  # sm_90a is for who names it
    else:
        raise ManifestError(f"{row}: archs is missing, and there is no [targets] all to stand for it")
    skips, onlys, asked = (table.get(field, []) for field in ("skip", "only", "asked"))
    return Family(
        name=name,
        **{field: table[field] for field in _TEXT_FIELDS},
        archs=archs,
        axes=axes,
        skips=tuple(_points(f"{row} skip[{index}]", skip, axes) for index, skip in enumerate(skips)),
        onlys=tuple(_only(f"{row} only[{index}]", only, axes, all_archs) for index, only in enumerate(onlys)),
        asked=tuple(_points(f"{row} asked[{index}]", points, axes) for index, points in enumerate(asked)),
        all_archs=all_archs,
    )


def _archs(row: str, field: str, archs: Any) -> tuple[str, ...]:
    if not isinstance(archs, list) or not archs:
        raise ManifestError(f"{row} {field}: {archs!r} must be a list that is not empty")
    for arch in archs:
        if not isinstance(arch, str) or not _ARCH.fullmatch(arch):
            raise ManifestError(f"{row} {field}: {arch!r} is no target; write sm_80, sm_90a or compute_80")
    if len(set(archs)) != len(archs):
        raise ManifestError(f"{row} {field}: {archs} names a target twice")
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


def _only(row: str, only: Any, axes: Mapping[str, tuple[AxisValue, ...]], family: tuple[str, ...]) -> Only:
    if not isinstance(only, dict) or set(only) != {"when", "archs", "reason"}:
        raise ManifestError(f"{row}: {only!r} must be {{ when = {{ axis = value }}, archs = [...], reason = '...' }}")
    archs = _archs(row, "archs", only["archs"]) if only["archs"] != [] else ()  # none: for the host alone
    for arch in archs:
        if arch not in family:
            raise ManifestError(f"{row} archs: the family is not built for {arch}, but for {', '.join(family)}")
    return Only(_points(row, {field: only[field] for field in ("when", "reason")}, axes), archs)


def _points(row: str, points: Any, axes: Mapping[str, tuple[AxisValue, ...]]) -> Points:
    if not isinstance(points, dict) or set(points) != {"when", "reason"}:
        raise ManifestError(f"{row}: {points!r} must be {{ when = {{ axis = value }}, reason = '...' }}")
    if not isinstance(points["reason"], str) or not points["reason"]:
        raise ManifestError(f"{row} reason: say why")
    if not isinstance(points["when"], dict) or not points["when"]:
        raise ManifestError(f"{row} when: {points['when']!r} must name at least one axis")
    when = {}
    for axis, wanted in points["when"].items():
        if axis not in axes:
            raise ManifestError(f"{row} when: no axis {axis}; the axes are {', '.join(axes)}")
        values = tuple(wanted) if isinstance(wanted, list) else (wanted,)
        for value in values:
            if value not in axes[axis]:
                raise ManifestError(
                    f"{row} when: axes.{axis} has no {value!r}; it has {', '.join(map(str, axes[axis]))}"
                )
        when[axis] = values
    return Points(when, points["reason"])
