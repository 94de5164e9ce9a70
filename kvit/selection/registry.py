"""Which kernels were built, and which file serves which GPU: kvit/_kernels/index.json, read once, when first asked."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from kvit.errors import KernelMissing
from kvit.selection import capabilities, json_file, missing
from kvit.selection.axes import AxisValue, channels, words

KERNELS = Path(__file__).resolve().parents[1] / "_kernels"
"""Folder of what was compiled: <arch>/<family>_<unit>.cubin.xz or .ptx.xz, libkvit_host.so, index.json."""

_TARGETS_ARE_LISTED = "[targets] of kernels/manifest.toml lists what can be built."

# What came before has no matrix instructions that read 16 rows at once.
_OLDEST = (7, 5)
# Embedded GPUs do not run the cubins of their desktop relatives; they do run PTX.
_EMBEDDED = {(8, 7)}


class KernelInfo(NamedTuple):
    """One kernel that was built."""

    symbol: str
    family: str
    unit: str  # translation unit, shared with its neighbours
    axes: Mapping[str, AxisValue]  # the point of the family's axes in kernels/manifest.toml
    params: str  # launch struct of abi/params.h
    params_bytes: int
    threads: int  # of a CTA
    shared_bytes: int  # dynamic shared memory of a CTA
    min_ctas: int  # CTAs that fit one multiprocessor, as the kernel's launch bound has it
    facts: Mapping[str, int]  # what the kernel tells about itself: stages, tokens of a tile, ...
    archs: tuple[str, ...]  # targets built besides the host: sm_80, sm_90, compute_90
    folder: Path  # where the files are
    drivers: Mapping[str, tuple[int, int]] = MappingProxyType({})  # by target: the first CUDA whose drivers take it

    def __hash__(self) -> int:
        return hash((self.symbol, self.folder))  # the mappings have none

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of a row of K and of V that the kernel has room for; of families with an axis `head_dim`."""
        return channels(self.axes["head_dim"])

    def takes(self, k_dim: int, v_dim: int) -> bool:
        """Whether rows of K and V may have so many channels, though the kernel has room for others."""
        if not self.facts.get("takes_fewer", 0) or self.facts.get("shares_kv", 0) or k_dim % 8 or v_dim % 8:
            return False
        most_k, most_v = self.channels
        return k_dim <= most_k and v_dim <= most_v

    def file(self, arch: str) -> Path:
        """The file with this kernel in a cubin (sm_XX) or PTX (compute_XX), packed by xz. Raises KernelMissing."""
        if arch not in self.archs:
            raise KernelMissing(
                f"{self.symbol} for {arch}; built targets are {', '.join(self.archs) or 'the host alone'}.\n"
                f"  Name {arch} in KVIT_ARCHS and reinstall; {_TARGETS_ARE_LISTED}"
            )
        kind = "ptx" if parse_arch(arch).kind == "compute" else "cubin"
        return self.folder / arch / f"{self.family}_{self.unit}.{kind}.xz"

    def target(self, compute_capability: tuple[int, int]) -> str:
        """The member of `archs` that suits this GPU best. Raises KernelMissing: it can run none of them."""
        found = best_target(compute_capability, self.archs)
        if found is None:
            gpu = capabilities.name_of(compute_capability)
            ptx = "compute_90" if compute_capability >= (9, 0) else "compute_80"
            remedy = (
                f"Name {gpu} in KVIT_ARCHS, or {ptx}, whose PTX runs on all newer GPUs, and reinstall; "
                f"{_TARGETS_ARE_LISTED}"
            )
            if self.unit.endswith("_asked") and not self.archs:
                remedy = "It is one of those that few models want: set KVIT_KERNELS=all, and reinstall."
            if compute_capability < (8, 0):
                remedy = (
                    "GPUs before sm_80 have kernels of their own, those with copies=registers, where KVIT_ARCHS names "
                    "sm_75; docs/platforms.md says what there is for them."
                )
            if compute_capability < _OLDEST:
                remedy = 'Kernels need compute capability 7.5 or newer; device="host" needs no GPU.'
            raise KernelMissing(
                f"{self.symbol} on {gpu}; built targets are {', '.join(self.archs) or 'the host alone'}.\n  {remedy}"
            )
        return found

    def overlaps(self, compute_capability: tuple[int, int]) -> bool:
        """Whether a launch on this GPU may begin before the one in front has ended.

        The image that is loaded decides, and not the GPU: code of targets before 9.0 has no grid dependency to wait
        at, PTX among it, which newer GPUs compile. Raises KernelMissing as target does.
        """
        return bool(self.facts.get("overlaps", 0)) and parse_arch(self.target(compute_capability)).version >= (9, 0)


