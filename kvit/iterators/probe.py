"""Probes: one tile through one compiled iterator, on raw bytes; prediction.py says what must come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kvit.iterators._params import NUM_POOLS, KvitCache, KvitPageTable, KvitPool, KvitProbeParams, KvitTensorMap
from kvit.iterators.prediction import POOLS, Probe, ProbeInput, box_tokens_of, check_input
from kvit.iterators.probe_spec import BoxProbeSpec, ProbeSpec, spec_of
from kvit.iterators.tiles import NO_FAULT, Fault, FaultKind
from kvit.selection import registry

if TYPE_CHECKING:
    from kvit._native.tensor import Tensor


def probe(
    spec: ProbeSpec | BoxProbeSpec | str,
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

    Returns when it is done. Raises ShapeError (arrays that do not fit the spec, a tile before the first, boxes that no
    page has), LayoutError (rows that are not dense, or that no tensor map describes), KernelMissing (not built),
    HostBackendError (it read something else), DriverError.
    Defined by predict.
    """
    from kvit._native.buffer import Buffer
    from kvit._native.launcher import launch_bytes
    from kvit._native.module import Kernel
    from kvit._native.tensor import Tensor

    if isinstance(spec, str):
        spec = spec_of(spec)
    check_input(spec, given)
    kernel = Kernel.load(registry.find(spec.family, **vars(spec)), device)
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
    shared = Buffer.from_numpy(np.zeros(spec.image_bytes, np.uint8), device)
    fragments = Buffer.from_numpy(np.zeros((spec.threads, spec.fragment_bytes), np.uint8), device)
    fault = Buffer.from_numpy(np.zeros(4, np.int32), device)

    params = KvitProbeParams(
        KvitCache(
            (KvitPool * NUM_POOLS)(*(pools[name].pool if name in pools else KvitPool() for name in POOLS)),
            *given.pools["k"].shape[:3],
            spec.head_dim,
        ),
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
        *(given.s_slice or (0, -1)),
        *(given.stage, given.advances),
    )
    if isinstance(spec, BoxProbeSpec):
        _add_maps(params, spec, given, pools, device)
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
        self.strides = tuple(self.tensor.strides[order.index(axis)] for axis in range(3))
        self.pool = KvitPool(self.tensor.pointer, *self.strides)


def _add_maps(
    params: KvitProbeParams, spec: BoxProbeSpec, given: ProbeInput, pools: Mapping[str, _Placed], device: str
) -> None:
    from kvit._native.tensor_map import pack_tensor_map

    params.box_tokens = box_tokens_of(spec, given)
    num_pages, page_size, num_heads, row_bytes = given.pools["k"].shape
    for name in ("k", "v"):
        packed = pack_tensor_map(
            device,
            pools[name].tensor.pointer,
            pools[name].strides,
            row_bytes=row_bytes,
            num_pages=num_pages,
            page_size=page_size,
            num_heads=num_heads,
            box_tokens=params.box_tokens,
        )
        setattr(params, f"{name}_map", KvitTensorMap.from_buffer_copy(packed))
