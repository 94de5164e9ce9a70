"""The devices of this machine, and which kernel runs where. A machine without a driver or a GPU has the host alone."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from pathlib import Path

from kvit._native import driver
from kvit._native.context import Device
from kvit.errors import KvitError
from kvit.selection import registry


def gpus() -> tuple[list[Device], str | None]:
    """Every GPU; if there is none, why not, in one line."""
    try:
        return [Device.of(f"cuda:{i}") for i in range(driver.num_gpus())], None
    except KvitError as error:
        return [], " ".join(str(error).split())


def all_devices() -> list[Device]:
    """The host, then every GPU."""
    return [Device.of("host"), *gpus()[0]]


def target_on(entry: registry.KernelInfo, device: Device) -> str | None:
    """What runs where this kernel is launched on the device: "host", a member of entry.archs, None if nothing can."""
    if device.compute_capability is None or device.shared_bytes is None:
        return "host"
    if entry.shared_bytes > device.shared_bytes:
        return None
    return registry.best_target(device.compute_capability, entry.archs)


def targets_on(device: Device) -> dict[str, int]:
    """How many kernels run on the device, by what runs: "host", or targets of the registry."""
    found = (target_on(entry, device) for entry in registry.all())
    return dict(collections.Counter(target for target in found if target is not None))


def cuda_version() -> str | None:
    """Newest CUDA that the driver knows, such as "13.0"; None where no driver can be used."""
    version = _cuda_version()
    return None if version is None else words(version)


def missing_functions() -> list[str]:
    """Functions that kvit calls and that the driver lacks; none where no driver can be used."""
    try:
        return driver.missing_functions()
    except KvitError:
        return []


def refused_targets(targets: Iterable[str]) -> dict[str, str]:
    """Of these targets, those that the driver is too old for, and the CUDA whose drivers load them."""
    have = _cuda_version()
    drivers = registry.installed().drivers
    needed = {target: drivers[target] for target in targets if target in drivers}
    return {target: words(version) for target, version in needed.items() if have is not None and version > have}


def _cuda_version() -> tuple[int, int] | None:
    try:
        version = driver.driver_version()
    except KvitError:
        return None
    return version // 1000, version % 1000 // 10


def words(version: tuple[int, int]) -> str:
    """12.8 for (12, 8)."""
    return "{}.{}".format(*version)


def driver_release() -> str | None:
    """Release of the NVIDIA kernel driver, such as "580.95.05"; None where it does not say."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split("\n", 1)[0].split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)
