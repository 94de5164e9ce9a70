"""Probes: one tile through one iterator, as the compiled kernel does it (probe) and as the model says it (predict)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kvit import registry
from kvit.errors import KernelMissing, LayoutError, ShapeError
from kvit.iterators._params import NUM_POOLS, KvitCache, KvitPageTable, KvitPool, KvitProbeParams
from kvit.iterators.gmem_iterator import GmemIterator
from kvit.iterators.kv_layout import kv_layout, kv_thread_map, param_layout, param_thread_map
from kvit.iterators.tiles import NO_FAULT, Fault, FaultKind, Table, linear_rows, paged_rows

if TYPE_CHECKING:
    from kvit._native.tensor import Tensor

POISON = 0xFF
"""What shared memory holds before a probe's tile comes."""

_WARPS = 4
_BITS = {"f16": 16, "bf16": 16, "u8": 8, "u4": 4}
_POOLS = ("k", "v", "k_params", "v_params")


@dataclass(frozen=True)
class ProbeSpec:
    """One kernel of family `probe`: a point of its axes in kernels/manifest.toml."""

    loader: str  # "sm70": through registers; "sm80": asynchronous copies
    element: str  # "f16", "bf16", "u8", "u4"; below 16 bits with (scale, zero) pairs in f16
    head_dim: int
    tile: int  # tokens
    stages: int
    source: str  # "paged", "linear"

    @classmethod
    def of(cls, symbol: str) -> ProbeSpec:
        """The spec of a built kernel. Raises KernelMissing: there is none of that name."""
        for entry in registry.candidates("probe"):
            if entry.symbol == symbol:
                return cls(**entry.axes)
        built = ", ".join(entry.symbol for entry in registry.candidates("probe"))
        raise KernelMissing(f"{symbol} is no probe kernel; built are {built or 'none'}")

    @property
    def bits(self) -> int:
        """Of an element."""
        return _BITS[self.element]

    @property
    def has_params(self) -> bool:
        return self.bits < 16

    @property
    def row_bytes(self) -> int:
        """Of a token's channels, one head."""
        return self.head_dim * self.bits // 8

    @property
    def data(self) -> GmemIterator:
        """How K and V move."""
        thread_map = kv_thread_map(self.bits, self.head_dim, self.tile, _WARPS)
        return GmemIterator(thread_map, kv_layout(self.bits, self.head_dim, self.tile), self.bits)

    @property
    def params(self) -> GmemIterator:
        """How their parameters move."""
        return GmemIterator(param_thread_map(self.data.thread_map), param_layout(self.tile), 16)

    @property
    def iterators(self) -> tuple[GmemIterator, ...]:
        """Of K, V, and where there are any, K parameters and V parameters."""
        return (self.data, self.data, self.params, self.params) if self.has_params else (self.data, self.data)

    @property
    def threads(self) -> int:
        return self.data.thread_map.threads

    @property
    def shared_bytes(self) -> int:
        return sum(iterator.tile_bytes * self.stages for iterator in self.iterators)

    @property
    def fragment_bytes(self) -> int:
        """Of a thread."""
        return sum(iterator.fragment_bytes for iterator in self.iterators)


@dataclass(frozen=True)
class ProbeInput:
    """What a probe reads, and which tile.

    pools     name -> uint8 [pages, page_size, heads, row_bytes] for "k", "v" and, below 16 bits, "k_params", "v_params"
              (row_bytes 4: scale and zero in f16). Any strides with dense rows, 16-byte aligned: NHD and HND are views.
              A linear source has [1, tokens, heads, row_bytes].
    table     pages and lengths
    sequence, head, tile    which tile
    max_s     rows of the tile from here on become zeros; all are wanted if absent
    s_slice   (s_begin, s_count) of the accesses along s, sm80 only; all if absent
    stage     ring slot that the tile lands in
    advances  the tile is reached from so many tiles before
    """

    pools: Mapping[str, np.ndarray]
    table: Table
    sequence: int = 0
    head: int = 0
    tile: int = 0
    max_s: int | None = None
    s_slice: tuple[int, int] | None = None
    stage: int = 0
    advances: int = 0


@dataclass(frozen=True)
class Probe:
    """What a probe left behind.

    shared     uint8 [shared_bytes]: K data of all stages, V data, K parameters, V parameters; 0xFF where nothing came
    fragments  uint8 [threads, fragment_bytes]: in the same order, each thread's accesses
    faults     what the model allows a kernel to report; of a kernel, what it reported
    """

    shared: np.ndarray
    fragments: np.ndarray
    faults: frozenset[Fault] = field(default_factory=frozenset)


def predict(spec: ProbeSpec, given: ProbeInput) -> Probe:
    """What `spec`'s kernel must leave behind, byte by byte, from the index maps alone.

    Raises ShapeError, LayoutError: as probe.
    """
    _check(spec, given)
    rows_of = paged_rows if spec.source == "paged" else linear_rows
    shared, fragments = [], []
    faults: set[Fault] = set()
    for name, iterator in zip(_POOLS, spec.iterators, strict=False):
        place = (given.pools[name], given.table, given.sequence, given.head)
        for tile in range(given.tile - given.advances, given.tile + 1):
            rows, found = rows_of(*place, tile, spec.tile, given.max_s)
            faults |= found
        image = np.full(iterator.tile_bytes * spec.stages, POISON, np.uint8)
        registers = iterator.load(rows)
        iterator.save(registers, image, given.stage, *(given.s_slice or (0, None)))
        if spec.loader == "sm80":
            registers = iterator.read_back(image, given.stage)
        shared.append(image)
        fragments.append(registers.reshape(spec.threads, -1))
    return Probe(np.concatenate(shared), np.concatenate(fragments, axis=1), frozenset(faults))


