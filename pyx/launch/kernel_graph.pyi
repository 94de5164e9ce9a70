"""Launches of one kernel by a graph of it, whose parameters are set anew for each: what costs the host least."""

from kvit._native.module import Kernel

class KernelGraph:
    """What launches one kernel by a graph of it."""

    @staticmethod
    def of(kernel: Kernel) -> KernelGraph:
        """A graph of the kernel, made for the context that its device is used in now. Raises DriverError."""
