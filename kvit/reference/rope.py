"""Rotary position embedding: frequencies of every variant, and how rows turn, bit for bit as kernels do it.

Phases are integers, in units of 2^-64 turns, so that a position of a million is as exact as one of a hundred. What
follows is float32, each operation rounded to nearest even by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .norm import RowNorm, normalise

_RADIANS = np.float32(float.fromhex("0x1.921fb6p-30"))  # of 2^-32 turns
# Least greatest errors over an eighth of a turn, of x^3 (...) = sin(x) - x and x^4 (...) = cos(x) - 1 + x^2 / 2.
_SINE = tuple(np.float32(float.fromhex(text)) for text in ("-0x1.98da66p-13", "0x1.1105b4p-7", "-0x1.555540p-3"))
_COSINE = tuple(np.float32(float.fromhex(text)) for text in ("0x1.9a025ap-16", "-0x1.6c0c8cp-10", "0x1.55554ap-5"))
_HALF, _ONE = np.float32(0.5), np.float32(1)


@dataclass(frozen=True)
class Rotation:
    """How rows turn.

    steps             [rotary_dim / 2] what pair i turns by per token, in units of 2^-64 turns
    interleaved       pair i is channels (2 i, 2 i + 1); else (i, i + rotary_dim / 2)
    attention_factor  of cosines and sines
    axes              [rotary_dim / 2] which row of positions [3, tokens] turns pair i; None: positions have one axis
    """

    steps: Sequence[int]
    interleaved: bool = False
    attention_factor: float = 1.0
    axes: Sequence[int] | None = None

    @classmethod
    def of(
        cls,
        inverse_frequencies: ArrayLike,
        interleaved: bool = False,
        attention_factor: float = 1.0,
        axes: Sequence[int] | None = None,
    ) -> Rotation:
        """The rotation of pairs that turn by so many radians per token."""
        turns = np.asarray(inverse_frequencies, np.float64) / (2 * math.pi)
        return cls([round(float(turn) * 2.0**64) % 2**64 for turn in turns], interleaved, attention_factor, axes)

    def of_pairs(self, positions: ArrayLike) -> NDArray[np.int64]:
        """[tokens, rotary_dim / 2] the position that turns each pair, of positions [tokens] or [3, tokens]."""
        found = np.asarray(positions, np.int64)
        if found.ndim == 1:  # of text: every axis has the same
            return np.broadcast_to(found[:, None], (len(found), len(self.steps)))
        assert self.axes is not None, "positions on three axes need a rotation with axes"
        return found[list(self.axes)].T


Last: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""What rows pass through in float32 before they are rounded."""