def probe(
    spec: ProbeSpec | str,
    given: ProbeInput,
    *,
    device: str = "host",
    spans: Sequence[tuple[int, int]] | None = None,
) -> Probe:
    """Run the compiled kernel on raw bytes.

    spec    which kernel, or its symbol
    given   numpy arrays, copied to a GPU as they are laid out
    device  "host", "cuda:N"
    spans   (address, bytes) that the kernel may read on the host besides the table; the pools' arrays if absent

    Returns when it is done. Raises ShapeError (arrays that do not fit the spec, a tile before the first), LayoutError
    (rows that are not dense), KernelMissing (not built), HostBackendError (it read something else), DriverError.
    Defined by predict.
    """
    from kvit._native.buffer import Buffer
    from kvit._native.launcher import launch_bytes
    from kvit._native.module import Kernel
    from kvit._native.tensor import Tensor

    if isinstance(spec, str):
        spec = ProbeSpec.of(spec)
    _check(spec, given)
    kernel = Kernel.load(registry.find("probe", **vars(spec)), device)
    table = given.table

    # Tensors on the device, by what reads them.
    def place(array: np.ndarray) -> Tensor:
        return Tensor.wrap(array) if device == "host" else Buffer.from_numpy(array, device)

    pools = {name: _Placed(array, place) for name, array in given.pools.items()}
    reads = {"lengths": place(table.lengths)}
    if spec.source == "paged":
        reads["pages"] = place(np.ascontiguousarray(table.pages))
    if table.indptr is not None:
        reads["indptr"] = place(table.indptr)
    shared = Buffer.from_numpy(np.zeros(spec.shared_bytes, np.uint8), device)
    fragments = Buffer.from_numpy(np.zeros((spec.threads, spec.fragment_bytes), np.uint8), device)
    fault = Buffer.from_numpy(np.zeros(4, np.int32), device)

    cache = KvitCache(
        (KvitPool * NUM_POOLS)(*(pools[name].pool if name in pools else KvitPool() for name in _POOLS)),
        *given.pools["k"].shape[:3],
        spec.head_dim,
    )
    begin, count = given.s_slice or (0, -1)
    params = KvitProbeParams(
        cache,
        KvitPageTable(
            reads["pages"].pointer if "pages" in reads else None,
            reads["indptr"].pointer if "indptr" in reads else None,
            reads["lengths"].pointer,
            0 if table.indptr is not None else table.max_pages,
            len(table.lengths),
            table.max_pages,
        ),
        shared.pointer,
        fragments.pointer,
        fault.pointer,
        *(given.sequence, given.head, given.tile, spec.tile if given.max_s is None else given.max_s),
        *(begin, count, given.stage, given.advances),
    )
    may_read = [pool.tensor.span() for pool in pools.values()] if spans is None else [(a, a + n) for a, n in spans]
    may_read += [tensor.span() for tensor in reads.values()]
    may_write = [tensor.span() for tensor in (shared, fragments, fault)]
    launch_bytes(
        kernel,
        bytes(params),
        1,
        spans=[(low, high - low, False) for low, high in may_read]
        + [(low, high - low, True) for low, high in may_write],
    )
    kind, *rest = (int(value) for value in fault.numpy())
    found = Fault(FaultKind(kind), *rest)
    return Probe(shared.numpy(), fragments.numpy(), frozenset({found} - {NO_FAULT}))


class _Placed:
    """A pool where the kernel reads it, axes in the order in which they lie in memory."""

    def __init__(self, array: np.ndarray, place: Any) -> None:
        order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
        self.tensor: Tensor = place(array.transpose(order))
        strides = [self.tensor.strides[order.index(axis)] for axis in range(3)]
        self.pool = KvitPool(self.tensor.pointer, *strides)


def _check(spec: ProbeSpec, given: ProbeInput) -> None:
    wanted = dict(zip(_POOLS, spec.iterators, strict=False))
    if set(given.pools) != set(wanted):
        raise ShapeError(f"{spec} takes the pools {', '.join(wanted)}, not {', '.join(given.pools)}")
    shape = given.pools["k"].shape[:3]
    for name, iterator in wanted.items():
        pool = given.pools[name]
        if pool.dtype != np.uint8 or pool.ndim != 4 or pool.shape != (*shape, iterator.row_bytes):
            raise ShapeError(
                f"{name} is {pool.dtype} {pool.shape}; {spec} takes uint8 [pages, page_size, heads, "
                f"{iterator.row_bytes}], the same pages, page_size and heads in every pool"
            )
        if pool.strides[3] != 1:
            raise LayoutError(f"{name} has {pool.strides[3]} bytes from channel to channel; rows must be dense")
    if not 0 <= given.advances <= given.tile:
        raise ShapeError(f"tile {given.tile} cannot be reached in {given.advances} advances; give at most {given.tile}")
    limits = {
        "sequence": len(given.table.lengths),
        "head": shape[2],
        "stage": spec.stages,
    }
    for name, limit in limits.items():
        if not 0 <= getattr(given, name) < limit:
            raise ShapeError(f"{name} is {getattr(given, name)}; it must be from 0 to {limit - 1}")
    if given.s_slice is not None and (spec.loader == "sm70" or min(given.s_slice) < 0):
        raise ShapeError(f"s_slice is {given.s_slice} for {spec}; slices are two counts, and sm80's alone")
