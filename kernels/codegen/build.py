"""Builds every kernel that the manifest lists, and lays the results out as kvit/_kernels has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from codegen.emit import units_of, write_if_changed, write_units
from codegen.errors import BuildError
from codegen.images import Version, oldest_cuda, pack, packed
from codegen.index import index_text, read_host_kernels
from codegen.manifest import Manifest, load_manifest
from codegen.ninja import HOST_LIBRARY, HOST_LIBRARY_OF_WINDOWS, run_ninja, write_ninja
from codegen.toml import read_toml
from codegen.toolchain import Cuda, compiles_for_windows, find_cuda, find_gxx, find_ninja


def project_version(root: Path) -> str:
    """The version of the package whose pyproject.toml is in `root`."""
    version = read_toml(root / "pyproject.toml")["project"]["version"]
    assert isinstance(version, str)
    return version


def choose_archs(manifest: Manifest, wanted: str | None) -> tuple[str, ...]:
    """The targets to build.

    wanted  targets separated by ; or , or blanks ("sm_80;sm_90"), "all" for all that the manifest lists, "none" for
            the host backend alone, or None for the manifest's default

    A target and its relative with a letter (sm_90, sm_90a) share the kernels of an architecture out between them, so
    either name stands for both. Raises BuildError where a target is not in the manifest.
    """
    if wanted is None or not wanted.strip():
        return manifest.default_archs
    if wanted.strip() == "all":
        return manifest.archs
    if wanted.strip() == "none":
        return ()
    names = set(wanted.replace(";", " ").replace(",", " ").split())
    for name in sorted(names):
        if name not in manifest.archs:
            raise BuildError(
                f"KVIT_ARCHS names {name}; the manifest builds {', '.join(manifest.archs)}, all of them for all, and "
                f"only the host for none.\nAdd {name} to [targets] all (and to archs of families that have their own) "
                "in kernels/manifest.toml, or leave it out of KVIT_ARCHS."
            )
    numbers = {name.rstrip("af") for name in names}
    return tuple(arch for arch in manifest.archs if arch.rstrip("af") in numbers)


def wants_asked(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether KVIT_KERNELS asks for all kernels, those of the manifest's `asked` rows too. Raises BuildError."""
    text = environ.get("KVIT_KERNELS", "") or "default"
    if text not in ("default", "all"):
        raise BuildError(f"KVIT_KERNELS is {text!r}; it must be default, or all for every kernel of the manifest")
    return text == "all"


def choose_jobs(environ: Mapping[str, str] = os.environ) -> int:
    """How many compilers run side by side: KVIT_JOBS, else the cores this process may use."""
    text = environ.get("KVIT_JOBS", "")
    if not text:
        return len(os.sched_getaffinity(0))
    if not text.isdecimal() or int(text) < 1:
        raise BuildError(f"KVIT_JOBS is {text!r}; it must be a number of at least 1")
    return int(text)


class Plan(NamedTuple):
    """What will be compiled, and by what."""

    manifest: Manifest
    archs: tuple[str, ...]
    cuda: Cuda | None  # None where archs is empty
    gxx: str
    ninja: str
    jobs: int
    with_asked: bool  # whether GPUs get the kernels of `asked` rows


def make_plan(
    kernels: Path, archs: str | None = None, jobs: int | None = None, *, for_windows_too: bool = False
) -> Plan:
    """All that a build needs and can be found wrong before it begins. Arguments are those of build_kernels.

    for_windows_too  whether a C++ compiler for Windows will do

    Raises BuildError.
    """
    manifest = load_manifest(kernels / "manifest.toml")
    chosen = choose_archs(manifest, os.environ.get("KVIT_ARCHS") if archs is None else archs)
    cuda = find_cuda() if chosen else None
    gxx = find_gxx()
    if not for_windows_too and compiles_for_windows(gxx):
        raise BuildError(
            f"{gxx} compiles for Windows, where kvit's modules are not built: they use POSIX threads and dlopen.\n"
            "Set CXX to a compiler for Linux. The host library alone can be made for Windows: see docs/platforms.md."
        )
    return Plan(manifest, chosen, cuda, gxx, find_ninja(), choose_jobs() if jobs is None else jobs, wants_asked())


