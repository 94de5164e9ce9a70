"""A CUDA driver that returns at once: what a call costs on the host alone, where no GPU is needed and none computes."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("idle_driver.c")
# As much of a cubin and of PTX as the idle driver looks at: the version of the ELF ABI, and that of the ISA.
_IMAGES = {"sm": b"\x7fELF\x02\x01\x01\x33\x07" + bytes(55), "compute": b".version 8.0\n"}


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


def pretend_kernels(
    folder: Path, archs: Sequence[str] = ("sm_90",), drivers: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Make kvit find a file for each of its kernels and targets in `folder`, whatever was built.

    drivers  by target, the first CUDA whose drivers take it, as the index says; 12.0 if absent
    """
    from kvit.selection import registry

    index = json.loads((registry.KERNELS / "index.json").read_text(encoding="utf-8"))
    index["archs"] = list(archs)
    index["drivers"] = {arch: (drivers or {}).get(arch, (12, 0)) for arch in archs}
    for kernel in index["kernels"]:
        kernel["archs"] = list(archs)
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    registry.KERNELS = folder
    packed = {kind: lzma.compress(image, preset=0) for kind, image in _IMAGES.items()}
    for arch in archs:
        (folder / arch).mkdir(exist_ok=True)
        for path in {kernel.file(arch) for kernel in registry.all()}:
            path.write_bytes(packed[arch.partition("_")[0]])
