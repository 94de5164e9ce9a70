"""What a probe is given, what it leaves behind, and what the model says that it must leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kvit.errors import LayoutError, ShapeError
from kvit.iterators.box_iterator import box_sizes
from kvit.iterators.probe_spec import BoxProbeSpec, ProbeSpec
from kvit.iterators.tiles import Fault, Table, boxed_rows, linear_rows, paged_rows

POISON = 0xFF
"""What shared memory holds before a probe's tile comes."""

POOLS = ("k", "v", "k_params", "v_params")
"""Names of a cache's pools, in the order of a spec's iterators."""


@dataclass(frozen=True)
class ProbeInput:
    """What a probe reads, and which tile.

    pools     name -> uint8 [pages, page_size, heads, row_bytes] for "k", "v" and, where the spec's iterators are four,
              "k_params", "v_params" (row_bytes 4: scale and zero in f16). Any strides with dense rows, 16-byte aligned:
              NHD and HND are views. A linear source has [1, tokens, heads, row_bytes].
    table     pages and lengths
    sequence, head, tile    which tile
    max_s     rows of the tile from here on become zeros, in the copy, or for boxes by Clear; all are wanted if absent
    s_slice   (s_begin, s_count) of the accesses along s, sm80 only, or of the tile's boxes; all if absent
    stage     ring slot that the tile lands in
    advances  the tile is reached from so many tiles before. Boxes of those pass through the same slot
    box_tokens  of a box: one of box_sizes(page_size, spec.tile), the largest if absent. For boxes alone
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
    box_tokens: int | None = None

    @property
    def page_size(self) -> int:
        return self.pools["k"].shape[1]


@dataclass(frozen=True)
class Probe:
    """What a probe left behind.

    shared     uint8 [image_bytes]: K data of all stages, V data, K parameters, V parameters; 0xFF where nothing came
    fragments  uint8 [threads, fragment_bytes]: in the same order, each thread's accesses, or for boxes its part of each
               matrix load, as BoxIterator.load_matrices has them of K, and transposed of V
    faults     what the model allows a kernel to report; of a kernel, what it reported
    """

    shared: np.ndarray
    fragments: np.ndarray
    faults: frozenset[Fault] = field(default_factory=frozenset)


def predict(spec: ProbeSpec | BoxProbeSpec, given: ProbeInput) -> Probe:
    """What `spec`'s kernel must leave behind, byte by byte, from the index maps alone.

    Raises ShapeError, LayoutError: as probe.
    """
    check_input(spec, given)
    return _predict_boxes(spec, given) if isinstance(spec, BoxProbeSpec) else _predict_accesses(spec, given)


def box_tokens_of(spec: BoxProbeSpec, given: ProbeInput) -> int:
    """Tokens of a box of this probe, input that has been checked."""
    return given.box_tokens or box_sizes(given.page_size, spec.tile)[-1]


def _predict_accesses(spec: ProbeSpec, given: ProbeInput) -> Probe:
    rows_of = paged_rows if spec.source == "paged" else linear_rows
    shared, fragments = [], []
    faults: set[Fault] = set()
    for name, iterator in zip(POOLS, spec.iterators, strict=False):
        place = (given.pools[name], given.table, given.sequence, given.head)
        for tile in _tiles(given):
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


def _predict_boxes(spec: BoxProbeSpec, given: ProbeInput) -> Probe:
    box_tokens = box_tokens_of(spec, given)
    begin, count = given.s_slice or (0, spec.tile // box_tokens)
    boxes = range(spec.tile // box_tokens)[begin : begin + count]
    shared, fragments = [], []
    faults: set[Fault] = set()
    for name, iterator in zip(POOLS, spec.iterators, strict=False):
        image = np.full(iterator.tile_bytes * spec.stages, POISON, np.uint8)
        for tile in _tiles(given):
            place = (given.pools[name], given.table, given.sequence, given.head)
            rows, found = boxed_rows(*place, tile, spec.tile, box_tokens)
            faults |= found
            for s in (box * box_tokens for box in boxes):
                iterator.prefetch(rows[s : s + box_tokens], image, s, given.stage)
            if given.max_s is not None:
                iterator.clear(image, given.max_s, given.stage)
        shared.append(image)
        fragments.append(iterator.load_matrices(image, given.stage, transposed=name == "v").reshape(spec.threads, -1))
    return Probe(np.concatenate(shared), np.concatenate(fragments, axis=1), frozenset(faults))


def _tiles(given: ProbeInput) -> range:
    return range(given.tile - given.advances, given.tile + 1)


def check_input(spec: ProbeSpec | BoxProbeSpec, given: ProbeInput) -> None:
    """Raises ShapeError (arrays that do not fit the spec, a tile before the first, boxes that no page has), LayoutError
    (rows that are not dense)."""
    wanted = dict(zip(POOLS, spec.iterators, strict=False))
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
    has_slices = isinstance(spec, BoxProbeSpec) or spec.loader == "sm80"
    if given.s_slice is not None and (not has_slices or min(given.s_slice) < 0):
        raise ShapeError(f"s_slice is {given.s_slice} for {spec}; slices are two counts, and not for sm70")
    _check_boxes(spec, given)


def _check_boxes(spec: ProbeSpec | BoxProbeSpec, given: ProbeInput) -> None:
    if not isinstance(spec, BoxProbeSpec):
        if given.box_tokens is not None:
            raise ShapeError(f"box_tokens is {given.box_tokens} for {spec}, which copies no boxes; leave it out")
        return
    sizes = box_sizes(given.page_size, spec.tile)
    if not sizes:
        raise ShapeError(f"pages of {given.page_size} tokens hold no boxes; the page size must be a multiple of 8")
    if given.box_tokens not in (None, *sizes):
        raise ShapeError(
            f"box_tokens is {given.box_tokens} in pages of {given.page_size} and tiles of {spec.tile}; it may be "
            f"{', '.join(map(str, sizes))}"
        )
