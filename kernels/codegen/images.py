"""What a driver is handed: PTX in words that old drivers know, which drivers take an image, and how it is packed."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from codegen.errors import BuildError

Version = tuple[int, int]

PACKED_SUFFIX = ".xz"

# The first PTX ISA that knows a virtual target, and the first CUDA whose drivers know that ISA: the release notes in
# "PTX ISA". Every target before 10.0 is known to 8.0; targets that are not listed came with CUDA 13.0.
_FIRST_ISA = {100: (8, 7), 120: (8, 7), 103: (8, 8), 121: (8, 8)}
_OLDEST_ISA, _NEWEST_ISA = (8, 0), (9, 0)
_CUDA_OF_ISA = {(8, 0): (12, 0), (8, 7): (12, 8), (8, 8): (12, 9), (9, 0): (13, 0)}
# Version of the ELF ABI that a cubin is in, and the first CUDA whose drivers load it.
_CUDA_OF_ABI = {7: (12, 0), 8: (13, 0)}
_ABI_VERSION_BYTE = 8  # of e_ident

# PTX is a multiple of its cubin, and takes seconds for a MB with better ones that save a quarter.
_PRESETS = {".ptx": 2}


def ptx_isa(virtual: str) -> Version:
    """The oldest PTX ISA that code of a virtual target (compute_90) can be marked with."""
    number = int(re.sub(r"\D", "", virtual))
    return _FIRST_ISA.get(number, _OLDEST_ISA if number < 100 else _NEWEST_ISA)


def oldest_cuda(image: bytes, arch: str) -> Version:
    """The first CUDA whose drivers take a cubin, or PTX, of this target. Raises BuildError: that is not known."""
    first_for_target = _CUDA_OF_ISA[ptx_isa(arch)]
    if image.startswith(b"\x7fELF"):
        abi = image[_ABI_VERSION_BYTE]
        if abi not in _CUDA_OF_ABI:
            raise BuildError(
                f"a cubin for {arch} has ELF ABI version {abi}; kvit knows which drivers load "
                f"{', '.join(map(str, _CUDA_OF_ABI))}. Use another release of ptxas, or add it to codegen/images.py."
            )
        return max(first_for_target, _CUDA_OF_ABI[abi])
    found = re.search(rb"^\.version (\d+)\.(\d+)", image, re.M)
    isa = None if found is None else (int(found[1]), int(found[2]))
    if isa not in _CUDA_OF_ISA:
        raise BuildError(f"the code for {arch} is neither a cubin nor PTX of an ISA that kvit knows drivers for")
    return max(first_for_target, _CUDA_OF_ISA[isa])


def pack(images: Iterable[Path], jobs: int) -> None:
    """Write each image beside itself, compressed, where that is not done or older than the image."""
    stale = [image for image in images if not _is_packed(image)]
    with ThreadPoolExecutor(jobs) as threads:
        list(threads.map(_pack, stale))


def packed(image: Path) -> Path:
    """Where an image lies compressed."""
    return image.with_name(image.name + PACKED_SUFFIX)


def _is_packed(image: Path) -> bool:
    return packed(image).exists() and packed(image).stat().st_mtime_ns >= image.stat().st_mtime_ns


def _pack(image: Path) -> None:
    preset = _PRESETS.get(image.suffix, lzma.PRESET_DEFAULT)
    packed(image).write_bytes(lzma.compress(image.read_bytes(), check=lzma.CHECK_CRC32, preset=preset))
