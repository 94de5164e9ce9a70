"""Rotary position embedding: how fast each pair of channels turns, in every variant that model configurations name."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from kvit import _checks
from kvit.errors import ShapeError
from kvit.ops.rope_config import read

_TURN = 2.0**64  # steps per turn: phases wrap around where unsigned 64-bit numbers do
_DYNAMIC = ("factor", "original_max_position_embeddings", "length")
_SLOWING = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
_BANDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Every scaling, and the numbers that it knows. What it knows not is refused, but for a length that changes nothing.
_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "ntk": ("factor",),
    "dynamic": _DYNAMIC,
    "yarn": (*_SLOWING, "mscale", "mscale_all_dim", "truncate"),
    "llama3": _BANDS,
}
_ALWAYS = ("rope_type", "type", "original_max_position_embeddings")


class Rope(_checks.Made):
    """How the pairs of channels of a row turn with its position.

    head_dim     channels of a row
    base         pair i turns by base^(-2 i / rotary_dim) radians per token, before scaling; rope_theta of models
    rotary_dim   leading channels that turn, a multiple of 16; all of them if absent. The others stay as they are
    interleaved  pairs are channels (2 i, 2 i + 1); else (i, i + rotary_dim / 2), the halves of NeoX and Llama
    scaling      how frequencies change for longer contexts, a dictionary as `rope_scaling` of configurations is: its
                 rope_type is one of
                   default                       as they are
                   linear   factor               positions in units of `factor` tokens
                   ntk      factor               NTK-aware: base * factor^(d / (d - 2)), d = rotary_dim
                   dynamic  factor, original_max_position_embeddings, length
                                                 the same with the factor that `length` tokens need beyond the original
                   yarn     factor, original_max_position_embeddings; if wanted attention_factor, beta_fast, beta_slow,
                            mscale, mscale_all_dim, truncate
                   llama3   factor, low_freq_factor, high_freq_factor, original_max_position_embeddings

    inverse_frequencies  radians per token, one for each pair
    steps                the same in units of 2^-64 turns: position * step, modulo 2^64, is exact at any position
    attention_factor     what cosines and sines are multiplied by: 1, but for yarn

    Raises ShapeError (head_dim, rotary_dim), ValueError (a scaling that is unknown, lacks a number, or has one that its
    rope_type does not know).
    Defined by kvit.reference.rope. Su et al., RoFormer, 2021; Chen et al., Position Interpolation, 2023; bloc97,
    NTK-aware scaled RoPE, 2023; Peng et al., YaRN, 2023; Llama 3.1.
    """

    def __init__(
        self,
        head_dim: int,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        interleaved: bool = False,
        scaling: Mapping[str, Any] | None = None,
    ):
        head_dim = _checks.whole("head_dim", head_dim)
        rotary_dim = head_dim if rotary_dim is None else _checks.whole("rotary_dim", rotary_dim)
        if not 16 <= rotary_dim <= head_dim or rotary_dim % 16:
            raise ShapeError(f"rotary_dim is {rotary_dim}; it must be a multiple of 16 from 16 to head_dim, {head_dim}")
        if not 1 < _checks.number("base", base) < math.inf:
            raise ValueError(f"base is {base}; it must be greater than 1 and finite, as 10000 or 500000 are")
        self.head_dim = head_dim
        self.base = float(base)
        self.rotary_dim = rotary_dim
        self.interleaved = _checks.flag("interleaved", interleaved)
        if scaling is not None and not isinstance(scaling, Mapping):
            raise TypeError(f"scaling is a {type(scaling).__name__}; give a dictionary, as rope_scaling is")
        self.scaling: dict[str, Any] = dict(scaling or {})
        kind = _kind_of(self.scaling)
        self.scaling_type: str = kind
        self.attention_factor = 1.0
        frequencies = getattr(self, f"_{kind}")()
        self.inverse_frequencies: tuple[float, ...] = tuple(frequencies)
        self.steps: tuple[int, ...] = tuple(
            round(frequency / (2 * math.pi) * _TURN) % (1 << 64) for frequency in frequencies
        )

    @classmethod
    def from_config(
        cls,
        config: Any,
        *,
        interleaved: bool | None = None,
        length: int | None = None,
        layer_type: str | None = None,
    ) -> Rope:
        """The rope that a model's configuration describes.

        config       a dictionary, as config.json holds it, or an object with such attributes: head_dim (or hidden_size
                     and num_attention_heads), rope_theta or rotary_emb_base, partial_rotary_factor, rotary_pct or
                     rotary_dim, max_position_embeddings, and rope_scaling or rope_parameters; or its text_config. What
                     the code of a model_type takes where its configuration is silent (half of the channels in GLM) is
                     known of those in transformers 5.24
        interleaved  how the model's code pairs channels. If absent: what rope_interleave or the model_type says, else
                     halves. Few configurations say it: look at the code of a model that is new
        length       tokens of the longest sequence, for rope_type dynamic
        layer_type   such as "full_attention", where layers of several types turn differently

        Raises ValueError where something is missing, contradicts itself, or is of rotary positions and not known here;
        ShapeError.
        """
        found = read(config, layer_type)
        scaling = found.scaling if length is None else {**found.scaling, "length": length}
        pairs = found.interleaved if interleaved is None else interleaved
        return cls(found.head_dim, found.base, found.rotary_dim, pairs, scaling)

    def _default(self) -> list[float]:
        return _frequencies(self.base, self.rotary_dim)

    def _linear(self) -> list[float]:
        factor = self._number("factor")
        return [frequency / factor for frequency in self._default()]

    def _ntk(self) -> list[float]:
        return self._with_base_for(self._number("factor"))

    def _dynamic(self) -> list[float]:
        original = self._number("original_max_position_embeddings")
        factor = self._number("factor")
        length = max(self._number("length"), original)
        return self._with_base_for(factor * length / original - (factor - 1))

    def _with_base_for(self, factor: float) -> list[float]:
        # The slowest pair turns `factor` times slower, the fastest as before.
        return _frequencies(self.base * factor ** (self.rotary_dim / (self.rotary_dim - 2)), self.rotary_dim)

    def _yarn(self) -> list[float]:
        factor = self._number("factor")
        self.attention_factor = self._yarn_attention_factor(factor)
        first = self._pair_that_turns(self._number("beta_fast") if self.scaling.get("beta_fast") else 32)
        last = self._pair_that_turns(self._number("beta_slow") if self.scaling.get("beta_slow") else 1)
        if self.scaling.get("truncate", True):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.rotary_dim - 1)
        width = last - first or 0.001
        frequencies = []
        for i, frequency in enumerate(self._default()):
            slowed = min(max((i - first) / width, 0.0), 1.0)  # 0: turns often within the original context, and stays
            frequencies.append(frequency / factor * slowed + frequency * (1 - slowed))
        return frequencies

    def _pair_that_turns(self, times: float) -> float:
        """The pair, as a real number, that turns so many times within the original context."""
        tokens = self._number("original_max_position_embeddings")
        return self.rotary_dim * math.log(tokens / (times * 2 * math.pi)) / (2 * math.log(self.base))

    def _yarn_attention_factor(self, factor: float) -> float:
        if self.scaling.get("attention_factor") is not None:
            return float(self._number("attention_factor"))

        def growth(weight: float) -> float:
            return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

        if not self.scaling.get("mscale") or not self.scaling.get("mscale_all_dim"):
            return growth(1.0)
        return growth(self._number("mscale")) / growth(self._number("mscale_all_dim"))

    def _llama3(self) -> list[float]:
        factor, tokens = self._number("factor"), self._number("original_max_position_embeddings")
        low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
        if not low < high:
            raise ValueError(f"low_freq_factor is {low} and high_freq_factor {high}; the first must be the smaller")
        frequencies = []
        for frequency in self._default():
            turns = tokens * frequency / (2 * math.pi)  # within the original context
            kept = min(max((turns - low) / (high - low), 0.0), 1.0)
            frequencies.append((1 - kept) * frequency / factor + kept * frequency)
        return frequencies

    def _number(self, name: str) -> float:
        found = self.scaling.get(name)
        if found is None:
            raise ValueError(f"rope_type {self.scaling_type} needs {name}; scaling has {sorted(self.scaling)}")
        if not isinstance(found, numbers.Real) or isinstance(found, bool) or not 0 < found < math.inf:
            raise ValueError(f"{name} is {found!r}; it must be a number greater than 0, and finite")
        return float(found)

    @_checks.words_of_made
    def __repr__(self) -> str:
        pairs = "interleaved" if self.interleaved else "halves"
        return f"Rope({self.rotary_dim} of {self.head_dim} channels, {pairs}, base {self.base:g}, {self.scaling_type})"


def _frequencies(base: float, rotary_dim: int) -> list[float]:
    return [1.0 / base ** (2 * i / rotary_dim) for i in range(rotary_dim // 2)]


def _kind_of(scaling: Mapping[str, Any]) -> str:
    """rope_type, with nothing beside it that it would leave out. Raises ValueError."""
    given = {name for name, value in scaling.items() if value is not None}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind is None and given - {*_ALWAYS, "length"}:
        raise ValueError(f"scaling has {', '.join(sorted(given))} and no rope_type; add one of {', '.join(_SCALINGS)}")
    kind = "default" if kind is None else kind
    if kind not in _SCALINGS:
        raise ValueError(f"rope_type is {kind!r}; known are {', '.join(_SCALINGS)}")
    strangers = given - {*_ALWAYS, *_SCALINGS[kind]} - {"length"}
    if "mrope_section" in strangers:
        raise ValueError(
            "scaling has mrope_section: positions on three axes, for images and video. kvit.Rope has one; for text "
            "alone leave mrope_section out"
        )
    if strangers:
        raise ValueError(
            f"scaling has {', '.join(sorted(strangers))}, which rope_type {kind} does not know; it knows "
            f"{', '.join(_SCALINGS[kind]) or 'no number'}"
        )
    return str(kind)
