# Kernels as they are loaded: from a cubin or PTX file on a GPU, from the host library elsewhere.
from kvit._native.context import Device
from kvit.registry import Entry

class Library:
    path: str

class Kernel:
    entry: Entry
    library: Library | None
    params_bytes: int
    @staticmethod
    def load(entry: Entry, device: str | Device = "cuda:0") -> Kernel: ...
    @property
    def device(self) -> str: ...
