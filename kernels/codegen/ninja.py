"""Writes build.ninja: which command makes which PTX, cubin and object, and what each was made from."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from codegen.emit import Unit, write_if_changed
from codegen.images import ptx_isa
from codegen.toolchain import Cuda

HOST_LIBRARY = "libkvit_host.so"
HOST_LIBRARY_OF_WINDOWS = "kvit_host.dll"

_NVCC_FLAGS = "-std=c++20 -O3"
# The fibers leave a frame by longjmp, which a fortified one takes for an attack. Contraction stays off so that the host
# backend gives the same bits on every machine. nvcc's pragmas mean nothing to g++.
_GXX_FLAGS = (
    "-std=c++20 -O2 {position} -fvisibility=hidden -U_FORTIFY_SOURCE -ffp-contract=off -pthread "
    "-Wall -Wextra -Wno-unknown-pragmas"
)
# A library for Windows can be loaded anywhere and lacks no symbol without being told so.
_POSITION, _LINK_FLAGS = "-fPIC", "-Wl,-z,defs"

# A cubin is assembled from the PTX of its own virtual target (sm_90a from compute_90a), which is a file of its own:
# where that PTX is wanted too, C++ is translated once for both. The PTX is marked with the oldest ISA that has all of
# it, so that the assembler of CUDA 12 and old drivers take it: ptxas refuses what an ISA does not have, all but hints
# on the bytes of a load that are used, which go. Output goes to a log; what a person must see (errors, warnings) goes
# to the terminal. Headers of the toolkit are taken out of the depfile: a hermetic build installs them anew each time,
# and `nvcc.txt` stands for them.
_RULES = """\
ninja_required_version = 1.5
kernels = {kernels}
nvcc = {nvcc} -ccbin {gxx}
ptxas = {ptxas}
cxxflags = {nvcc_flags} -I$kernels
gxx = {gxx} {gxx_flags} -I$kernels

rule ptx
  command = if $nvcc $cxxflags -arch=$arch -ptx -MD -MF $out.d -o $out $in > $out.log 2>&1; then $
      grep -i warning $out.log; sed -i '\\#cuda/bin/#d' $out.d && echo >> $out.d && $
      sed -i -e 's/^\\.version .*/.version $isa/' -e '/^[[:space:]]*\\.pragma "used_bytes_mask/d' $out; $
      else cat $out.log; exit 1; fi
  depfile = $out.d
  deps = gcc
  description = nvcc $arch $stem

rule cubin
  command = if $ptxas -m64 -O3 -arch=$arch -v -o $out $in > $out.log 2>&1; then $
      grep -i warning $out.log; true; else cat $out.log; exit 1; fi
  description = ptxas $arch $stem

rule gxx
  command = $gxx -MMD -MF $out.d -x c++ -c -o $out $in
  depfile = $out.d
  deps = gcc
  description = g++ $stem

rule link
  command = {gxx} -shared -s -pthread {link_flags} -o $out $in
  description = link $out

"""


def image(arch: str, stem: str) -> str:
    """Path of a compiled unit relative to build/out: a cubin, or (virtual targets) PTX."""
    return f"{arch}/{stem}.{'ptx' if arch == _virtual(arch) else 'cubin'}"


def write_ninja(
    build: Path,
    kernels: Path,
    units: Sequence[Unit],
    archs: Sequence[str],
    gxx: str,
    cuda: Cuda | None,
    *,
    for_windows: bool = False,
) -> list[str]:
    """Write build/build.ninja and return the images that it makes, relative to build/out.

    units  each is compiled for those of `archs` that it lists, and for the host; those with most kernels are begun
           first, so that no long one is left for the end
    cuda   None if archs is empty
    for_windows  whether the programs that gxx makes are for Windows; the host library is HOST_LIBRARY_OF_WINDOWS then

    Every path in the file is relative to `build`, and the toolkit is reached through a link in it: neither a moved tree
    nor a compiler that pip unpacked elsewhere changes a command, so neither rebuilds anything.
    """
    build.mkdir(parents=True, exist_ok=True)
    banner = subprocess.run([gxx, "--version"], capture_output=True, text=True, check=False).stdout
    if cuda is not None:
        write_if_changed(build / "nvcc.txt", cuda.banner + banner)  # nvcc preprocesses with g++
        write_if_changed(build / "ptxas.txt", cuda.assembler.banner)
        for name, target in (("cuda", cuda.root), ("ptxas", cuda.assembler.path)):
            link = build / name
            link.unlink(missing_ok=True)
            link.symlink_to(target.absolute())
    write_if_changed(build / "gxx.txt", banner)

    lines = [
        _RULES.format(
            kernels=os.path.relpath(kernels, build),
            nvcc="cuda/bin/nvcc",
            ptxas="./ptxas",
            gxx=shlex.quote(gxx).replace("$", "$$"),  # once for the shell, once for ninja
            nvcc_flags=_NVCC_FLAGS,
            gxx_flags=_GXX_FLAGS.format(position="" if for_windows else _POSITION),
            link_flags="" if for_windows else _LINK_FLAGS,
        )
    ]
    made = []
    objects = []
    for source in sorted(kernels.glob("platform/host_*.cpp")):
        objects.append(f"host/{source.stem}.o")
        lines.append(_edge(objects[-1], "gxx", os.path.relpath(source, build), "gxx.txt", stem=source.stem))
    for unit in sorted(units, key=lambda unit: len(unit.specs), reverse=True):
        source = f"source/{unit.stem}.cu"
        wanted = [arch for arch in archs if arch in unit.archs]
        for virtual in dict.fromkeys(map(_virtual, wanted)):
            ptx, isa = f"out/{image(virtual, unit.stem)}", "{}.{}".format(*ptx_isa(virtual))
            lines.append(_edge(ptx, "ptx", source, "nvcc.txt", stem=unit.stem, arch=virtual, isa=isa))
            for arch in wanted:
                if _virtual(arch) == virtual and arch != virtual:
                    cubin = f"out/{image(arch, unit.stem)}"
                    lines.append(_edge(cubin, "cubin", ptx, "ptxas.txt", stem=unit.stem, arch=arch))
        made += [image(arch, unit.stem) for arch in wanted]
        objects.append(f"host/{unit.stem}.o")
        lines.append(_edge(objects[-1], "gxx", source, "gxx.txt", stem=unit.stem))
    library = HOST_LIBRARY_OF_WINDOWS if for_windows else HOST_LIBRARY
    lines.append(f"build out/{library}: link {' '.join(objects)}\n")
    write_if_changed(build / "build.ninja", "\n".join(lines))
    return made


def run_ninja(build: Path, ninja: str, jobs: int, *, dry_run: bool = False) -> list[str]:
    """Bring everything in `build` up to date, with progress on the terminal. Raises CalledProcessError.

    dry_run  compile nothing, and return the descriptions of the steps that would run
    """
    command = [ninja, "-C", str(build), "-j", str(jobs)]
    if not dry_run:
        subprocess.run(command, check=True)
        return []
    output = subprocess.run([*command, "-n"], check=True, capture_output=True, text=True).stdout
    return [line.partition("] ")[2] for line in output.splitlines() if line.startswith("[")]


def _virtual(arch: str) -> str:
    """The target whose PTX holds the code of `arch`."""
    return f"compute_{arch.partition('_')[2]}"


def _edge(output: str, rule: str, source: str, compiler: str, **variables: str) -> str:
    settings = "".join(f"  {name} = {value}\n" for name, value in variables.items())
    return f"build {output}: {rule} {source} | {compiler}\n{settings}"
