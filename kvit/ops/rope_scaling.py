"""How fast each pair of channels turns: the scalings of rotary positions that model configurations name."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

_ORIGINAL = "original_max_position_embeddings"
# Every scaling, and the numbers that it knows. What it knows not is refused, but for a length that changes nothing.
_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "ntk": ("factor",),
    "dynamic": ("factor", _ORIGINAL, "length"),
    "yarn": ("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": (
        *("short_factor", "long_factor", _ORIGINAL, "length", "factor", "attention_factor"),
        *("short_mscale", "long_mscale"),
    ),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "proportional": ("partial_rotary_factor", "factor"),
}
_AXES = ("mrope_section", "mrope_interleaved")  # with any of them
_ALWAYS = ("rope_type", "type", _ORIGINAL)
_OLDER_NAMES = {"mrope": "default", "su": "longrope"}  # of Qwen2-VL and Phi-3
NUM_AXES = 3
"""Axes of positions of images and video: time, height, width."""


class Scaling:
    """A scaling of one base and rotary_dim, given as kvit.Rope takes it.

    kind                 its rope_type
    inverse_frequencies  radians per token, one for each pair
    attention_factor     of cosines and sines
    axes                 of each pair, which axis of positions turns it; None where there is one

    Raises ValueError.
    """

    def __init__(self, base: float, rotary_dim: int, given: Mapping[str, Any]):
        self.base, self.rotary_dim, self.given = base, rotary_dim, given
        self.kind = _kind_of(given)
        self.attention_factor = 1.0
        self.inverse_frequencies: list[float] = getattr(self, f"_{self.kind}")()
        self.axes = None if given.get("mrope_section") is None else self._axes()

    def _default(self) -> list[float]:
        return frequencies(self.base, self.rotary_dim)

    def _linear(self) -> list[float]:
        factor = self._number("factor")
        return [frequency / factor for frequency in self._default()]

    def _ntk(self) -> list[float]:
        return self._with_base_for(self._number("factor"))

    def _dynamic(self) -> list[float]:
        original = self._number(_ORIGINAL)
        factor = self._number("factor")
        length = max(self._number("length"), original)
        return self._with_base_for(factor * length / original - (factor - 1))

    def _with_base_for(self, factor: float) -> list[float]:
        # The slowest pair turns `factor` times slower, the fastest as before.
        return frequencies(self.base * factor ** (self.rotary_dim / (self.rotary_dim - 2)), self.rotary_dim)

    def _yarn(self) -> list[float]:
        factor = self._number("factor")
        self.attention_factor = self._yarn_attention_factor(factor)
        first = self._pair_that_turns(self._number("beta_fast") if self.given.get("beta_fast") else 32)
        last = self._pair_that_turns(self._number("beta_slow") if self.given.get("beta_slow") else 1)
        if self.given.get("truncate", True):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.rotary_dim - 1)
        width = last - first or 0.001
        found = []
        for i, frequency in enumerate(self._default()):
            slowed = min(max((i - first) / width, 0.0), 1.0)  # 0: turns often within the original context, and stays
            found.append(frequency / factor * slowed + frequency * (1 - slowed))
        return found

    def _pair_that_turns(self, times: float) -> float:
        """The pair, as a real number, that turns so many times within the original context."""
        tokens = self._number(_ORIGINAL)
        return self.rotary_dim * math.log(tokens / (times * 2 * math.pi)) / (2 * math.log(self.base))

    def _yarn_attention_factor(self, factor: float) -> float:
        if self.given.get("attention_factor") is not None:
            return float(self._number("attention_factor"))

        def growth(weight: float) -> float:
            return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

        if not self.given.get("mscale") or not self.given.get("mscale_all_dim"):
            return growth(1.0)
        return growth(self._number("mscale")) / growth(self._number("mscale_all_dim"))

    def _longrope(self) -> list[float]:
        original = self._number(_ORIGINAL)
        is_long = self._number("length") > original
        short, long = self._of_each_pair("short_factor"), self._of_each_pair("long_factor")
        if self.given.get("short_mscale") is not None or self.given.get("long_mscale") is not None:  # Phi-3.5-MoE
            mscales = self._number("short_mscale"), self._number("long_mscale")
            self.attention_factor = mscales[is_long]
        elif self.given.get("attention_factor") is not None:
            self.attention_factor = self._number("attention_factor")
        else:
            factor = self._number("factor")
            self.attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return [f / slower for f, slower in zip(self._default(), long if is_long else short, strict=True)]

    def _llama3(self) -> list[float]:
        factor, tokens = self._number("factor"), self._number(_ORIGINAL)
        low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
        if not low < high:
            raise ValueError(f"low_freq_factor is {low} and high_freq_factor {high}; the first must be the smaller")
        found = []
        for frequency in self._default():
            turns = tokens * frequency / (2 * math.pi)  # within the original context
            kept = min(max((turns - low) / (high - low), 0.0), 1.0)
            found.append((1 - kept) * frequency / factor + kept * frequency)
        return found

    def _proportional(self) -> list[float]:
        share = self._number("partial_rotary_factor") if self.given.get("partial_rotary_factor") is not None else 1.0
        if share > 1:
            raise ValueError(f"partial_rotary_factor is {share}; it must be a share of the pairs, of at most 1")
        factor = self._number("factor") if self.given.get("factor") is not None else 1.0
        turning = int(share * self.rotary_dim // 2)
        return [f / factor if i < turning else 0.0 for i, f in enumerate(self._default())]

    def _axes(self) -> list[int]:
        section, takes_turns = self.given["mrope_section"], bool(self.given.get("mrope_interleaved"))
        is_list = isinstance(section, Sequence) and not isinstance(section, str) and len(section) == NUM_AXES
        pairs = self.rotary_dim // 2
        is_section = is_list and all(_is_count(number) for number in section)
        if not is_section or not (sum(section) == pairs or (takes_turns and sum(section) < pairs)):
            raise ValueError(
                f"mrope_section is {section!r}; it must be {NUM_AXES} numbers of pairs, of time, height and width, and "
                f"together the {pairs} of rotary_dim {self.rotary_dim}"
            )
        if not takes_turns:
            return [axis for axis, count in enumerate(section) for _ in range(count)]
        # time, height, width, time, ...; an axis that has had its share leaves its places to time
        return [i % NUM_AXES if i < NUM_AXES * section[i % NUM_AXES] else 0 for i in range(pairs)]

    def _of_each_pair(self, name: str) -> list[float]:
        found, pairs = self.given.get(name), self.rotary_dim // 2
        if found is None:
            raise ValueError(f"rope_type {self.kind} needs {name}; scaling has {sorted(self.given)}")
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != pairs:
            what = f"{len(found)} numbers" if isinstance(found, Sequence) else repr(found)
            raise ValueError(
                f"{name} is {what}; it must be a number for each of the {pairs} pairs of rotary_dim {self.rotary_dim}"
            )
        for i, number in enumerate(found):
            _require_positive(f"{name}[{i}]", number)
        return [float(number) for number in found]

    def _number(self, name: str) -> float:
        found = self.given.get(name)
        if found is None:
            raise ValueError(f"rope_type {self.kind} needs {name}; scaling has {sorted(self.given)}")
        _require_positive(name, found)
        return float(found)


def frequencies(base: float, rotary_dim: int) -> list[float]:
    """Radians per token of each pair, before scaling."""
    return [1.0 / base ** (2 * i / rotary_dim) for i in range(rotary_dim // 2)]


def _require_positive(name: str, given: Any) -> None:
    if not isinstance(given, numbers.Real) or isinstance(given, bool) or not 0 < given < math.inf:
        raise ValueError(f"{name} is {given!r}; it must be a number greater than 0, and finite")


def _is_count(given: Any) -> bool:
    return isinstance(given, numbers.Integral) and not isinstance(given, bool) and given >= 0


def _kind_of(scaling: Mapping[str, Any]) -> str:
    """rope_type, with nothing beside it that it would leave out. Raises ValueError."""
    given = {name for name, value in scaling.items() if value is not None}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind is None and given - {*_ALWAYS, *_AXES, "length"}:
        raise ValueError(f"scaling has {', '.join(sorted(given))} and no rope_type; add one of {', '.join(_SCALINGS)}")
    kind = "default" if kind is None else _OLDER_NAMES.get(kind, kind)
    if kind not in _SCALINGS:
        raise ValueError(f"rope_type is {kind!r}; known are {', '.join(_SCALINGS)}")
    strangers = given - {*_ALWAYS, *_AXES, *_SCALINGS[kind]} - {"length"}
    if strangers:
        raise ValueError(
            f"scaling has {', '.join(sorted(strangers))}, which rope_type {kind} does not know; it knows "
            f"{', '.join(_SCALINGS[kind]) or 'no number'}"
        )
    if scaling.get("mrope_interleaved") and "mrope_section" not in given:
        raise ValueError("scaling has mrope_interleaved and no mrope_section; give the pairs of each axis")
    return str(kind)
