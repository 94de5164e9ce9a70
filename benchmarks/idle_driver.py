"""A CUDA driver that returns at once: what a call costs on the host alone, where no GPU is needed and none computes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("idle_driver.c")
_ARCH = "sm_90a"


def compiler() -> str:
    """The C compiler: $CC, else cc. Raises FileNotFoundError where there is none."""
    wanted = os.environ.get("CC", "cc")
    found = shutil.which(wanted)
    if found is None:
        raise FileNotFoundError(f"no C compiler {wanted!r}. On Debian: apt install gcc. Or set CC to one.")
    return found


def build(folder: Path) -> dict[str, str]:
    """Compile it into `folder`. Returns the environment of a process that will find it instead of the real driver."""
    library = folder / "libcuda.so.1"
    subprocess.run([compiler(), "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE)], check=True)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    return {**os.environ, "LD_LIBRARY_PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def pretend_kernels(folder: Path) -> None:
    """Make kvit find a file for each of its kernels in `folder`, whatever was built: the idle driver reads none."""
    from kvit.selection import registry

    index = json.loads((registry.KERNELS / "index.json").read_text(encoding="utf-8"))
    index["archs"] = [_ARCH]
    (folder / _ARCH).mkdir(parents=True, exist_ok=True)
    for kernel in index["kernels"]:
        kernel["archs"] = [_ARCH]
        (folder / _ARCH / f"{kernel['family']}_{kernel['unit']}.fatbin").touch()
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    registry.KERNELS = folder