class Registry:
    """The kernels of one folder.

    kvit     version of the package that was built
    cuda     version of the toolkit that compiled it; None where only the host backend was built
    ptxas    version of the assembler that made the cubins; None where there are none
    archs    every target that was built besides the host
    drivers  by target, the first CUDA (major, minor) whose drivers take it
    """

    def __init__(self, folder: Path) -> None:
        """Read folder/index.json. Raises KernelMissing where there is none."""
        path = folder / "index.json"
        try:
            index = json_file.load(path)
        except FileNotFoundError:
            raise KernelMissing(f"no kernels are built: {path} does not exist.\n  Run: pip install .") from None
        self.folder = folder
        self.kvit: str = index["kvit"]
        self.cuda: str | None = index["cuda"]
        self.ptxas: str | None = index["ptxas"]
        self.archs: tuple[str, ...] = tuple(index["archs"])
        self.drivers = MappingProxyType({arch: tuple(version) for arch, version in index["drivers"].items()})
        self._kernels = tuple(_kernel_info(row, folder, self.drivers) for row in index["kernels"])
        # The attention path asks for the same few keys over and over.
        self._candidates = functools.lru_cache(maxsize=1024)(self._search)

    def all(self) -> tuple[KernelInfo, ...]:
        """Every kernel, in the order of kernels/manifest.toml."""
        return self._kernels

    def candidates(self, family: str, **axes: AxisValue) -> tuple[KernelInfo, ...]:
        """The kernels of a family that agree with every axis given, in the manifest's order; empty where none does.

        Raises TypeError for an axis that the family does not have.
        """
        return self._candidates(family, tuple(axes.items()))

    def serving(self, family: str, head_dim: AxisValue, **axes: AxisValue) -> tuple[KernelInfo, ...]:
        """The kernels of a family that serve rows of `head_dim` channels and agree with every other axis given.

        Those of that head_dim; where there are none, of those that take rows of fewer channels than they have room for,
        the ones with the least room. Empty where none does.
        """
        exact = self.candidates(family, head_dim=head_dim, **axes)
        if exact:
            return exact
        wider = [kernel for kernel in self.candidates(family, **axes) if kernel.takes(*channels(head_dim))]
        least = min((sum(kernel.channels) for kernel in wider), default=0)
        return tuple(kernel for kernel in wider if sum(kernel.channels) == least)

    def serves(self, family: str, head_dim: AxisValue, **axes: AxisValue) -> KernelInfo:
        """The one of them. Raises KernelMissing, which says what exists nearby, and TypeError as `find` does."""
        found = self.serving(family, head_dim, **axes)
        return found[0] if len(found) == 1 else self.find(family, **axes, head_dim=head_dim)

    def find(self, family: str, **axes: AxisValue) -> KernelInfo:
        """The one kernel at this point of the family's axes.

        Raises KernelMissing, which says what exists nearby; TypeError where several kernels agree with `axes`.
        """
        found = self.candidates(family, **axes)
        if len(found) == 1:
            return found[0]
        if not found:
            families = dict.fromkeys(kernel.family for kernel in self._kernels)
            raise KernelMissing(missing.what_exists(self.candidates, families, family, axes))
        free = [axis for axis in found[0].axes if axis not in axes]
        raise TypeError(f"{len(found)} kernels agree with {words(family, axes)}; give {', '.join(free)} too")

    def _search(self, family: str, axes: tuple[tuple[str, AxisValue], ...]) -> tuple[KernelInfo, ...]:
        members = [kernel for kernel in self._kernels if kernel.family == family]
        for axis, _ in axes:
            if members and axis not in members[0].axes:
                raise TypeError(f"{family} has no axis {axis!r}; its axes are {', '.join(members[0].axes)}")
        wanted = set(axes)
        return tuple(kernel for kernel in members if wanted <= set(kernel.axes.items()))


