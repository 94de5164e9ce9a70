"""Operations as sets of named memory, so that any two of their arguments can be laid over each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

import kvit
from kvit import dtypes


@dataclass
class Call:
    """One call: what each argument holds, which ones are written, and how it is made of tensors of the same names."""

    contents: dict[str, np.ndarray]
    written: tuple[str, ...]
    make: Callable[[dict[str, kvit.Tensor]], Any]  # returns the operation, or None where nothing can be asked of it
    names: dict[str, Any] = field(default_factory=dict)  # dtypes that numpy has no type for


class Place(NamedTuple):
    """Where an argument lies: bytes from the beginning of a block, and strides."""

    block: int
    offset: int
    strides: tuple[int, ...]


class Layout:
    """Blocks of bytes, in numpy and on a device, and where in them each argument of a call lies."""

    def __init__(self, call: Call, places: dict[str, Place], sizes: list[int], device: str):
        self.call, self.places, self.device = call, places, device
        self.before = [np.full(size, 0x3C, np.uint8) for size in sizes]  # small positive numbers, in every float type
        # What is written by the call goes in last: it may matter, as the other pages of a cache do.
        for name in sorted(call.contents, key=lambda name: name in call.written):
            self._seen(self.before, name)[...] = call.contents[name]
        self.blocks = [kvit.Buffer.from_numpy(block, device) for block in self.before]
        self.after = self.before

    def _seen(self, blocks: list[np.ndarray], name: str) -> np.ndarray:
        """An argument, in place."""
        place, content = self.places[name], self.call.contents[name]
        memory = blocks[place.block][place.offset :]
        memory = memory[: memory.nbytes // content.itemsize * content.itemsize].view(content.dtype)
        return as_strided(memory, content.shape, place.strides)

    def held(self) -> dict[str, np.ndarray]:
        """What each argument holds before the call, after all have been laid into the blocks."""
        return {name: self._seen(self.before, name).copy() for name in self.call.contents}

    def run(self) -> Any:
        """The call, on tensors in the blocks. What it raises goes to the caller; the blocks are read either way."""
        tensors = {
            name: kvit.Tensor.from_pointer(
                self.blocks[place.block].pointer + place.offset, content.shape,
                self.call.names.get(name, dtypes.dtype_of(content.dtype)), self.device,
                strides=place.strides, owner=self.blocks[place.block],
            )
            for name, place in self.places.items()
            for content in [self.call.contents[name]]
        }  # fmt: skip
        try:
            return self.call.make(tensors)
        finally:
            kvit.Stream.default(self.device).synchronize()
            self.after = [block.numpy() for block in self.blocks]

    def results(self) -> dict[str, np.ndarray]:
        """The bytes of what the call wrote."""
        return {name: np.ascontiguousarray(self._seen(self.after, name)).view(np.uint8) for name in self.call.written}

    def changed_beside(self) -> int:
        """How many bytes changed that no argument of the call is written to."""
        mine = [np.zeros(block.nbytes, bool) for block in self.before]
        for name in self.call.written:
            place, content = self.places[name], self.call.contents[name]
            at = place.offset + sum(
                np.arange(count).reshape([-1 if i == axis else 1 for i in range(content.ndim)]) * stride
                for axis, (count, stride) in enumerate(zip(content.shape, place.strides, strict=True))
            )
            for byte in range(content.itemsize):
                mine[place.block][(at + byte).reshape(-1)] = True
        return sum(
            int(((now != old) & ~own).sum()) for now, old, own in zip(self.after, self.before, mine, strict=True)
        )


def dense(content: np.ndarray) -> tuple[int, ...]:
    """Strides of a dense array in bytes."""
    return np.empty(content.shape, content.dtype).strides


def apart(call: Call, device: str) -> Layout:
    """Every argument in a block of its own."""
    names = list(call.contents)
    places = {name: Place(i, 0, dense(call.contents[name])) for i, name in enumerate(names)}
    return Layout(call, places, [call.contents[name].nbytes + 16 for name in names], device)


def over(call: Call, first: str, second: str, distance: int, device: str) -> Layout:
    """`second` begins `distance` bytes behind `first` (before it, if negative), in one block; all else apart."""
    layout_places, sizes = {}, [0]
    begin = {first: max(0, -distance), second: max(0, distance)}
    for name, content in call.contents.items():
        if name in begin:
            layout_places[name] = Place(0, begin[name], dense(content))
            sizes[0] = max(sizes[0], begin[name] + content.nbytes + 16)
        else:
            layout_places[name] = Place(len(sizes), 0, dense(content))
            sizes.append(content.nbytes + 16)
    return Layout(call, layout_places, sizes, device)


def side_by_side(call: Call, first: str, second: str, device: str) -> Layout:
    """Rows of both in turn, as slices of one packed tensor: no byte is shared. All else apart."""
    a, b = call.contents[first], call.contents[second]
    width = sum(-(-x[0].nbytes // 16) * 16 for x in (a, b))
    found = apart(call, device)
    places, sizes = dict(found.places), [block.nbytes for block in found.before]
    sizes.append(width * max(len(a), len(b)) + 16)
    places[first] = Place(len(sizes) - 1, 0, (width, *dense(a)[1:]))
    places[second] = Place(len(sizes) - 1, -(-a[0].nbytes // 16) * 16, (width, *dense(b)[1:]))
    return Layout(call, places, sizes, device)
