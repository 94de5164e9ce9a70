"""One tile by a thread map into a layout of one's own, in numpy: what each element must become, and what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvit.errors import LayoutError, ShapeError
from kvit.iterators.prediction import POISON
from kvit.iterators.raked_thread_map import WARP
from kvit.iterators.report import Layout, ThreadMap


@dataclass(frozen=True, eq=False)
class OwnTile:
    """Every access of every thread, with the place of each of its elements.

    bits     of an element
    stages   ring slots; the tile lands in the last one
    size     elements of a tile in the layout; None where the model does not say it
    access   elements that a thread moves at once
    s, c     int [threads, accesses] token and first channel of each access, and
    covered  bool, whether it is made
    places   int [threads, accesses, access] where its elements lie in a tile
    """

    bits: int
    stages: int
    size: int | None
    access: int
    s: np.ndarray
    c: np.ndarray
    covered: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, layout: Layout | Callable[..., np.ndarray], thread_map: ThreadMap, bits: int, stages: int) -> OwnTile:
        """Of models as `report` takes them. Raises ShapeError, LayoutError (two elements in one place)."""
        if bits not in (4, 8, 16, 32):
            raise ShapeError(f"bits is {bits!r}; elements have 4, 8, 16 or 32")
        if not isinstance(stages, int) or isinstance(stages, bool) or stages < 1:
            raise ShapeError(f"stages is {stages!r}; it must be a whole number of at least 1")
        access = int(thread_map.access_c)
        if access * bits % 8 or access * bits // 8 not in (1, 2, 4, 8, 16):
            raise ShapeError(
                f"an access of {access} channels of {bits} bits has {access * bits / 8:g} bytes; a lane moves 1, 2, 4, "
                "8 or 16 at once"
            )
        given = [np.asarray(x) for x in thread_map.coordinates()]
        s, c, covered = (x.reshape(len(x), int(np.prod(x.shape[1:]))) for x in given)
        if len(s) == 0 or len(s) % WARP or not covered.any():
            raise ShapeError(
                f"the thread map has {len(s)} threads and {int(covered.sum())} accesses; give whole warps of {WARP} "
                "threads, and an access at least"
            )
        index: Any = layout if callable(layout) else layout.index
        steps = np.arange(access)
        places = np.asarray(index(s[..., None] + 0 * steps, c[..., None] + steps))
        if places.shape != (*s.shape, access) or places.dtype.kind not in "iu":
            raise LayoutError(
                f"the layout gives offsets {places.dtype} {list(places.shape)} for elements {[*s.shape, access]}; it "
                "must give a whole number for each"
            )
        found = cls(bits, stages, getattr(layout, "size", None), access, s, c, covered, places)
        found._check_places()
        return found

    @property
    def access_bytes(self) -> int:
        """Of a lane."""
        return self.access * self.bits // 8

    @property
    def tokens(self) -> int:
        """Of the tile: as many as some access reaches."""
        return int(self.s[self.covered].max()) + 1

    @property
    def channels(self) -> int:
        """Of a row, as far as some access reaches."""
        return int(self.c[self.covered].max()) + self.access

    def _check_places(self) -> None:
        places = self.places[self.covered]
        if places.min() < 0:
            raise LayoutError(f"the layout puts an element at {places.min()}; offsets begin at 0")
        if self.size is not None and places.max() >= self.size:
            raise LayoutError(f"the layout has {self.size} elements and puts one at {places.max()}")
        elements = self._elements()[self.covered].reshape(-1, 2)
        order = np.argsort(places.reshape(-1), kind="stable")
        places, elements = places.reshape(-1)[order], elements[order]
        clash = (places[1:] == places[:-1]) & (elements[1:] != elements[:-1]).any(axis=-1)
        if clash.any():
            i = int(np.flatnonzero(clash)[0])
            first, second = (tuple(map(int, element)) for element in elements[i : i + 2])
            raise LayoutError(
                f"the layout puts elements {first} and {second}, token and channel, both at {places[i]}; a layout has "
                "a place for each"
            )

    def _elements(self) -> np.ndarray:
        """int [threads, accesses, access, 2]: token and channel of each element."""
        channels = self.c[..., None] + np.arange(self.access)
        return np.stack([self.s[..., None] + 0 * channels, channels], axis=-1)

    def checked_rows(self, rows: np.ndarray | None) -> np.ndarray:
        """uint8 [tokens, row_bytes], random if absent. Raises ShapeError."""
        row_bytes = -(-self.channels * self.bits // 8)
        if rows is None:
            rows = np.random.default_rng(0).integers(0, 256, (self.tokens, row_bytes), np.uint8)
        rows = np.asarray(rows)
        if rows.dtype != np.uint8 or rows.shape != (self.tokens, row_bytes):
            raise ShapeError(
                f"rows are {rows.dtype} {list(rows.shape)}; the map moves uint8 [tokens = {self.tokens}, row_bytes = "
                f"{row_bytes}]"
            )
        return rows

    def check_sizes(self, threads: int, size: int, fragment_bytes: int) -> None:
        """Raises LayoutError: what was compiled is of another size than the model."""
        accesses = self.s.shape[1]
        for name, compiled, model in (
            ("map", (threads, "threads"), len(self.s)),
            ("map", (fragment_bytes // self.access_bytes, "accesses of a thread"), accesses),
            ("layout", (size, "elements"), size if self.size is None else self.size),
        ):
            if compiled[0] != model:
                raise LayoutError(
                    f"the compiled {name} has {compiled[0]} {compiled[1]} and its model {model}; they describe "
                    "different tiles"
                )
        if self.size is None and self.places[self.covered].max() >= size:
            raise LayoutError(
                f"the compiled layout has {size} elements, and its model puts one at {self.places[self.covered].max()}"
            )

    def expected(self, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(shared memory, fragments), as OwnProbe has them, of a layout of so many elements."""
        elements = _split(rows, self.bits)
        at = self._elements()[self.covered]
        moved = elements[at[..., 0], at[..., 1]]
        image = _split(np.full(-(-size * self.stages * self.bits // 8), POISON, np.uint8), self.bits)
        image[(self.stages - 1) * size + self.places[self.covered]] = moved
        fragments = np.zeros((*self.s.shape, self.access, *elements.shape[2:]), elements.dtype)
        fragments[self.covered] = moved
        return _join(image, self.bits), _join(fragments, self.bits).reshape(len(self.s), -1)

    def differences_of_shared(self, found: np.ndarray, wanted: np.ndarray, size: int) -> Iterator[str]:
        """A sentence for each byte of shared memory that differs."""
        owner = {}
        for place, element in zip(
            self.places[self.covered].reshape(-1), self._elements()[self.covered].reshape(-1, 2), strict=True
        ):
            owner[int(place)] = tuple(map(int, element))
        for byte in np.flatnonzero(found != wanted):
            stage, place = divmod(int(byte) * 8 // self.bits, size)
            whose = owner.get(place) if stage == self.stages - 1 else None
            words = "where it puts nothing" if whose is None else f"of token {whose[0]}, channel {whose[1]}"
            yield (
                f"shared memory, byte {byte} (element {place} of stage {stage}): {found[byte]:#04x}; the model has "
                f"{wanted[byte]:#04x}, {words}"
            )

    def differences_of_fragments(self, found: np.ndarray, wanted: np.ndarray) -> Iterator[str]:
        """A sentence for each byte of the threads' fragments that differs."""
        for thread, byte in np.argwhere(found != wanted):
            access = int(byte) // self.access_bytes
            s, c = int(self.s[thread, access]), int(self.c[thread, access])
            yield (
                f"fragment of warp {thread // WARP}, lane {thread % WARP}, byte {byte} (access {access}, in the model "
                f"from token {s}, channel {c} on): {found[thread, byte]:#04x}; the model has "
                f"{wanted[thread, byte]:#04x}"
            )


def _split(data: np.ndarray, bits: int) -> np.ndarray:
    """Elements of bytes along the last axis: [..., elements, bytes of one], or their values where they have 4 bits."""
    if bits == 4:
        return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)
    return data.reshape(*data.shape[:-1], -1, bits // 8)


def _join(elements: np.ndarray, bits: int) -> np.ndarray:
    """The other way: all bytes, one after another."""
    if bits == 4:
        pairs = elements.reshape(-1, 2)
        return (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8)
    return np.ascontiguousarray(elements).reshape(-1)
