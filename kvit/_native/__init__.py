"""The compiled part of kvit: one class per module. Importing any of them needs no driver and starts no CUDA."""

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES


def _require_modules(folder: str) -> None:
    """Raise ImportError, which says what to do, where there is no module that this Python can load."""
    compiled = [name for _, _, names in os.walk(folder) for name in names if name.endswith(".so")]
    if any(name[name.index(".") :] in EXTENSION_SUFFIXES for name in compiled):
        return
    package, python = os.path.dirname(folder), f"Python {sys.version_info.major}.{sys.version_info.minor}"
    if compiled:
        raise ImportError(
            f"{package} is compiled for another Python than this {python} ({compiled[0]}); install kvit for this "
            f"one: {sys.executable} -m pip install ."
        )
    raise ImportError(
        f"{package} is kvit's source, which has no compiled modules. If kvit is installed, Python found this folder "
        "first because it is the current one: run Python in another folder, or with -P (3.11 and newer). "
        "If not: pip install . there, or pip install -e . to use the source itself"
    )


_require_modules(os.path.dirname(os.path.abspath(__file__)))
