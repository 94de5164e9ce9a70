# Kernels as they are loaded: from a cubin or PTX file on a GPU, from the host library elsewhere.
from kvit._native.context import Device
from kvit.selection.registry import KernelInfo

class Library:
    path: str

class Kernel:
    entry: KernelInfo
    library: Library | None
    params_bytes: int
    @staticmethod
    def load(entry: KernelInfo, device: str | Device = "cuda:0") -> Kernel: ...
    @property
    def device(self) -> str: ...
