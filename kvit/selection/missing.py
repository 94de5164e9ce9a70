"""What a message says where no kernel is built for what was asked: what is built nearby, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

from kvit import codecs, dtypes
from kvit.errors import DtypeError
from kvit.selection.axes import AxisValue, channels, words


class Kernel(Protocol):
    """What is asked of kvit.selection.registry.KernelInfo here."""

    @property
    def family(self) -> str: ...
    @property
    def axes(self) -> Mapping[str, AxisValue]: ...
    @property
    def channels(self) -> tuple[int, int]: ...
    def takes(self, k_dim: int, v_dim: int) -> bool: ...


Candidates: TypeAlias = Callable[..., "tuple[Kernel, ...]"]
"""Registry.candidates."""


def what_exists(candidates: Candidates, families: Iterable[str], family: str, axes: Mapping[str, AxisValue]) -> str:
    """The message of KernelMissing for this point of a family's axes."""
    members = candidates(family)
    if not members:
        return (
            f"no kernel family {family}; built families are {', '.join(families)}.\n"
            f"  Add [{family}] to kernels/manifest.toml and reinstall."
        )
    instead = _nearest_pair(candidates, family, axes)
    built = {axis: _values(members, axis) for axis in axes}
    unknown = [axis for axis in axes if axes[axis] not in built[axis]]
    if unknown:
        lists = "; ".join(_built(axis, built[axis]) for axis in unknown)
        instead += _limits(candidates, family, axes) if "head_dim" in unknown else ""
        addable = [axis for axis in unknown if axis != "head_dim"]
        if addable:
            rows = " and ".join(f"{axes[axis]} to [{family}] axes.{axis}" for axis in addable)
            of_types = ", its C++ types to [types] where it has none there," if "kv" in addable else ""
            instead += f"  Add {rows}{of_types} in kernels/manifest.toml and reinstall.\n"
        return f"{words(family, axes)}; {lists}.\n{instead}".rstrip("\n")
    # Each value is built somewhere, but not together: say what one change would find.
    near = []
    for axis in axes:
        others = {other: value for other, value in axes.items() if other != axis}
        values = _values(candidates(family, **others), axis)
        if values:
            near.append(f"with {words('', others) or 'nothing else given'} {_built(axis, values)}")
    nearby = "; ".join(near) or "no kernel differs from it in one axis only"
    return (
        f"{words(family, axes)}; {nearby}.\n{instead}"
        f"  The `skip` rows of [{family}] in kernels/manifest.toml say why it is left out."
    )


def _limits(candidates: Candidates, family: str, axes: Mapping[str, AxisValue]) -> str:
    """A line on the rows that kernels at the other axes serve; empty where none takes other rows than its own."""
    others = {axis: value for axis, value in axes.items() if axis not in ("head_dim", "variant")}
    rooms = {kernel.channels for kernel in candidates(family, **others) if kernel.takes(8, 8)}
    if not rooms:
        return ""
    k_dim, v_dim = (max(sizes) for sizes in zip(*rooms, strict=True))
    wanted = channels(axes["head_dim"])
    padded = tuple(-(-dim // 8) * 8 for dim in wanted)
    line = f"  Kernels serve rows of any multiple of 8 channels up to {k_dim}"
    line += f" of K and {v_dim} of V.\n" if k_dim != v_dim else ".\n"
    if padded != wanted and padded[0] <= k_dim and padded[1] <= v_dim:
        line += (
            f"  Pad the rows of q and K with zeros to {padded[0]} channels, those of V to {padded[1]}, and give "
            f"scale={wanted[0]} ** -0.5.\n"
        )
    return line


def _nearest_pair(candidates: Candidates, family: str, axes: Mapping[str, AxisValue]) -> str:
    """A line on what to store K and V as instead, as codecs.nearest_pair has it; empty where that is no remedy."""
    others = {axis: value for axis, value in axes.items() if axis != "kv"}
    if "kv" not in axes:
        return ""
    try:
        compute = dtypes.dtype_of(axes.get("dtype", "bf16"))
        wanted = codecs.pair_of_key(str(axes["kv"]), compute)
    except DtypeError:
        return ""
    built = [codecs.pair_of_key(str(kv), compute) for kv in _values(candidates(family, **others), "kv")]
    head_dim = channels(axes.get("head_dim", 128))[0]
    found = codecs.nearest_pair(wanted, built, head_dim)
    if found is None:
        return ""
    more = codecs.pair_bytes(*found, head_dim) - codecs.pair_bytes(*wanted, head_dim)
    change = f"{abs(more)} bytes {'more' if more >= 0 else 'fewer'} per token and head"
    return f"  The nearest pair that is built is k='{found[0]}', v='{found[1]}' ({change}).\n"


def _values(kernels: Iterable[Kernel], axis: str) -> tuple[AxisValue, ...]:
    return tuple(dict.fromkeys(kernel.axes[axis] for kernel in kernels))


def _built(axis: str, values: Iterable[AxisValue]) -> str:
    plural = axis if axis.endswith("s") else axis + "s"
    return f"built {plural} are {', '.join(map(str, values))}"
