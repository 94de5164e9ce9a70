"""Rotary position embedding: how fast each pair of channels turns, in every variant that model configurations name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvit import _checks
from kvit.errors import ShapeError
from kvit.ops.rope_scaling import Scaling

_TURN = 2.0**64  # steps per turn: phases wrap around where unsigned 64-bit numbers do
_MOST_CHANNELS = 1 << 16


class Rope(_checks.Made):
    """How the pairs of channels of a row turn with its position.

    head_dim     channels of a row
    base         pair i turns by base^(-2 i / rotary_dim) radians per token, before scaling; rope_theta of models
    rotary_dim   leading channels that turn, a multiple of 16, or of 4 up to 32; all of them if absent. The others stay
                 as they are
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
                   longrope short_factor, long_factor (a number for each pair, that it turns slower by),
                            original_max_position_embeddings, length, and factor or attention_factor
                                                 LongRoPE: long_factor where `length` is beyond the original, for all
                                                 positions of a sequence
                   proportional  if wanted partial_rotary_factor, factor
                                                 that share of the pairs turns, the fastest of them; the others stay
                 Positions on three axes, of images and video, with any of them:
                   mrope_section        pairs that time, height and width turn, of which there are rotary_dim / 2
                   mrope_interleaved    the axes take turns (Qwen3-VL); else time has the first pairs, then height,
                                        then width (Qwen2-VL)

    axes                 of each pair, what turns it: 0 time, 1 height, 2 width; None where positions have one axis
    inverse_frequencies  radians per token, one for each pair
    steps                the same in units of 2^-64 turns: position * step, modulo 2^64, is exact at any position
    attention_factor     what cosines and sines are multiplied by: 1, but for yarn and longrope

    Raises ShapeError (head_dim, rotary_dim), ValueError (a scaling that is unknown, lacks a number, or has one that its
    rope_type does not know).
    Defined by kvit.reference.rope. Su et al., RoFormer, 2021; Chen et al., Position Interpolation, 2023; bloc97,
    NTK-aware scaled RoPE, 2023; Peng et al., YaRN, 2023; Llama 3.1; Ding et al., LongRoPE, 2024; Wang et al.,
    Qwen2-VL, 2024.
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
        if head_dim > _MOST_CHANNELS:
            raise ShapeError(f"head_dim is {head_dim}; rows of a head have {_MOST_CHANNELS} channels at most")
        if not 1 <= rotary_dim <= head_dim or rotary_dim % (16 if rotary_dim > 32 else 4):
            raise ShapeError(
                f"rotary_dim is {rotary_dim}; it must be a multiple of 16 up to head_dim, {head_dim}, or of 4 up to 32"
            )
        if not 1 < _checks.number("base", base) < math.inf:
            raise ValueError(f"base is {base}; it must be greater than 1 and finite, as 10000 or 500000 are")
        self.head_dim = head_dim
        self.base = float(base)
        self.rotary_dim = rotary_dim
        self.interleaved = _checks.flag("interleaved", interleaved)
        if scaling is not None and not isinstance(scaling, Mapping):
            raise TypeError(f"scaling is a {type(scaling).__name__}; give a dictionary, as rope_scaling is")
        self.scaling: dict[str, Any] = dict(scaling or {})
        found = Scaling(self.base, rotary_dim, self.scaling)
        self.scaling_type: str = found.kind
        self.attention_factor: float = found.attention_factor
        self.axes: tuple[int, ...] | None = None if found.axes is None else tuple(found.axes)
        self.inverse_frequencies: tuple[float, ...] = tuple(found.inverse_frequencies)
        self.steps: tuple[int, ...] = tuple(
            round(frequency / (2 * math.pi) * _TURN) % (1 << 64) for frequency in found.inverse_frequencies
        )

    @classmethod
    def from_config(
        cls,
        config: Any,
        *,
        interleaved: bool | None = None,
        length: int | None = None,
        layer_type: str | None = None,
        layer: int | None = None,
    ) -> Rope:
        """The rope that a model's configuration describes.

        config       a dictionary, as config.json holds it, or an object with such attributes: head_dim (or hidden_size
                     and num_attention_heads), rope_theta or rotary_emb_base, partial_rotary_factor, rotary_pct or
                     rotary_dim, max_position_embeddings, and rope_scaling or rope_parameters; or its text_config. What
                     the code of a model_type takes where its configuration is silent (half of the channels in GLM) is
                     known of those in transformers 5.24
        interleaved  how the model's code pairs channels. If absent: what rope_interleave or the model_type says, else
                     halves. Few configurations say it: look at the code of a model that is new
        length       tokens of the longest sequence, for rope_type dynamic and longrope
        layer_type   such as "full_attention", where layers of several types turn differently
        layer        index of the layer, where layers differ by type or one by one: its type, its head_dim and its base
                     count, and a layer that does not rotate is refused

        Raises ValueError where something is missing, contradicts itself, or is of rotary positions and not known here;
        ShapeError.
        """
        if layer_type is not None and not isinstance(layer_type, str):
            raise TypeError(
                f"layer_type is a {type(layer_type).__name__}; give a text such as 'full_attention', or None"
            )
        from kvit.ops.rope_config import read  # which few programs need

        found = read(config, layer_type, None if layer is None else _checks.whole("layer", layer))
        scaling = found.scaling if length is None else {**found.scaling, "length": length}
        pairs = found.interleaved if interleaved is None else interleaved
        return cls(found.head_dim, found.base, found.rotary_dim, pairs, scaling)

    @_checks.words_of_made
    def __repr__(self) -> str:
        pairs = "interleaved" if self.interleaved else "halves"
        return f"Rope({self.rotary_dim} of {self.head_dim} channels, {pairs}, base {self.base:g}, {self.scaling_type})"
