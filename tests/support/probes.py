"""Inputs for probes of the iterators: caches full of random bytes, with NaN patterns wherever nothing may be read."""

from __future__ import annotations

import numpy as np

from kvit.iterators import BoxProbeSpec, Probe, ProbeSpec, Table

POISON = 0xFF  # every 16-bit float of it is a NaN


def make_pools(
    rng: np.random.Generator,
    spec: ProbeSpec | BoxProbeSpec,
    pages: int,
    page_size: int,
    heads: int,
    *,
    order: str = "NHD",
    lengths: dict[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Pools of random bytes, [pages, page_size, heads, row_bytes], heads outside tokens in memory where order is "HND".

    lengths  page -> tokens in use; the rest of that page is poison. A page that is not named is poison altogether; all
             pages are full if absent
    """
    pools = {}
    names = ("k", "v", "k_params", "v_params")
    for name, iterator in zip(names, spec.iterators, strict=False):
        shape = (pages, page_size, heads, iterator.row_bytes)
        if order == "HND":
            pool = _aligned((pages, heads, page_size, iterator.row_bytes)).transpose(0, 2, 1, 3)
        else:
            pool = _aligned(shape)
        pool[...] = rng.integers(0, 256, shape, np.uint8)
        if lengths is not None:
            for page in range(pages):
                pool[page, lengths.get(page, 0) :] = POISON
        pools[name] = pool
    return pools


def scattered_table(rng: np.random.Generator, lengths: list[int], pages: int, page_size: int) -> Table:
    """A dense table whose pages are out of order and never shared. Slots past the end hold no page's id."""
    slots = max(1, *(-(-length // page_size) for length in lengths))
    ids = rng.permutation(pages).astype(np.int32)
    table = np.full((len(lengths), slots), -7, np.int32)
    first = 0
    for sequence, length in enumerate(lengths):
        count = -(-length // page_size)
        assert first + count <= pages, "the test needs more pages"
        table[sequence, :count] = ids[first : first + count]
        first += count
    return Table(table, np.array(lengths, np.int32))


def used_tokens(table: Table, page_size: int) -> dict[int, int]:
    """page -> tokens in use, of a dense table: what make_pools takes."""
    used = {}
    for row, length in zip(table.pages, table.lengths, strict=True):
        for slot in range(-(-int(length) // page_size)):
            used[int(row[slot])] = min(page_size, int(length) - slot * page_size)
    return used


def page_spans(
    pools: dict[str, np.ndarray], table: Table, sequence: int, head: int, box_tokens: int = 1
) -> list[tuple[int, int]]:
    """(address, bytes) of every row of one sequence and head, up to the end of its last box, and nothing else: what a
    probe of it may read."""
    spans = []
    for pool in pools.values():
        page_size = pool.shape[1]
        for token in range(-(-int(table.lengths[sequence]) // box_tokens) * box_tokens):
            row = pool[int(table.pages[sequence, token // page_size]), token % page_size, head]
            spans.append((row.__array_interface__["data"][0], row.nbytes))
    return spans


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    # numpy aligns small arrays to 16 bytes only by habit.
    size = int(np.prod(shape))
    raw = np.empty(size + 256, np.uint8)
    start = -raw.__array_interface__["data"][0] % 256
    return raw[start : start + size].reshape(shape)


def assert_same(found: Probe, expected: Probe) -> None:
    """Every byte as predicted, and a fault only where the model allows it: one, where it allows any."""
    np.testing.assert_array_equal(found.shared, expected.shared, "shared memory")
    np.testing.assert_array_equal(found.fragments, expected.fragments, "fragments")
    assert found.faults <= expected.faults, f"{set(found.faults)} reported; {set(expected.faults)} are there"
    assert bool(found.faults) == bool(expected.faults), f"nothing reported of {set(expected.faults)}"
