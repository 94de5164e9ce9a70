"""Probes of a thread map and a layout of one's own: compiled, run on a tile, and compared with the model."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kvit._native.context import Device
from kvit.errors import DriverError, HostBackendError, LayoutError, ShapeError
from kvit.iterators import own_compiler
from kvit.iterators.own_tile import OwnTile
from kvit.iterators.raked_thread_map import RakedThreadMap
from kvit.iterators.report import Layout, ThreadMap
from kvit.iterators.smem_layout import SmemLayout

_ELEMENTS = {4: "Uint4", 8: "uint8_t", 16: "Half", 32: "float"}
_SHOWN = 8
_SECONDS = 60


@dataclass(frozen=True, eq=False)
class OwnProbe:
    """What a compiled thread map and layout did with one tile, and what their model says of it.

    shared              uint8 [bytes] shared memory of all stages after the copy, 0xFF before
    fragments           uint8 [threads, bytes] what each thread loaded, or found at its own coordinates
    expected_shared, expected_fragments
                        the same, by the model
    differences         a sentence for each of the first bytes that differ; none where all are the same
    """

    shared: np.ndarray
    fragments: np.ndarray
    expected_shared: np.ndarray
    expected_fragments: np.ndarray
    differences: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether every byte is what the model says."""
        return not self.differences

    def __str__(self) -> str:
        compared = f"{self.shared.size} bytes of shared memory and {self.fragments.size} of fragments"
        if self.is_same:
            return f"{compared}: all as the model says"
        return "\n".join([f"{compared}: not as the model says", *(f"  {each}" for each in self.differences)])


def probe_own(
    layout: Layout | Callable[[np.ndarray, np.ndarray], np.ndarray],
    thread_map: ThreadMap,
    bits: int,
    *,
    layout_type: str | None = None,
    map_type: str | None = None,
    definitions: str = "",
    loader: Literal["sm70", "sm80"] | None = None,
    stages: int = 1,
    rows: np.ndarray | None = None,
    device: str = "host",
    compiler: str | None = None,
) -> OwnProbe:
    """Compile an iterator with a thread map and a layout, copy a tile with it, and compare all bytes with the model.

    layout       the model of where elements lie, as `report` takes it. A SmemLayout is also the C++ type
    thread_map   the model of who moves what, as `report` takes it. A RakedThreadMap is also the C++ type
    bits         of an element: 4, 8, 16 or 32
    layout_type  the C++ type, in namespace kvit, where layout is no SmemLayout: what kernels/layout/smem_layout.cuh has
    map_type     the same of the thread map: what kernels/layout/raked_thread_map.cuh has
    definitions  C++ text that defines those types, in namespace kvit
    loader       "sm70": Sm70GmemIterator, through registers; "sm80": Sm80GmemIterator, by asynchronous copies. sm80 if
                 absent, where an access has the 4 bytes that it takes at least
    stages       ring slots; the tile lands in the last one
    rows         uint8 [tokens, row_bytes], the tile; random bytes if absent
    device       "host", compiled by g++; or "cuda:N", compiled by nvcc
    compiler     command; $CXX or g++, and nvcc of PATH or CUDA_HOME, if absent

    Takes some seconds, and longer the first time. The program runs in a process of its own.
    Raises ShapeError (bits, an access, rows), LayoutError (no C++ type; a model that puts two elements in one place; a
    map or a layout that does not compile, or is of another size than its model), HostBackendError (no compiler, no
    headers, or a kernel that broke a rule on the host), DeviceError, NoGpuError, DriverError (it failed on a GPU).
    """
    tile = OwnTile.of(layout, thread_map, bits, stages)
    if loader is None:
        loader = "sm80" if tile.access_bytes >= 4 else "sm70"
    if loader not in ("sm70", "sm80"):
        raise ShapeError(f'loader is {loader!r}; give "sm70" or "sm80"')
    found = Device.of(device)
    rows = tile.checked_rows(rows)
    types = [
        ("OwnElement", _ELEMENTS[bits]),
        ("OwnMap", _type_of("thread_map", "map_type", map_type, thread_map)),
        ("OwnLayout", _type_of("layout", "layout_type", layout_type, layout)),
    ]
    text = _text(definitions, types, loader, tile, rows.shape[1])
    with tempfile.TemporaryDirectory(prefix="kvit_probe_") as folder:
        program = own_compiler.build(Path(folder), text, found.compute_capability, compiler)
        output = _run(program, rows, found)
    sizes, body = np.frombuffer(output[:16], np.int32), np.frombuffer(output[16:], np.uint8)
    threads, size, image_bytes, fragment_bytes = map(int, sizes)
    tile.check_sizes(threads, size, fragment_bytes)
    shared, fragments = body[:image_bytes], body[image_bytes:].reshape(threads, fragment_bytes)
    expected_shared, expected_fragments = tile.expected(rows, size)
    differences = [
        *tile.differences_of_shared(shared, expected_shared, size),
        *tile.differences_of_fragments(fragments, expected_fragments),
    ]
    return OwnProbe(shared, fragments, expected_shared, expected_fragments, tuple(differences[:_SHOWN]))


def _type_of(name: str, type_name: str, given: str | None, model: Any) -> str:
    """The C++ type of a model. Raises LayoutError."""
    if given is not None:
        return given
    if isinstance(model, RakedThreadMap):
        numbers = (model.dim_c, model.dim_s, model.access_c, model.warp_count, model.warp_thread_c, model.warp_c)
        return f"RakedThreadMap<{', '.join(map(str, numbers))}>"
    if isinstance(model, SmemLayout):
        swizzle = model.swizzle
        return (
            f"SmemLayout<{model.s}, {model.c}, {model.s0}, {model.c0}, "
            f"Swizzle<{swizzle.bits}, {swizzle.base}, {swizzle.shift}>>"
        )
    raise LayoutError(
        f"{name} is a {type(model).__name__}, of which no C++ type is known; name yours in {type_name}, and define it "
        "in definitions"
    )


def _text(definitions: str, types: list[tuple[str, str]], loader: str, tile: OwnTile, row_bytes: int) -> str:
    uses = "\n".join(f"using {name} = {kind};" for name, kind in types)
    return f"""
namespace kvit {{
#line 1 "definitions"
{definitions}
#line 1 "types"
{uses}
template <class T, class Map, class Layout, int Index>
using OwnIterator = S{loader[1:]}GmemIterator<T, Map, Layout, Index>;
inline constexpr int kOwnTokens = {tile.tokens}, kOwnRowBytes = {row_bytes}, kOwnStages = {tile.stages};
}}  // namespace kvit
"""


def _run(program: Path, rows: np.ndarray, device: Device) -> bytes:
    """What the program writes. Raises HostBackendError, DriverError."""
    given, result = program.with_name("rows"), program.with_name("result")
    given.write_bytes(rows.tobytes())
    kind = HostBackendError if device.is_host else DriverError
    command = [str(program), str(given), str(result), str(device.ordinal)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise kind(
            f"the probe did not end within {_SECONDS} seconds; look for a loop in the map or the layout"
        ) from None
    if done.returncode == 0:
        return result.read_bytes()
    said = done.stderr.strip() or f"it ended with status {done.returncode}, and said nothing"
    raise kind(f"the probe of the map and the layout failed: {said}")
