"""Compiles probes of one's own: which compiler there is, and where the headers of the kernels are."""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from kvit.errors import HostBackendError, LayoutError

_PACKAGE = Path(__file__).resolve().parents[1]
_PROGRAM = Path(__file__).with_name("own_probe.cpp")
_HOST_FLAGS = ("-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-pthread")
_CUDA_FLAGS = ("-std=c++20", "-O1", "-x", "cu")
_SECONDS = 600
_SHOWN_LINES = 12


def build(folder: Path, text: str, capability: tuple[int, int] | None, compiler: str | None) -> Path:
    """A program of own_probe.cpp in `folder`.

    text        its own_types.h
    capability  compute capability of the GPU that it is for; None: the host

    Raises HostBackendError (no compiler, no headers), LayoutError (it does not compile).
    """
    headers = find_headers()
    command = find_compiler(capability is not None, compiler)
    (folder / "own_types.h").write_text(text, encoding="utf-8")
    program = folder / "probe"
    if capability is None:
        backend = _backend(command, headers)
        arguments = [*_HOST_FLAGS, str(_PROGRAM), *map(str, backend)]
    else:
        arguments = [*_CUDA_FLAGS, f"-arch=sm_{capability[0]}{capability[1]}", str(_PROGRAM)]
    done = _compile(command, [f"-I{headers}", f"-I{folder}", *arguments, "-o", str(program)])
    if done.returncode != 0:
        raise LayoutError(f"the map and the layout do not compile:\n{_first_errors(done.stderr)}")
    return program


def find_headers() -> Path:
    """The folder of the kernels' headers: those that were installed with the package, or a source checkout's.

    Raises HostBackendError.
    """
    places = _PACKAGE / "include" / "kernels", _PACKAGE.parent / "kernels"
    for place in places:
        if (place / "platform" / "platform.cuh").is_file():
            return place
    raise HostBackendError(
        f"the headers of the kernels are neither in {places[0]} nor in {places[1]}; reinstall kvit, whose package has "
        "them, or work in a source checkout"
    )


def find_compiler(is_for_gpu: bool, compiler: str | None = None) -> list[str]:
    """The command of a compiler. Raises HostBackendError, which says what to install."""
    if not is_for_gpu:
        names = [compiler] if compiler else [os.environ.get("CXX", ""), "g++", "c++"]
        advice = "Install g++ 11 or newer, or name a compiler: $CXX, or compiler="
    else:
        home = os.environ.get("CUDA_HOME", "")
        names = [compiler] if compiler else ["nvcc", os.path.join(home, "bin", "nvcc") if home else ""]
        advice = "Install CUDA's nvcc and put it in PATH, point CUDA_HOME at a toolkit, or name it: compiler="
    for name in filter(None, names):
        command = shlex.split(name)
        found = shutil.which(command[0]) if command else None
        if found is not None:
            return [found, *command[1:]]
    looked = ", ".join(filter(None, names))
    where = "a GPU" if is_for_gpu else "the host"
    raise HostBackendError(f"no compiler for a probe on {where}: there is no {looked}. {advice}")


@functools.cache
def _scratch() -> Path:
    """A folder of this process, which goes when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="kvit_probe_host_")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _backend(command: list[str], headers: Path) -> list[Path]:
    """Object files of the host backend, compiled once in a process for a compiler."""
    objects = []
    for source in sorted((headers / "platform").glob("host_*.cpp")):
        target = _scratch() / f"{abs(hash(tuple(command)))}_{source.stem}.o"
        if not target.exists():
            made = target.with_suffix(".part")
            done = _compile(command, [f"-I{headers}", *_HOST_FLAGS, "-c", str(source), "-o", str(made)])
            if done.returncode != 0:
                raise HostBackendError(
                    f"{' '.join(command)} does not compile the host backend; give g++ 11 or newer:\n"
                    f"{_first_errors(done.stderr)}"
                )
            made.replace(target)
        objects.append(target)
    return objects


def _compile(command: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostBackendError(f"{command[0]} cannot be run: {error}; give another one in compiler=") from None


def _first_errors(words: str) -> str:
    lines = [line for line in words.splitlines() if "error" in line] or words.splitlines()
    return "\n".join(f"  {line}" for line in lines[:_SHOWN_LINES])
