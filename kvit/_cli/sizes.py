"""What the installed package weighs, part by part: on disk, and on request as a wheel packs it."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]

_KERNELS = "_kernels"
_HOST, _MODULES, _PYTHON, _HEADERS = "host backend", "extension modules", "Python", "C and Cython headers"


def collect(archs: tuple[str, ...], package: Path = PACKAGE, *, pack: bool = False) -> list[dict[str, Any]]:
    """Every file of the package in exactly one part, as JSON has it.

    archs  targets that are built, in the order of the parts
    pack   compress every file too, as a wheel does: takes a second or two

    The parts, in this order: the host backend, each target's kernels, extension modules, Python, headers.
    """
    names = [_HOST, *(f"kernels {arch}" for arch in archs), _MODULES, _PYTHON, _HEADERS]
    empty = {"files": 0, "bytes": 0, "wheel_bytes": 0 if pack else None}
    parts = {name: {"part": name, **empty} for name in names}
    for path in files(package):
        name = _part_of(path.relative_to(package))
        part = parts.setdefault(name, {"part": name, **empty})  # a folder of an index that is gone is shown too
        part["files"] += 1
        part["bytes"] += path.stat().st_size
        if pack:
            part["wheel_bytes"] += _packed(path)
    return list(parts.values())


def files(package: Path) -> list[Path]:
    """The files that are installed, and not those that Python caches beside them."""
    return [path for path in sorted(package.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def _part_of(path: Path) -> str:
    if path.parts[0] == _KERNELS and len(path.parts) > 2:
        return f"kernels {path.parts[1]}"
    if path.suffix == ".so":
        return _HOST if path.parts[0] == _KERNELS else _MODULES
    return _HEADERS if path.suffix in (".h", ".pxd") else _PYTHON


def _packed(path: Path) -> int:
    """Bytes of the file in a wheel: raw deflate at zlib's own level, as zipfile writes it."""
    packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -zlib.MAX_WBITS)
    return len(packer.compress(path.read_bytes())) + len(packer.flush())
