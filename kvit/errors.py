"""What kvit raises. Every class derives from KvitError, so one `except` catches them all."""

from typing import NoReturn


class KvitError(Exception):
    """Base of everything that kvit raises on purpose."""


class ShapeError(KvitError, ValueError):
    """Shapes that do not fit each other, or that no kernel covers."""


class DtypeError(KvitError, ValueError):
    """An element type that is unknown, or that this argument cannot have."""


class DeviceError(KvitError, ValueError):
    """A device that does not exist, or arguments that live on different ones."""


class LayoutError(KvitError, ValueError):
    """Strides, alignment or packing that the operation cannot read in place."""


class CacheFull(KvitError, RuntimeError):
    """A cache has fewer free pages than the call needs; nothing was written."""


class SequenceFreed(KvitError, RuntimeError):
    """A sequence was used after its pages went back to the cache."""


class PageTableError(KvitError, RuntimeError):
    """A kernel met a page id, length or offset that the page table cannot hold; the affected output is NaN.

    sequence  its place in the call; -1 where the fault is of no sequence
    slot      place in the sequence's list of pages, or in indptr
    value     what stands there: a page id, a length, an offset
    """

    def __init__(self, message: str, sequence: int = -1, slot: int = 0, value: int = 0) -> None:
        super().__init__(message)
        self.sequence, self.slot, self.value = sequence, slot, value


class KernelMissing(KvitError, RuntimeError):
    """Nothing that was built covers the request on this device."""


class DriverError(KvitError, RuntimeError):
    """A call into the CUDA driver (or its stand-in on the host) that failed.

    status  the CUresult as an int; None where there is none
    call    the name of the driver function that returned it
    """

    def __init__(self, message: str, status: int | None = None, call: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.call = call


class NoGpuError(KvitError, RuntimeError):
    """CUDA was asked for where no driver or no GPU can be found."""


class HostBackendError(KvitError, RuntimeError):
    """The host backend is not built, or a kernel that it ran did something a GPU would not forgive."""


def refuse_copy(owner: object, why: str) -> NoReturn:
    """Raise TypeError: what copy, deepcopy and pickle get from an object that owns something."""
    raise TypeError(f"a kvit {type(owner).__name__} can be neither copied nor pickled: {why}")
