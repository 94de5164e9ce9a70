"""Which files of the tree are ours to read and check: hand-written sources, nothing that a build left behind."""

from collections.abc import Iterator
from pathlib import Path

from support import ROOT

FOLDERS = ("kernels", "pyx", "kvit", "tests", "examples", "benchmarks")
BUILT = {"__pycache__", "_kernels", "build"}


def sources(*suffixes: str, under: tuple[str, ...] = FOLDERS) -> list[Path]:
    """Every source file with one of these suffixes, as paths relative to the root, in a fixed order."""
    found = sorted(path for folder in under for path in _walk(ROOT / folder) if path.suffix in suffixes)
    assert found, f"no {' or '.join(suffixes)} below {', '.join(under)}: a check of nothing would pass"
    return [path.relative_to(ROOT) for path in found]


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        generated = path.suffix in {".pxd", ".pyi"} and path.parent == ROOT / "kvit" / "_native"
        if path.is_file() and not generated and BUILT.isdisjoint(path.relative_to(ROOT).parts):
            yield path