def serving(family: str, head_dim: AxisValue, **axes: AxisValue) -> tuple[KernelInfo, ...]:
    """Registry.serving among the installed kernels."""
    return installed().serving(family, head_dim, **axes)


def serves(family: str, head_dim: AxisValue, **axes: AxisValue) -> KernelInfo:
    """Registry.serves among the installed kernels."""
    return installed().serves(family, head_dim, **axes)


def find(family: str, **axes: AxisValue) -> KernelInfo:
    """Registry.find among the installed kernels."""
    return installed().find(family, **axes)


def candidates(family: str, **axes: AxisValue) -> tuple[KernelInfo, ...]:
    """Registry.candidates among the installed kernels."""
    return installed().candidates(family, **axes)


@functools.cache
def installed() -> Registry:
    """The kernels that were built with this package. Raises KernelMissing where there are none."""
    return Registry(KERNELS)


def best_target(compute_capability: tuple[int, int], archs: Iterable[str]) -> str | None:
    """The member of `archs` that suits a GPU best, or None where it can run none of them.

    A cubin runs on GPUs of its major version that are not older than it, one with a letter (sm_90a) on its own version
    only; PTX runs on every GPU that is not older. Preferred in that order: the GPU's own version, with a letter first;
    the newest cubin that runs; the newest PTX.
    Defined by the CUDA C++ Programming Guide, sections on binary and PTX compatibility.
    """
    cubins, ptx = [], []
    for arch in archs:
        kind, version, letter = parse_arch(arch)
        own = version == compute_capability
        if version > compute_capability or (letter and not own):
            continue
        if kind == "compute":
            ptx.append((version, letter, arch))
        elif own or (version[0] == compute_capability[0] and compute_capability not in _EMBEDDED):
            cubins.append((version, letter, arch))
    ranked = sorted(cubins) or sorted(ptx)
    return ranked[-1][2] if ranked else None


class Target(NamedTuple):
    """What the name of a target says: sm_90a is a cubin for (9, 0), with a letter."""

    kind: str  # "sm" or "compute"
    version: tuple[int, int]
    letter: str


# Compiled when kvit is imported, and by no call: where memory is short, Python's compiler of patterns may never end.
_TARGET = re.compile(r"(sm|compute)_([0-9]+)([0-9])([af]?)")


def parse_arch(arch: str) -> Target:
    """The parts of a target's name. Raises ValueError."""
    match = _TARGET.fullmatch(arch)
    if match is None:
        raise ValueError(f"{arch!r} is no target; targets look like sm_80, sm_90a or compute_90")
    return Target(match[1], (int(match[2]), int(match[3])), match[4])


def _kernel_info(row: dict, folder: Path, drivers: Mapping[str, tuple[int, int]]) -> KernelInfo:
    fields = {name: row[name] for name in ("symbol", "family", "unit", "params", "params_bytes")}
    fields |= {name: row[name] for name in ("threads", "shared_bytes", "min_ctas")}
    axes, facts = MappingProxyType(row["axes"]), MappingProxyType(row["facts"])
    archs = tuple(row["archs"])
    return KernelInfo(**fields, axes=axes, facts=facts, archs=archs, folder=folder, drivers=drivers)


def all() -> tuple[KernelInfo, ...]:
    """Registry.all of the installed kernels."""
    return installed().all()
