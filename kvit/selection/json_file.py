"""JSON in files, read so that a lack of memory is a MemoryError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load(path: Path) -> Any:
    """What JSON makes of a file. Raises OSError, ValueError.

    By its name as text: where memory is short, Python says of a path object that it is none.
    """
    with open(str(path), encoding="utf-8") as file:
        return json.load(file)
