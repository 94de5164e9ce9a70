"""Which kernels were built for a device, for tests of kernels that not every build has for every GPU."""

import pytest

from kvit._native.context import Device
from kvit.selection.registry import KernelInfo, best_target, candidates


def is_built(entry: KernelInfo, device: str) -> bool:
    """Whether the device runs the kernel as it was built; the host runs all."""
    capability = Device.of(device).compute_capability
    return capability is None or best_target(capability, entry.archs) is not None


def need_copies(copies: str, device: str) -> None:
    """Skip where no decode kernel with these copies was built for the device: registers are for GPUs before sm_80."""
    if not any(is_built(entry, device) for entry in candidates("decode", copies=copies)):
        pytest.skip(f"needs kernels with copies={copies} for this GPU: name compute_75 in KVIT_ARCHS")
