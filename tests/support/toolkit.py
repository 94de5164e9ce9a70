"""A CUDA toolkit that only looks like one, for tests of the build."""

from pathlib import Path

HEADERS = ("cuda.h", "cudaProfiler.h", "cuda_runtime.h", "crt/host_config.h")

# Stands in for ptxas: the file tells what it was asked for, after that which it was made from, behind as much of a
# cubin as the build looks at: the version of the ELF ABI.
_PTXAS = """
for word; do
  case $last in -o) out=$word;; esac
  case $word in *.ptx) source=$word;; esac
  last=$word
done
echo "ptxas info: Used 8 registers"
printf '\\177ELF\\2\\1\\1\\63\\{abi}' > "$out"; cat "$source" >> "$out"; echo "ptxas $@" >> "$out"
"""


def make_script(path: Path, text: str) -> Path:
    """An executable shell script at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def make_ptxas(path: Path, release: str) -> Path:
    """An assembler at `path` that tells this version, such as "12.9"."""
    abi = "10" if int(release.partition(".")[0]) >= 13 else "7"  # in octal: 8 of CUDA 13, 7 of CUDA 12
    return make_script(path, _telling("ptxas", release) + _PTXAS.format(abi=abi))


def make_toolkit(root: Path, release: str = "13.0", without: tuple[str, ...] = (), nvcc: str = "exit 1") -> Path:
    """The parts of a toolkit that the build looks at, as PyPI lays them out; returns `root`.

    release  the version that bin/nvcc and bin/ptxas tell
    without  parts to leave out, relative to root
    nvcc     what bin/nvcc does when it is asked for anything but its version
    """
    make_script(root / "bin" / "nvcc", _telling("nvcc", release) + nvcc)
    if "bin/ptxas" not in without:
        make_ptxas(root / "bin" / "ptxas", release)
    for path in ("nvvm/bin/cicc", *(f"include/{header}" for header in HEADERS)):
        if path not in without:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
    return root


def _telling(name: str, release: str) -> str:
    tell = f"echo '{name}: Cuda compilation tools, release {release}, V{release}.88'"
    return f'if [ "$1" = --version ]; then {tell}; exit; fi\n'