def cosine_and_sine(phases: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of phase / 2^32 turns, to within 1.3e-7."""
    with np.errstate(over="ignore"):  # phases wrap around
        quarter = (phases + np.uint32(1 << 29)) >> np.uint32(30)  # the nearest
        rest = (phases - (quarter << np.uint32(30))).view(np.int32)
    x = rest.astype(np.float32) * _RADIANS
    z = x * x
    sine = x + (x * z) * (z * (z * _SINE[0] + _SINE[1]) + _SINE[2])
    cosine = (_ONE + z * -_HALF) + (z * z) * (z * (z * _COSINE[0] + _COSINE[1]) + _COSINE[2])
    is_odd = (quarter & 1).astype(bool)
    c, s = np.where(is_odd, sine, cosine), np.where(is_odd, cosine, sine)
    return np.where((quarter + 1) & 2, -c, c), np.where(quarter & 2, -s, s)


def rotate(
    x: NDArray,
    positions: ArrayLike,
    rotation: Rotation,
    bias: NDArray | None = None,
    norm: RowNorm | None = None,
    last: Last | None = None,
) -> NDArray:
    """Rows x [tokens, heads, head_dim], with `bias` [heads, head_dim] added, normalised, and turned to their positions.

    positions  [tokens], or [3, tokens] of a rotation with axes
    last       what rows pass through behind it, in float32: a KeySmoothing's `of_keys` or `of_queries`

    In float32, then rounded to x's dtype: as if the rows had been changed before whatever uses them.
    """
    rows = _prepared(x, bias, norm, 2 * len(rotation.steps))
    steps = np.array(rotation.steps, np.uint64)
    with np.errstate(over="ignore"):
        phases = rotation.of_pairs(positions).astype(np.uint64) * steps >> np.uint64(32)
    factor = np.float32(rotation.attention_factor)
    cosine, sine = (part[:, None] * factor for part in cosine_and_sine(phases.astype(np.uint32)))
    pairs = len(steps)
    channels = np.arange(2 * pairs).reshape((pairs, 2) if rotation.interleaved else (2, pairs))
    first, second = (channels[:, 0], channels[:, 1]) if rotation.interleaved else channels
    a, b = rows[..., first], rows[..., second]
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, as on a GPU
        rows[..., first], rows[..., second] = a * cosine - b * sine, b * cosine + a * sine
    with np.errstate(over="ignore", invalid="ignore"):
        return (rows if last is None else last(rows)).astype(x.dtype)


def biased(x: NDArray, bias: NDArray | None, norm: RowNorm | None = None, last: Last | None = None) -> NDArray:
    """Rows x [tokens, heads, head_dim] with `bias` [heads, head_dim] added in float32, normalised, and `last` as rotate
    has it; the same bits without any.
    """
    if bias is None and norm is None and last is None:
        return x
    with np.errstate(over="ignore", invalid="ignore"):
        rows = _prepared(x, bias, norm, 0)
        return (rows if last is None else last(rows)).astype(x.dtype)


def _prepared(x: NDArray, bias: NDArray | None, norm: RowNorm | None, rotary_dim: int) -> NDArray[np.float32]:
    """What rows are before they turn, in float32."""
    rows = x.astype(np.float32)
    if bias is not None:
        rows = rows + bias.astype(np.float32)
    return rows if norm is None else normalise(rows, norm, rotary_dim)


def default_frequencies(base: float, rotary_dim: int) -> NDArray[np.float64]:
    """Radians per token of each pair: base^(-2 i / rotary_dim). Su et al., RoFormer, 2021."""
    return np.array([1.0 / base ** (2 * i / rotary_dim) for i in range(rotary_dim // 2)])


def linear_frequencies(base: float, rotary_dim: int, factor: float) -> NDArray[np.float64]:
    """Positions in units of `factor` tokens. Chen et al., Position Interpolation, 2023."""
    return default_frequencies(base, rotary_dim) / factor


def ntk_frequencies(base: float, rotary_dim: int, factor: float) -> NDArray[np.float64]:
    """A base for which the slowest pair turns `factor` times slower and the fastest as before. bloc97, 2023."""
    return default_frequencies(base * factor ** (rotary_dim / (rotary_dim - 2)), rotary_dim)


def yarn_frequencies(
    base: float,
    rotary_dim: int,
    factor: float,
    original_length: float,
    *,
    beta_fast: float = 32,
    beta_slow: float = 1,
    truncate: bool = True,
) -> NDArray[np.float64]:
    """Pairs that turn more than beta_fast times within the original length keep their speed; those below beta_slow turn
    `factor` times slower; a ramp over the pairs between them. Peng et al., YaRN, 2023.
    """
    frequencies = default_frequencies(base, rotary_dim)
    first, last = (
        rotary_dim * math.log(original_length / (2 * math.pi * turns)) / (2 * math.log(base))
        for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    slowed = np.clip((np.arange(rotary_dim // 2) - first) / (last - first or 0.001), 0, 1)
    return frequencies / factor * slowed + frequencies * (1 - slowed)


def yarn_attention_factor(factor: float) -> float:
    """What YaRN multiplies cosines and sines by: scores grow by its square."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def llama3_frequencies(
    base: float, rotary_dim: int, factor: float, low: float, high: float, original_length: float
) -> NDArray[np.float64]:
    """Pairs that turn fewer than `low` times within the original length turn `factor` times slower, those above `high`
    keep their speed, and between them it is interpolated. Llama 3.1.
    """
    frequencies = default_frequencies(base, rotary_dim)
    kept = np.clip((original_length * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


def longrope_frequencies(base: float, rotary_dim: int, factors: ArrayLike) -> NDArray[np.float64]:
    """Each pair turns slower by a factor of its own, found by search: short ones within the original length, long ones
    for every position of a sequence that is longer. Ding et al., LongRoPE, 2024.
    """
    return default_frequencies(base, rotary_dim) / np.asarray(factors, np.float64)


def longrope_attention_factor(factor: float, original_length: float) -> float:
    """What LongRoPE multiplies cosines and sines by."""
    return math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1 else 1.0


def proportional_frequencies(base: float, rotary_dim: int, share: float, factor: float = 1.0) -> NDArray[np.float64]:
    """The fastest pairs turn as they would in a row that turns as a whole; the others, beyond `share`, not at all."""
    turning = np.arange(rotary_dim // 2) < int(share * rotary_dim // 2)
    return np.where(turning, default_frequencies(base, rotary_dim) / factor, 0.0)


def chunked_axes(section: Sequence[int]) -> list[int]:
    """Axes of pairs: time, height and width have so many each, one after another. Wang et al., Qwen2-VL, 2024."""
    return np.repeat(np.arange(len(section)), section).tolist()


def interleaved_axes(section: Sequence[int], pairs: int) -> list[int]:
    """Time, height, width, time, ...; height and width until they have their share, time for all that is left."""
    axes = np.zeros(pairs, np.int64)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes.tolist()