def build_kernels(
    kernels: Path, build: Path, out: Path, *, version: str, archs: str | None = None, jobs: int | None = None
) -> Path:
    """Compile what changed since the last call and make `out` hold exactly the results.

    kernels  folder of manifest.toml and the headers
    build    folder for everything in between, kept for the next call
    out      becomes kvit/_kernels: <arch>/<family>_<unit>.cubin.xz or .ptx.xz, libkvit_host.so, index.json
    version  of the package, written into the index
    archs    as choose_archs takes it; KVIT_ARCHS if absent
    jobs     compilers side by side; choose_jobs() if absent

    Returns the path of index.json. Raises BuildError.
    """
    manifest, chosen, cuda, gxx, ninja, jobs, with_asked = make_plan(kernels, archs, jobs)
    specs = manifest.specs(with_asked)
    units = units_of(specs)
    write_units(units, build / "source")
    made = write_ninja(build, kernels, units, chosen, gxx, cuda)
    nvcc, ptxas = (None, None) if cuda is None else (_words(cuda.version), _words(cuda.assembler.version))
    with_cuda = f"CUDA {nvcc} of {cuda.root}, ptxas {ptxas}" if cuda else "no CUDA compiler"
    print(f"kvit: {len(specs)} kernels for host {' '.join(chosen)}; {with_cuda}, {gxx}, {jobs} jobs", flush=True)
    _compile(build, ninja, jobs)
    pack((build / "out" / name for name in made), jobs)
    drivers = oldest_drivers(build / "out", made)
    host = read_host_kernels(build / "out" / HOST_LIBRARY)
    index = index_text(specs, host, chosen, drivers, kvit=version, cuda=nvcc, ptxas=ptxas)
    write_if_changed(build / "out" / "index.json", index)
    images = [packed(Path(name)).as_posix() for name in made]
    publish(build / "out", out, [*images, HOST_LIBRARY, "index.json"])
    return out / "index.json"


def build_host_library(kernels: Path, build: Path, *, jobs: int | None = None) -> Path:
    """Compile the host library alone, for the system that the C++ compiler compiles for, which may be another one.

    kernels, build, jobs  as build_kernels takes them; `build` is for one compiler

    Returns the path of the library: HOST_LIBRARY, or HOST_LIBRARY_OF_WINDOWS. Raises BuildError.
    """
    manifest, _, _, gxx, ninja, jobs, _ = make_plan(kernels, "none", jobs, for_windows_too=True)
    units = units_of(manifest.specs())
    write_units(units, build / "source")
    for_windows = compiles_for_windows(gxx)
    write_ninja(build, kernels, units, (), gxx, None, for_windows=for_windows)
    _compile(build, ninja, jobs)
    return build / "out" / (HOST_LIBRARY_OF_WINDOWS if for_windows else HOST_LIBRARY)


def _compile(build: Path, ninja: str, jobs: int) -> None:
    try:
        run_ninja(build, ninja, jobs)
    except subprocess.CalledProcessError:
        raise BuildError(f"a kernel does not compile; the compiler's message is above, its log under {build}") from None


def _words(version: Version) -> str:
    return ".".join(map(str, version))


def oldest_drivers(folder: Path, images: Sequence[str]) -> dict[str, Version]:
    """By target, the first CUDA whose drivers take all images of it. Raises BuildError where an image is of a kind that
    is not known."""
    drivers: dict[str, Version] = {}
    for name in images:
        arch = name.partition("/")[0]
        needed = oldest_cuda((folder / name).read_bytes(), arch)
        drivers[arch] = max(drivers.get(arch, needed), needed)
    return drivers


def publish(source: Path, target: Path, files: Sequence[str]) -> None:
    """Make `target` hold exactly `files` of `source`. A library in use is replaced, not written into."""
    wanted = set(files)
    for path in sorted(target.rglob("*"), reverse=True):  # files before the folders that hold them
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(target).as_posix() not in wanted:
            path.unlink()
    for name in files:
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        scratch = destination.with_name(destination.name + ".part")
        shutil.copy2(source / name, scratch)
        scratch.replace(destination)
