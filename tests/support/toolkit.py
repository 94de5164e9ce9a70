"""A CUDA toolkit that only looks like one, for tests of the build."""

from pathlib import Path

HEADERS = ("cuda.h", "cudaProfiler.h", "cuda_runtime.h", "crt/host_config.h")

_FATBINARY = """
for word; do
  case $word in --create=*) out=${word#--create=};; --image3=*) source=${word##*file=};; esac
done
cat "$source" > "$out"; echo "fatbinary $@" >> "$out"
"""


def make_script(path: Path, text: str) -> Path:
    """An executable shell script at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def make_toolkit(root: Path, release: str = "13.0", without: tuple[str, ...] = (), nvcc: str = "exit 1") -> Path:
    """The parts of a toolkit that the build looks at, as PyPI lays them out; returns `root`. fatbinary only copies.

    release  the version that bin/nvcc tells
    without  parts to leave out, relative to root
    nvcc     what bin/nvcc does when it is asked for anything but its version
    """
    tell = f"echo 'Cuda compilation tools, release {release}, V{release}.88'"
    make_script(root / "bin" / "nvcc", f'if [ "$1" = --version ]; then {tell}; exit; fi\n{nvcc}')
    if "bin/fatbinary" not in without:
        make_script(root / "bin" / "fatbinary", _FATBINARY)
    for path in ("nvvm/bin/cicc", *(f"include/{header}" for header in HEADERS)):
        if path not in without:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
    return root
