"""Compares what a device computed with what kvit.reference defines: bit for bit, or within what rounding explains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Half the distance from 1 to the next number: the largest relative error of one rounding to nearest.
_UNIT_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}

# Scores are sums in float32 that tensor cores truncate at about 2**-22 of the largest term, once for each of at most 16
# matrix steps; with random inputs of order one, terms stay below 16.
LSE_BOUND = 16 * 16 * 2.0**-22

# With coded keys the products carry an offset of up to 1024 under codes up to 255, so a step may lose 2**-22 of a sum
# some five times the scores' range: a thousandth of a unit covers it with channels and scores of order ten.
CODED_SCORE_BOUND = 2.0**-9


class Mismatch(Exception):
    """A device's result is not what the reference says. The message gives the worst element."""


class Digest:
    """A SHA-256 of results: of the name, dtype, shape and bits of each, in their order."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, name: str, result: NDArray) -> None:
        """Go on with one more result."""
        array = np.ascontiguousarray(result)
        self._sha256.update(f"{name} {array.dtype.name} {np.shape(result)}\n".encode())
        self._sha256.update(array.tobytes())

    def __str__(self) -> str:
        return self._sha256.hexdigest()


_open_digests: list[Digest] = []


@contextmanager
def digest_of_results() -> Iterator[Digest]:
    """A digest of every result that is compared meanwhile, whatever comes of it."""
    digest = Digest()
    _open_digests.append(digest)
    try:
        yield digest
    finally:
        _open_digests.remove(digest)


def _take_down(name: str, actual: NDArray) -> None:
    for digest in _open_digests:
        digest.add(name, actual)


def attention_bound(magnitude: NDArray, dtype: DTypeLike) -> NDArray:
    """Largest |error| of each output of attention.

    magnitude  attention over |v| instead of v

    The weights are rounded to the dtype before they meet V, and the output once more: two roundoffs, and a quarter for
    all that happens in float32.
    """
    return 2.25 * _UNIT_ROUNDOFF[np.dtype(dtype).name] * magnitude


def merge_bound(outs: Sequence[NDArray], dtype: DTypeLike) -> NDArray:
    """Largest |error| of merge_states: a mean in float32, rounded once to the dtype.

    outs  of the parts; zeros where a part saw no key

    Of float32's roundings there are a few of each weight, and two for each part: of the sums of weights and of values.
    """
    largest = np.max([np.abs(np.asarray(out, np.float64)) for out in outs], axis=0)
    return (_UNIT_ROUNDOFF[np.dtype(dtype).name] + (12 + 2 * len(outs)) * _UNIT_ROUNDOFF["float32"]) * largest


def expect_same(name: str, actual: NDArray, expected: NDArray) -> None:
    """Raise Mismatch unless both have the same bits."""
    _take_down(name, actual)
    found, wanted = (np.ascontiguousarray(array).view(np.uint8) for array in (actual, expected))
    if actual.shape != expected.shape:
        raise Mismatch(f"{name} has shape {actual.shape}, the reference {expected.shape}")
    differs = (found != wanted).reshape(*actual.shape, -1).any(axis=-1) if actual.size else np.zeros(0, bool)
    if differs.any():
        at = tuple(int(i) for i in np.argwhere(differs)[0])
        raise Mismatch(
            f"{name}: {np.count_nonzero(differs)} of {differs.size} elements differ; the first at {at}: "
            f"{actual[at]} instead of {expected[at]}"
        )


def expect_close(name: str, actual: NDArray, expected: NDArray, bound: NDArray | float) -> None:
    """Raise Mismatch unless every element is within its bound, and NaN and infinity exactly where they are expected."""
    _take_down(name, actual)
    if actual.shape != expected.shape:
        raise Mismatch(f"{name} has shape {actual.shape}, the reference {expected.shape}")
    found, wanted = np.asarray(actual).astype(np.float64), np.asarray(expected).astype(np.float64)
    special = ~np.isfinite(wanted)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    error = np.abs(np.where(special, 0.0, found) - np.where(special, 0.0, wanted))
    is_off = np.where(special, ~same, ~(error <= bound))  # not `error > bound`: a NaN is off
    if is_off.any():
        excess = np.where(is_off, np.nan_to_num(error - bound, nan=np.inf, posinf=np.inf), -np.inf)
        at = tuple(int(i) for i in np.unravel_index(np.argmax(excess), excess.shape))
        allowed = float(np.broadcast_to(bound, found.shape)[at])
        raise Mismatch(
            f"{name}: {np.count_nonzero(is_off)} of {is_off.size} elements are off; the worst at {at}: "
            f"{found[at]} instead of {wanted[at]}, allowed is a difference of {allowed:.3g}"
        )


def expect(condition: bool, message: str) -> None:
    """Raise Mismatch with the message unless the condition holds."""
    if not condition:
        raise Mismatch(message)
