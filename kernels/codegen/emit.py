"""Writes the translation units: one per (family, unit), the same text for nvcc and for g++."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from codegen.family import Spec


@dataclass(frozen=True)
class Unit:
    """One translation unit and the kernels in it."""

    stem: str  # file name without suffix, <family>_<unit>
    archs: tuple[str, ...]
    specs: tuple[Spec, ...]

    @property
    def text(self) -> str:
        kernels = [f"KVIT_KERNEL({spec.symbol}, kvit::{spec.cpp_type})\n" for spec in self.specs]
        return f'#include "{self.specs[0].header}"\n\n' + "".join(kernels)


def units_of(specs: Iterable[Spec]) -> list[Unit]:
    """Group the kernels by unit, in manifest order."""
    groups: dict[str, list[Spec]] = {}
    for spec in specs:
        groups.setdefault(spec.file_stem, []).append(spec)
    return [Unit(stem, group[0].archs, tuple(group)) for stem, group in groups.items()]


def write_units(units: Iterable[Unit], folder: Path) -> None:
    """Make `folder` hold exactly these units; files that are right already keep their time stamps."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{unit.stem}.cu": unit.text for unit in units}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        write_if_changed(folder / name, text)


def write_if_changed(path: Path, text: str) -> None:
    """Write a file that ninja compares by time stamp: an equal one is left alone, so nothing is rebuilt for it."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
