"""Finds the compilers: nvcc, ptxas and CUDA headers (PyPI packages first, then CUDA_HOME, then PATH), g++ and ninja."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codegen.errors import BuildError

# PTX of nvcc 13.0 is marked as older PTX, and ptxas of CUDA 12 assembles it (see ninja.py). That of a newer one may
# have what older PTX does not have.
CUDA_VERSION = (13, 0)
CUDA_PACKAGES = "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl,profiler]==13.0.*"
# Cubins of CUDA 12, whatever its minor version, are loaded by drivers of CUDA 12.0 (r525) and newer, 13 included; those
# of CUDA 13 by drivers of CUDA 13.0 (r580) and newer.
ASSEMBLER_PACKAGE = "nvidia-cuda-nvcc-cu12==12.9.*"
_BINDINGS = "cuda-bindings==13.0.*"
MIN_GXX = 11  # the first with all of C++20 that the headers use

# cydriver.pxd includes the first two; the others are what nvcc itself includes before the first line of a kernel.
_DRIVER_HEADERS = ("cuda.h", "cudaProfiler.h")
_COMPILER_HEADERS = ("cuda_runtime.h", "crt/host_config.h")


@dataclass(frozen=True)
class Assembler:
    """The ptxas that makes cubins."""

    path: Path
    version: tuple[int, int]
    banner: str


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit that can build kvit."""

    root: Path
    nvcc: Path
    include: Path
    version: tuple[int, int]
    banner: str  # what nvcc says of itself, build number included
    assembler: Assembler  # of CUDA 12 where there is one, else the toolkit's own


def find_cuda(environ: Mapping[str, str] = os.environ, search_path: Sequence[str] | None = None) -> Cuda:
    """The first toolkit that is complete and new enough.

    search_path  where Python packages are looked for; sys.path if absent

    Raises BuildError, which lists each place that was looked at and what it lacks.
    """
    rejected = []
    entries = sys.path if search_path is None else search_path
    for place, root in _roots(environ, entries):
        found = _inspect(root, entries)
        if isinstance(found, Cuda):
            if found.assembler.version >= (13, 0):
                print(
                    f"note: cubins are made by {found.assembler.path} of CUDA {_words(found.assembler.version)} and "
                    "need a driver of CUDA 13.0 (r580) or newer. For those of CUDA 12 too: pip install "
                    f"'{ASSEMBLER_PACKAGE}'",
                    file=sys.stderr,
                )
            return found
        rejected.append(f"  {place} {root}: {found}")
    looked_at = "\n".join(rejected) or "  no nvcc in the Python environment, CUDA_HOME, PATH or /usr/local/cuda"
    raise BuildError(
        f"no CUDA 13 compiler:\n{looked_at}\n"
        f"Install it with: pip install '{CUDA_PACKAGES}'\n"
        "or point CUDA_HOME at a CUDA 13 toolkit, or set KVIT_ARCHS=none to build the host backend alone."
    )


def find_cuda_include(environ: Mapping[str, str] = os.environ, search_path: Sequence[str] | None = None) -> Path:
    """The folder of cuda.h, which the Cython modules need even where no kernel is compiled for a GPU.

    Raises BuildError, which says what to install.
    """
    for _, root in _roots(environ, sys.path if search_path is None else search_path):
        for include in _includes(root):
            if not _missing(include, _DRIVER_HEADERS):
                return include
    raise BuildError(
        "no CUDA driver headers (cuda.h, cudaProfiler.h). Install them with: pip install "
        "'cuda-toolkit[cudart,crt,profiler]==13.0.*', or point CUDA_HOME at a CUDA 13 toolkit."
    )


def bindings_language(include: Path, search_path: Sequence[str] | None = None) -> str:
    """The language of modules that cimport cuda.bindings: "c", or "c++" for those that only C++ reads (13.4 on).

    include      the folder of cuda.h
    search_path  where Python packages are looked for; sys.path if absent

    Raises BuildError: there are no cuda-bindings, or such as name what this cuda.h does not have (13.5 on).
    """
    entries = sys.path if search_path is None else search_path
    packages = (Path(entry or ".", "cuda", "bindings") for entry in entries)
    package = next((package for package in packages if (package / "cydriver.pxd").is_file()), None)
    if package is None:
        raise BuildError(f"no cuda-bindings to build against. Install them with: pip install '{_BINDINGS}'")
    need = _number_in(package / "_version.py", r"""version = ['"](\d+)\.(\d+)""")
    have = _number_in(include / "cuda.h", r"#define CUDA_VERSION (\d+)0(\d)0")
    if need is None or need < (13, 4):
        return "c"
    if have is not None and have < need and need >= (13, 5):
        newer = f"{need[0]}.{need[1]}"
        raise BuildError(
            f"cuda-bindings {newer} in {package} name what {include / 'cuda.h'} of CUDA {have[0]}.{have[1]} does not "
            f"have.\nInstall older ones with: pip install '{_BINDINGS}', or headers of CUDA {newer}, or leave "
            "--no-build-isolation out: pip then takes the right ones by itself."
        )
    return "c++"


