"""kvit built with sanitizers, into a folder of its own: all of it, or the library of host kernels alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from codegen.emit import units_of, write_units
from codegen.manifest import load_manifest
from codegen.ninja import HOST_LIBRARY, run_ninja, write_ninja
from codegen.toolchain import find_gxx, find_ninja
from support import KERNELS, ROOT

ADDRESS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-omit-frame-pointer", "-g1", "-O1")
THREAD = ("-fsanitize=thread", "-g1", "-O1")
# What no operation of kvit's runs: they serve the tests of iterators.
_PROBES = ("probe", "probe_boxes")


def runtime(name: str) -> str:
    """The path of a sanitizer's library: libasan.so, libubsan.so or libtsan.so."""
    done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def compilers(folder: Path, flags: tuple[str, ...]) -> Path:
    """A folder with gcc and g++ that add `flags` to their arguments, unless those ask for another sanitizer.

    They keep the symbols that the build strips, so that reports name lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("gcc", "g++"):
        real = find_gxx({**os.environ, "CXX": name})
        script = folder / name
        script.write_text(
            "#!/bin/sh\nunset LD_PRELOAD\n"
            'for word do shift; [ "$word" = -s ] || set -- "$@" "$word"; done\n'
            f'case "$*" in *-fsanitize=thread*) exec "{real}" "$@";; esac\n'
            f'exec "{real}" "$@" {" ".join(flags)}\n'
        )
        script.chmod(0o755)
    return folder


def build_library(folder: Path, flags: tuple[str, ...], jobs: int) -> Path:
    """The library of host kernels, but for the probes. What the folder holds from an earlier run is built upon."""
    gxx = compilers(folder / "compilers", flags) / "g++"
    specs = [spec for spec in load_manifest(KERNELS / "manifest.toml").specs() if spec.family not in _PROBES]
    units = units_of(specs)
    write_units(units, folder / "source")
    write_ninja(folder, KERNELS, units, (), str(gxx), None)
    run_ninja(folder, find_ninja(), jobs)
    return folder / "out" / HOST_LIBRARY


def build_all(folder: Path, flags: tuple[str, ...], jobs: int) -> Path:
    """A source tree with modules and kernels built in place, for PYTHONPATH. Needs `preloaded()` in LD_PRELOAD."""
    tree = folder / "tree"
    for name in ("kernels", "pyx", "kvit"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "_kernels", *_declared(name))
        shutil.copytree(ROOT / name, tree / name, ignore=ignored, dirs_exist_ok=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tree / name)
    tools = compilers(folder / "compilers", flags)
    environment = {
        **os.environ,
        "CC": str(tools / "gcc"),
        "CXX": str(tools / "g++"),
        "KVIT_ARCHS": "none",
        "KVIT_JOBS": str(jobs),
        "LD_PRELOAD": preloaded(),  # the build asks the library which kernels it has
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return tree


def _declared(name: str) -> tuple[str, ...]:
    # An in-place build lays copies of declarations beside the modules; those of pyx/ are the sources.
    return ("*.pyi",) if name == "kvit" else ()


def preloaded() -> str:
    """What a process must load first to use modules that are built with ADDRESS."""
    return f"{runtime('libasan.so')} {runtime('libubsan.so')}"


def reports(folder: Path) -> dict[str, str]:
    """What sanitizers wrote into a folder of logs, but for notes that are no reports."""
    found = {path.name: path.read_text(errors="replace") for path in sorted(folder.iterdir())}
    marks = ("ERROR:", "runtime error", "WARNING: ThreadSanitizer")
    return {name: text for name, text in found.items() if any(mark in text for mark in marks)}
