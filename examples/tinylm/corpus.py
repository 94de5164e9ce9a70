"""The training text: the .py files of the running interpreter's standard library, split by file."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

from model import END_OF_FILE

# Not the library's own source: installed packages, tests, and what scripts generated (codec tables; the manual).
EXCLUDED_DIRECTORIES = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
EXCLUDED_PREFIX = "_sysconfigdata"  # how this one interpreter was built, generated as well

SPLITS = ("train", "validation", "test")


def split_of(name: str) -> str:
    """Which split a file belongs to: 18 in 20 train, 1 validation, 1 test.

    By a hash of its path and not by chance, so that every run, machine and Python version agrees; whole files, so that
    the neighbours of no held-out line were trained on.
    """
    bucket = hashlib.sha256(name.encode()).digest()[0] % 20
    return {0: "validation", 1: "test"}.get(bucket, "train")


def read(root: Path | None = None) -> dict[str, bytes]:
    """Read the standard library (or all below root) as one byte string per split, each file preceded by END_OF_FILE.

    Raises FileNotFoundError: a split has no .py file (some distributions ship the library without source).
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if EXCLUDED_DIRECTORIES.intersection(name.split("/")) or path.name.startswith(EXCLUDED_PREFIX):
            continue
        text = path.read_bytes().replace(b"\r\n", b"\n")
        if text and is_python_text(text):
            texts[split_of(name)].append(bytes([END_OF_FILE]) + text)
    if empty := [split for split in SPLITS if not texts[split]]:
        raise FileNotFoundError(
            f"{root} has no .py files for the split {empty[0]}; run an interpreter whose library has its source"
        )
    return {split: b"".join(files) for split, files in texts.items()}


def is_python_text(text: bytes) -> bool:
    """UTF-8 without the byte that separates files; a few old modules are in other encodings."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return END_OF_FILE not in text
