"""Rotary position embedding: how fast each pair of channels turns, in every variant that model configurations name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvit.errors import ShapeError

_TURN = 2.0**64  # steps per turn: phases wrap around where unsigned 64-bit numbers do
_SCALINGS = ("default", "linear", "ntk", "dynamic", "yarn", "llama3")


class Rope:
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

    Raises ShapeError (head_dim, rotary_dim), ValueError (a scaling that is unknown, or lacks a number).
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
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if not 16 <= rotary_dim <= head_dim or rotary_dim % 16:
            raise ShapeError(f"rotary_dim is {rotary_dim}; it must be a multiple of 16 from 16 to head_dim, {head_dim}")
        if not base > 1:
            raise ValueError(f"base is {base}; it must be greater than 1, as 10000 or 500000 are")
        self.head_dim = head_dim
        self.base = float(base)
        self.rotary_dim = rotary_dim
        self.interleaved = bool(interleaved)
        self.scaling: dict[str, Any] = dict(scaling or {})
        kind = self.scaling.get("rope_type", self.scaling.get("type", "default"))
        if kind not in _SCALINGS:
            raise ValueError(f"rope_type is {kind!r}; known are {', '.join(_SCALINGS)}")
        self.scaling_type: str = kind
        self.attention_factor = 1.0
        frequencies = getattr(self, f"_{kind}")()
        self.inverse_frequencies: tuple[float, ...] = tuple(frequencies)
        self.steps: tuple[int, ...] = tuple(
            round(frequency / (2 * math.pi) * _TURN) % (1 << 64) for frequency in frequencies
        )

    @classmethod
    def from_config(cls, config: Any, *, interleaved: bool = False, length: int | None = None) -> Rope:
        """The rope that a model's configuration describes.

        config       a dictionary, as config.json holds it, or an object with such attributes: head_dim (or hidden_size
                     and num_attention_heads), rope_theta, partial_rotary_factor, max_position_embeddings, and
                     rope_scaling or rope_parameters
        interleaved  how the model's code pairs channels, which configurations do not say
        length       tokens of the longest sequence, for rope_type dynamic

        Raises ValueError where something is missing, ShapeError.
        """
        fields = config if isinstance(config, Mapping) else vars(config)
        scaling = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
        fields = {**fields, **{name: scaling[name] for name in _WITHIN if name in scaling}}
        head_dim = fields.get("head_dim") or _needed(fields, "hidden_size") // _needed(fields, "num_attention_heads")
        most = fields.get("max_position_embeddings")
        if "original_max_position_embeddings" not in scaling and most is not None:
            scaling["original_max_position_embeddings"] = fields.get("original_max_position_embeddings") or most
        if "factor" not in scaling and most is not None and scaling:
            scaling["factor"] = most / scaling["original_max_position_embeddings"]
        if length is not None:
            scaling["length"] = length
        return cls(
            head_dim,
            fields.get("rope_theta") or 10000.0,
            int(head_dim * (fields.get("partial_rotary_factor") or 1.0)),
            interleaved,
            scaling,
        )

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
        first = self._pair_that_turns(self.scaling.get("beta_fast") or 32)
        last = self._pair_that_turns(self.scaling.get("beta_slow") or 1)
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
        given = self.scaling.get("attention_factor")
        if given is not None:
            return float(given)

        def growth(weight: float) -> float:
            return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

        weights = self.scaling.get("mscale"), self.scaling.get("mscale_all_dim")
        return growth(weights[0]) / growth(weights[1]) if all(weights) else growth(1.0)

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
        if not found > 0:
            raise ValueError(f"{name} is {found}; it must be greater than 0")
        return found

    def __repr__(self) -> str:
        pairs = "interleaved" if self.interleaved else "halves"
        return f"Rope({self.rotary_dim} of {self.head_dim} channels, {pairs}, base {self.base:g}, {self.scaling_type})"


_WITHIN = ("rope_theta", "partial_rotary_factor")  # stand beside the scaling, or in rope_parameters


def _frequencies(base: float, rotary_dim: int) -> list[float]:
    return [1.0 / base ** (2 * i / rotary_dim) for i in range(rotary_dim // 2)]


def _needed(fields: Mapping[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise ValueError(f"the configuration has no {name}; give head_dim, or hidden_size and num_attention_heads")
    return fields[name]
