"""Which kernels were built, and which file serves which GPU: kvit/_kernels/index.json, read once, when first asked."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from kvit import codecs, dtypes
from kvit.errors import DtypeError, KernelMissing

AxisValue: TypeAlias = int | str

KERNELS = Path(__file__).resolve().parents[1] / "_kernels"
"""Folder of what was compiled: <arch>/<family>_<unit>.fatbin, libkvit_host.so, index.json."""

_TARGETS_ARE_LISTED = "[targets] of kernels/manifest.toml lists what can be built."

# What came before has no cp.async and no matrix instructions on bfloat16.
_OLDEST = (8, 0)
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
    archs: tuple[str, ...]  # targets built besides the host: sm_80, sm_90a, compute_80
    folder: Path  # where the files are

    def __hash__(self) -> int:
        return hash((self.symbol, self.folder))  # the mappings have none

    def file(self, arch: str) -> Path:
        """The fatbin with this kernel, of a cubin (sm_XX) or PTX (compute_XX). Raises KernelMissing: there is none."""
        if arch not in self.archs:
            raise KernelMissing(
                f"{self.symbol} for {arch}; built targets are {', '.join(self.archs) or 'the host alone'}.\n"
                f"  Name {arch} in KVIT_ARCHS and reinstall; {_TARGETS_ARE_LISTED}"
            )
        return self.folder / arch / f"{self.family}_{self.unit}.fatbin"

    def target(self, compute_capability: tuple[int, int]) -> str:
        """The member of `archs` that suits this GPU best. Raises KernelMissing: it can run none of them."""
        found = best_target(compute_capability, self.archs)
        if found is None:
            gpu = "sm_{}{}".format(*compute_capability)
            remedy = (
                f"Name {gpu} in KVIT_ARCHS, or compute_80, whose PTX runs on all newer GPUs, and reinstall; "
                f"{_TARGETS_ARE_LISTED}"
            )
            if compute_capability < _OLDEST:
                remedy = 'Kernels need compute capability 8.0 or newer; device="host" needs no GPU.'
            raise KernelMissing(
                f"{self.symbol} on {gpu}; built targets are {', '.join(self.archs) or 'the host alone'}.\n  {remedy}"
            )
        return found

    def overlaps(self, compute_capability: tuple[int, int]) -> bool:
        """Whether a launch on this GPU may begin before the one in front has ended.

        The image that is loaded decides, and not the GPU: code of targets before 9.0 has no grid dependency to wait
        at, PTX among it, which newer GPUs compile. Raises KernelMissing as target does.
        """
        return bool(self.facts.get("overlaps", 0)) and _parse_arch(self.target(compute_capability))[1] >= (9, 0)


class Registry:
    """The kernels of one folder.

    kvit   version of the package that was built
    cuda   version of the toolkit that compiled it; None where only the host backend was built
    archs  every target that was built besides the host
    """

    def __init__(self, folder: Path) -> None:
        """Read folder/index.json. Raises KernelMissing where there is none."""
        path = folder / "index.json"
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise KernelMissing(f"no kernels are built: {path} does not exist.\n  Run: pip install .") from None
        self.folder = folder
        self.kvit: str = index["kvit"]
        self.cuda: str | None = index["cuda"]
        self.archs: tuple[str, ...] = tuple(index["archs"])
        self._kernels = tuple(_kernel_info(row, folder) for row in index["kernels"])
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

    def find(self, family: str, **axes: AxisValue) -> KernelInfo:
        """The one kernel at this point of the family's axes.

        Raises KernelMissing, which says what exists nearby; TypeError where several kernels agree with `axes`.
        """
        found = self.candidates(family, **axes)
        if len(found) == 1:
            return found[0]
        if not found:
            raise KernelMissing(self._what_exists(family, axes))
        free = [axis for axis in found[0].axes if axis not in axes]
        raise TypeError(f"{len(found)} kernels agree with {_words(family, axes)}; give {', '.join(free)} too")

    def _search(self, family: str, axes: tuple[tuple[str, AxisValue], ...]) -> tuple[KernelInfo, ...]:
        members = [kernel for kernel in self._kernels if kernel.family == family]
        for axis, _ in axes:
            if members and axis not in members[0].axes:
                raise TypeError(f"{family} has no axis {axis!r}; its axes are {', '.join(members[0].axes)}")
        wanted = set(axes)
        return tuple(kernel for kernel in members if wanted <= set(kernel.axes.items()))

    def _what_exists(self, family: str, axes: Mapping[str, AxisValue]) -> str:
        members = self.candidates(family)
        if not members:
            families = ", ".join(dict.fromkeys(kernel.family for kernel in self._kernels))
            return (
                f"no kernel family {family}; built families are {families}.\n"
                f"  Add [{family}] to kernels/manifest.toml and reinstall."
            )
        instead = self._nearest_pair(family, axes)
        built = {axis: _values(members, axis) for axis in axes}
        unknown = [axis for axis in axes if axes[axis] not in built[axis]]
        if unknown:
            lists = "; ".join(_built(axis, built[axis]) for axis in unknown)
            instead += _padding(axes["head_dim"], built["head_dim"]) if "head_dim" in unknown else ""
            addable = [axis for axis in unknown if axis != "head_dim" or _is_power_of_two(axes[axis])]
            if addable:
                rows = " and ".join(f"{axes[axis]} to [{family}] axes.{axis}" for axis in addable)
                of_types = ", its C++ types to [types] where it has none there," if "kv" in addable else ""
                instead += f"  Add {rows}{of_types} in kernels/manifest.toml and reinstall.\n"
            return f"{_words(family, axes)}; {lists}.\n{instead}".rstrip("\n")
        # Each value is built somewhere, but not together: say what one change would find.
        near = []
        for axis in axes:
            others = {other: value for other, value in axes.items() if other != axis}
            values = _values(self.candidates(family, **others), axis)
            if values:
                near.append(f"with {_words('', others) or 'nothing else given'} {_built(axis, values)}")
        nearby = "; ".join(near) or "no kernel differs from it in one axis only"
        return (
            f"{_words(family, axes)}; {nearby}.\n{instead}"
            f"  The `skip` rows of [{family}] in kernels/manifest.toml say why it is left out."
        )

    def _nearest_pair(self, family: str, axes: Mapping[str, AxisValue]) -> str:
        """A line on what to store K and V as instead, as codecs.nearest_pair has it; empty where that is no remedy."""
        others = {axis: value for axis, value in axes.items() if axis != "kv"}
        if "kv" not in axes:
            return ""
        try:
            compute = dtypes.dtype_of(axes.get("dtype", "bf16"))
            wanted = codecs.pair_of_key(str(axes["kv"]), compute)
        except DtypeError:
            return ""
        built = [codecs.pair_of_key(str(kv), compute) for kv in _values(self.candidates(family, **others), "kv")]
        head_dim = int(str(axes.get("head_dim", 128)).split("x")[0])
        found = codecs.nearest_pair(wanted, built, head_dim)
        if found is None:
            return ""
        more = codecs.pair_bytes(*found, head_dim) - codecs.pair_bytes(*wanted, head_dim)
        change = f"{abs(more)} bytes {'more' if more >= 0 else 'fewer'} per token and head"
        return f"  The nearest pair that is built is k='{found[0]}', v='{found[1]}' ({change}).\n"


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
        kind, version, letter = _parse_arch(arch)
        own = version == compute_capability
        if version > compute_capability or (letter and not own):
            continue
        if kind == "compute":
            ptx.append((version, letter, arch))
        elif own or (version[0] == compute_capability[0] and compute_capability not in _EMBEDDED):
            cubins.append((version, letter, arch))
    ranked = sorted(cubins) or sorted(ptx)
    return ranked[-1][2] if ranked else None


def _parse_arch(arch: str) -> tuple[str, tuple[int, int], str]:
    match = re.fullmatch(r"(sm|compute)_([0-9]+)([0-9])([af]?)", arch)
    if match is None:
        raise ValueError(f"{arch!r} is no target; targets look like sm_80, sm_90a or compute_80")
    return match[1], (int(match[2]), int(match[3])), match[4]


def _kernel_info(row: dict, folder: Path) -> KernelInfo:
    fields = {name: row[name] for name in ("symbol", "family", "unit", "params", "params_bytes")}
    fields |= {name: row[name] for name in ("threads", "shared_bytes", "min_ctas")}
    axes, facts = MappingProxyType(row["axes"]), MappingProxyType(row["facts"])
    return KernelInfo(**fields, axes=axes, facts=facts, archs=tuple(row["archs"]), folder=folder)


def _is_power_of_two(head_dim: AxisValue) -> bool:
    """Whether a head dim can be added to the manifest: the lanes of a warp share whole rows evenly."""
    return isinstance(head_dim, int) and head_dim > 0 and head_dim & (head_dim - 1) == 0


def _padding(head_dim: AxisValue, built: Iterable[AxisValue]) -> str:
    """A line on rows that are padded, for a head dim that no kernel can have; empty for others."""
    if not isinstance(head_dim, int) or _is_power_of_two(head_dim):
        return ""
    wider = min((other for other in built if isinstance(other, int) and other > head_dim), default=None)
    if wider is None:
        return "  Kernels take head dims that are powers of two.\n"
    return (
        f"  Kernels take head dims that are powers of two: pad the rows of q, K and V with zeros to {wider} channels, "
        f"and give scale={head_dim} ** -0.5.\n"
    )


def _values(kernels: Iterable[KernelInfo], axis: str) -> tuple[AxisValue, ...]:
    return tuple(dict.fromkeys(kernel.axes[axis] for kernel in kernels))


def _words(family: str, axes: Mapping[str, AxisValue]) -> str:
    return " ".join([family] * bool(family) + [f"{axis}={value}" for axis, value in axes.items()])


def _built(axis: str, values: Iterable[AxisValue]) -> str:
    plural = axis if axis.endswith("s") else axis + "s"
    return f"built {plural} are {', '.join(map(str, values))}"


def all() -> tuple[KernelInfo, ...]:
    """Registry.all of the installed kernels."""
    return installed().all()
