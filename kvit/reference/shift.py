"""Cached tokens at other positions: what a window of context that moves along does to a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .cache import Cache, Pool, Table
from .rope import Rotation, rotate
from .smoothing import Smoothing

Places = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Pages, and rows in them."""


def shift(
    cache: Cache,
    table: Table,
    by: Sequence[int],
    first: Sequence[int],
    rotation: Rotation | None,
    dtype: DTypeLike,
    source: Table | None = None,
    smoothing: Smoothing | None = None,
) -> None:
    """Turn the keys of cached tokens: those of each sequence from its token `first` on, by `by` positions.

    rotation  how keys turn with positions; its attention factor is in them already. None: they do not turn
    dtype     T, the type of rows before they are encoded
    source    absent: tokens stay where they are. Else token p of `table`, from first on, is what token p - by of the
              same sequence of `source` is, and a lower one what token p of it is. No place that is written may be read
              for another one
    smoothing  that keys were appended with

    A key that turns is decoded to T, turned, rounded to T and encoded. All else keeps its bits, but for float8 whose
    new place has another scale. A sequence with a token that has no place, here or there, is an error of the caller's.
    """
    pools = cache.stores()
    writes = []
    for sequence, (positions, begin) in enumerate(zip(by, first, strict=True)):
        there = table.places(cache, sequence)
        token = np.arange(len(there[0]))
        here = there
        if source is not None:
            before = np.where(token >= begin, token - positions, token)
            here = tuple(places[before] for places in source.places(cache, sequence))  # type: ignore[assignment]
        turns = (token >= begin) & (positions != 0) & (rotation is not None)
        moves = (here[0] != there[0]) | (here[1] != there[1])
        if rotation is not None:
            old = pools[0].read(*_only(here, turns), dtype)
            plain, last = Rotation(rotation.steps, rotation.interleaved), None
            if smoothing is not None:
                old, last = smoothing.undone(old), smoothing.of_keys
            turned = rotate(old, np.full(len(old), positions), plain, last=last)
            writes.append((pools[0], _only(there, turns), turned))
        for pool, which in ((pools[0], moves & ~turns), (pools[1], moves)):
            writes.append((pool, _only(there, which), _Stored(pool, _only(here, which), dtype)))
    for pool, places, rows in writes:  # all has been read by now
        if isinstance(rows, _Stored):
            rows.put(pool, places)
        else:
            pool.write(*places, rows)


class _Stored:
    """Rows as they lie in a pool."""

    def __init__(self, pool: Pool, places: Places, dtype: DTypeLike):
        self.data = pool.data[places].copy()
        self.params = None if pool.params is None else pool.params[places].copy()
        self.rows = pool.read(*places, dtype)

    def put(self, pool: Pool, places: Places) -> None:
        if not pool.codec.is_scaled or self.params is None or pool.params is None:
            pool.data[places] = self.data
            if self.params is not None and pool.params is not None:
                pool.params[places] = self.params
            return
        scale = pool.params[places]
        encoded, _ = pool.codec.encode(self.rows, scale)
        pool.data[places] = np.where((scale == self.params)[..., None], self.data, encoded)


def _only(places: Places, which: NDArray[np.bool_]) -> Places:
    return places[0][which], places[1][which]
