"""Memory of a device between fences: at any address that a call may be given, and what lies around it is looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import kvit
from kvit import reference

_POOLS = ("k", "v", "k_params", "v_params")
_FENCE = 512  # bytes on either side
_STEP = 16  # what rows are aligned to


class Fenced:
    """Arrays that were copied to a device, each at an address that is drawn, between bytes of a pattern."""

    def __init__(self, rng: np.random.Generator, device: str):
        self._rng, self._device = rng, device
        self._kept: list[tuple[str, kvit.Buffer, np.ndarray, int, int]] = []

    def place(self, name: str, array: np.ndarray) -> kvit.Tensor:
        """A copy of `array`, dense, between two fences."""
        array = np.ascontiguousarray(array)
        # What is there before matters to whoever reads it: NaN, zeros, large numbers, or page ids that look right.
        pattern = self._rng.integers(0, 256, 4) if self._rng.integers(2) else self._rng.choice([0xFF, 0, 0x7F, 1])
        begin = _FENCE + _STEP * int(self._rng.integers(0, 17))
        size = begin + array.nbytes + _FENCE
        memory = np.resize(np.asarray(pattern, np.uint8), size)
        memory[begin : begin + array.nbytes] = array.reshape(-1).view(np.uint8)
        buffer = kvit.Buffer.from_numpy(memory, self._device)
        self._kept.append((name, buffer, memory, begin, array.nbytes))
        dtype = kvit.Buffer.from_numpy(array[:0] if array.ndim else array, "host").dtype
        return kvit.Tensor.from_pointer(buffer.pointer + begin, array.shape, dtype, self._device, owner=buffer)

    def bytes_of(self, tensor: kvit.Tensor) -> np.ndarray:
        """What a placed tensor holds now, as bytes."""
        for _, buffer, _, begin, num_bytes in self._kept:
            if buffer.pointer + begin == tensor.pointer:
                return buffer.numpy()[begin : begin + num_bytes]
        raise AssertionError("this tensor was not placed here")

    def assert_untouched(self, *written: kvit.Tensor) -> None:
        """All that was placed holds what it held, but for these tensors; all fences do."""
        written_at = {tensor.pointer for tensor in written}
        for name, buffer, before, begin, num_bytes in self._kept:
            now = buffer.numpy()
            same = now == before
            if buffer.pointer + begin in written_at:
                same[begin : begin + num_bytes] = True
            wrong = np.flatnonzero(~same)
            assert not len(wrong), f"{len(wrong)} bytes of or around {name} changed; the first at {wrong[0] - begin}"


class FencedCache:
    """A cache in the reference's words, and a copy of it between fences on a device."""

    def __init__(self, memory: Fenced, cache: reference.Cache, dtype: np.dtype, name: str = "cache"):
        self.memory, self.cache = memory, cache
        arrays = {x: array for x in _POOLS if (array := getattr(cache, x)) is not None}
        self.pools = {x: memory.place(f"{name}.{x}", array) for x, array in arrays.items()}
        words = {
            f"{side}_params": f"{side}_{'scale' if codec.is_scaled else 'params'}"
            for side, codec in (("k", cache.k_codec), ("v", cache.v_codec))
        }
        self.view = kvit.CacheView(
            **{words.get(x, x): pool for x, pool in self.pools.items()},
            layout=cache.layout, kv=(cache.k_codec.name, cache.v_codec.name), dtype=dtype.name,
        )  # fmt: skip

    def written(self) -> list[kvit.Tensor]:
        """What an operation on pages may write: all but the scales of float8."""
        return [pool for pool in self.pools.values() if pool.dtype != np.float32]

    def now(self) -> reference.Cache:
        """What the device holds."""
        found = {
            x: self.memory.bytes_of(pool).view(getattr(self.cache, x).dtype).reshape(getattr(self.cache, x).shape)
            for x, pool in self.pools.items()
        }
        return replace(self.cache, **found)

    def copied(self) -> reference.Cache:
        """What it held at first, to be changed."""
        return replace(self.cache, **{x: getattr(self.cache, x).copy() for x in self.pools})


def places_alike(ours: reference.Cache, other: reference.Cache) -> np.ndarray:
    """[page, token] whether all bytes of a place, and of parameters that it has of its own, are the same in both."""
    same = np.ones((ours.num_pages, ours.page_size), bool)
    for mine, theirs in zip(ours.stores(), other.stores(), strict=True):
        pairs = [(mine.data, theirs.data)]
        if mine.params is not None and theirs.params is not None and not mine.codec.is_scaled:
            pairs.append((mine.params, theirs.params))
        for a, b in pairs:
            same &= (_bytes(a, same.shape) == _bytes(b, same.shape)).all(axis=2)
    return same


def _bytes(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8).reshape(*shape, -1)
