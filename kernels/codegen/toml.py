"""Reads TOML on every supported Python: 3.10 has no parser of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TomlError = tomllib.TOMLDecodeError
parse_toml = tomllib.loads


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of `path`. Raises TomlError."""
    return parse_toml(path.read_text(encoding="utf-8"))