def _number_in(path: Path, pattern: str) -> tuple[int, int] | None:
    found = re.search(pattern, path.read_text(encoding="utf-8")) if path.is_file() else None
    return None if found is None else (int(found[1]), int(found[2]))


def find_gxx(environ: Mapping[str, str] = os.environ) -> str:
    """The C++ compiler: CXX, else g++. Raises BuildError where it is missing or older than MIN_GXX."""
    wanted = environ.get("CXX") or "g++"
    path = shutil.which(wanted, path=environ.get("PATH"))
    if path is None:
        hint = f" CXX is one program, without options: {wanted!r} is not." if len(wanted.split()) > 1 else ""
        raise BuildError(f"no C++ compiler {wanted!r}.{hint} On Debian: apt install g++. Or set CXX to one.")
    path = os.path.abspath(path)  # ninja runs elsewhere
    version = subprocess.run(
        [path, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=False
    ).stdout
    is_gcc = b"Free Software Foundation" in subprocess.run([path, "--version"], capture_output=True, check=False).stdout
    if is_gcc and int(version.split(".")[0]) < MIN_GXX:
        raise BuildError(
            f"{path} is GCC {version.strip()}; kvit is C++20 and needs GCC {MIN_GXX} or newer. Or set CXX."
        )
    return path


def compiles_for_windows(gxx: str) -> bool:
    """Whether what a C++ compiler makes is for Windows, as MinGW and clang say of themselves."""
    machine = subprocess.run([gxx, "-dumpmachine"], capture_output=True, text=True, check=False).stdout
    return "windows" in machine or "mingw" in machine


def quoted_compilers(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """CC and CXX where they are programs in folders with blanks, as a shell must read them.

    setuptools takes these variables apart at blanks, so that they may hold options.
    """
    found = {name: environ.get(name, "") for name in ("CC", "CXX")}
    return {
        name: shlex.quote(program)
        for name, program in found.items()
        if len(program.split()) > 1 and shutil.which(program, path=environ.get("PATH"))
    }


def find_ninja() -> str:
    """The ninja program: of the Python environment, else of PATH. Raises BuildError."""
    spec = importlib.util.find_spec("ninja")
    if spec is not None and spec.origin is not None:
        import ninja

        packaged = Path(ninja.BIN_DIR) / "ninja"
        if packaged.exists():
            return str(packaged)
    path = shutil.which("ninja")
    if path is None:
        raise BuildError("no ninja. Install it with: pip install ninja")
    return path


def _roots(environ: Mapping[str, str], search_path: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for entry in search_path:
        root = Path(entry or ".") / "nvidia" / "cu13"
        if root.is_dir():
            yield "Python package", root
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            yield name, Path(environ[name])
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc is not None:
        yield "PATH", Path(nvcc).resolve().parent.parent
    if Path("/usr/local/cuda").is_dir():
        yield "usual place", Path("/usr/local/cuda")


def _includes(root: Path) -> list[Path]:
    # Distributors and conda keep the headers per target machine.
    return [root / "include", *sorted(root.glob("targets/*/include"))]


def _missing(include: Path, headers: Sequence[str]) -> list[str]:
    return [header for header in headers if not (include / header).exists()]


def _inspect(root: Path, search_path: Sequence[str]) -> Cuda | str:
    """The toolkit at `root` with an assembler of `search_path` or its own, or what is wrong with it."""
    nvcc, ptxas = root / "bin" / "nvcc", root / "bin" / "ptxas"
    for tool in (nvcc, ptxas):
        if not tool.exists():
            return f"has no bin/{tool.name}"
    headers = (*_DRIVER_HEADERS, *_COMPILER_HEADERS)
    lacking = {include: _missing(include, headers) for include in _includes(root)}
    include = next((include for include, missing in lacking.items() if not missing), None)
    if include is None:
        return f"lacks headers {', '.join(lacking[root / 'include'])}"
    # From PyPI every part is a package of its own, and nvcc without the part named nvvm fails only when it runs.
    if root.parent.name == "nvidia" and not (root / "nvvm" / "bin" / "cicc").exists():
        return "lacks nvvm/bin/cicc"
    banner, version = _version_of(nvcc)
    if version is None:
        return "bin/nvcc does not tell its version"
    if version < CUDA_VERSION:
        return f"is CUDA {_words(version)}, older than {_words(CUDA_VERSION)}"
    packaged = (Path(entry or ".") / "nvidia" / "cuda_nvcc" / "bin" / "ptxas" for entry in search_path)
    for path in (*packaged, ptxas):
        assembler_banner, assembler_version = _version_of(path)
        if assembler_version is not None and assembler_version >= (12, 9):
            assembler = Assembler(path, assembler_version, assembler_banner)
            return Cuda(root, nvcc, include, version, banner, assembler)
    return "bin/ptxas does not tell its version"


def _version_of(tool: Path) -> tuple[str, tuple[int, int] | None]:
    """What a program of a toolkit says of itself, and the version in it; None where there is no such program."""
    if not tool.exists():
        return "", None
    banner = subprocess.run([str(tool), "--version"], capture_output=True, text=True, check=False).stdout.strip()
    match = re.search(r"release (\d+)\.(\d+)", banner)
    return banner, None if match is None else (int(match[1]), int(match[2]))


def _words(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
