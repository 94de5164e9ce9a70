"""Reads what a model's configuration says of rotary positions: right, or refused by the name of what is not known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvit.ops.rope_layers import FULL, SLIDING, of_layer
from kvit.ops.rope_models import BASES, INTERLEAVED, ODD, SECTIONS, SHARES, TAKE_TURNS, of_model

# Names of one thing in different libraries.
_HEAD_DIMS = ("head_dim", "kv_channels", "attention_head_dim", "qk_rope_head_dim")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_SHARE = ("partial_rotary_factor", "rotary_pct")
_BASE = ("rope_theta", "rotary_emb_base")
_SCALING = ("rope_parameters", "rope_scaling")
_LENGTHS = ("max_position_embeddings", "original_max_position_embeddings")
# Bases of sliding and of full layers, in configurations older than rope_parameters by type of layer.
_LOCAL_BASE = ("rope_local_base_freq", "local_rope_theta")
_GLOBAL_BASE = "global_rope_theta"
_KNOWN = {
    *(*_HEAD_DIMS, *_SHARE, *_BASE, *_SCALING, *_LENGTHS, *_LOCAL_BASE, _GLOBAL_BASE, "rotary_dim", "rope_interleave"),
    *("no_rope_layers", "no_rope_layer_interval", "layer_rope_theta", "rope_scaling_layers"),  # rope_layers reads them
    *("ignore_keys_at_rope_validation", "default_rope_type"),
}
_NAMES_A_ROPE = (*_SHARE, *_BASE, *_LOCAL_BASE, _GLOBAL_BASE, "rotary_dim", "rope_interleave")

_NOT_OF_ROTATION = ("llama_4_scaling_beta", "max_position_embeddings", "finetuned")
_OF_ROPE = re.compile(r"(^|_)(m?rope|rotary)(_|$)")  # and not "property"


class RopeConfig(NamedTuple):
    """Arguments of Rope, as a configuration gives them; `scaling` without base and share."""

    head_dim: int
    base: float
    rotary_dim: int
    interleaved: bool
    scaling: dict[str, Any]


def read(config: Any, layer_type: str | None = None, layer: int | None = None) -> RopeConfig:
    """What `config` says, as Rope.from_config takes it. Raises ValueError, which names what is missing or unknown."""
    fields = _fields(config)
    text = fields.get("text_config")
    if text is not None:  # a model of text and something else: the cache is the text's
        if any(fields.get(name) for name in (*_NAMES_A_ROPE, *_SCALING)):
            raise ValueError("the configuration has a rope beside its text_config; give text_config, if that is meant")
        return read(text, layer_type, layer)
    _refuse_strangers(fields)
    fields, layer_type = of_layer(fields, layer, layer_type)
    model_type = fields.get("model_type")
    scaling = _scaling_of(fields, layer_type, is_of_layer=layer is not None)
    head_dim = _head_dim(fields)
    is_proportional = _kind_of(scaling) == "proportional"
    share = of_model(SHARES, model_type, 1.0)
    rotary_dim = head_dim if is_proportional else _rotary_dim({**fields, **scaling}, head_dim, share)
    base = _one_of({**fields, **scaling}, _BASE)
    left_out = (*_BASE, *_NOT_OF_ROTATION, *(() if is_proportional else _SHARE))
    scaling = {name: value for name, value in scaling.items() if name not in left_out and value is not None}
    _complete(scaling, fields)
    _name_axes(scaling, model_type)
    return RopeConfig(
        head_dim,
        of_model(BASES, model_type, 10000.0) if base is None else base,
        rotary_dim,
        bool(fields.get("rope_interleave") or model_type in INTERLEAVED.split()),
        scaling,
    )


def _fields(config: Any) -> dict[str, Any]:
    """The configuration as a dictionary. Objects may have other names for an attribute, as GPT-J's n_embd."""
    if isinstance(config, Mapping):
        return dict(config)
    try:
        fields = dict(vars(config))
    except TypeError:
        raise ValueError(
            f"a configuration is a dictionary or an object with attributes, and not {config!r}; "
            "give what config.json holds, or model.config"
        ) from None
    for name in ("is_heterogeneous", "model_type", "text_config", *_HEAD_DIMS, *_HIDDEN, *_HEADS, *_LENGTHS):
        if fields.get(name) is None and getattr(config, name, None) is not None:
            fields[name] = getattr(config, name)
    if fields.get("is_heterogeneous"):
        fields["per_layer_config"] = config.per_layer_config
    return fields


def _refuse_strangers(fields: Mapping[str, Any]) -> None:
    """Raise ValueError where there is no rope, or one that is described in words that are not known here."""
    if fields.get("patch_size") is not None and fields.get("vocab_size") is None:
        raise ValueError(
            "the configuration is that of an image encoder (patch_size), which turns channels by rows and columns; "
            "kvit.Rope turns them by one position"
        )
    for name, value in fields.items():
        is_of_rope = _OF_ROPE.search(str(name)) is not None
        if is_of_rope and name.startswith("use_") and value is False:
            raise ValueError(f"the configuration says {name}=False: its model rotates nothing; use no rope")
        if (
            is_of_rope
            and name not in _KNOWN
            and value is not None
            and value is not False
            and not name.startswith("use_")
        ):
            raise ValueError(
                f"the configuration has {name}, which kvit does not know and which may change how rows turn; "
                "give kvit.Rope(head_dim, base, rotary_dim, interleaved, scaling) yourself"
            )
    odd = of_model(ODD, fields.get("model_type"), None)
    if odd is not None:
        raise ValueError(
            f"{odd} (model_type {fields['model_type']}), which kvit.Rope does not know; rotate by other code"
        )
    kind = fields.get("position_embedding_type", "rope")
    if kind not in (None, "rope", "rotary") or (kind is None and fields.get("model_type") == "granitemoehybrid"):
        raise ValueError(f"position_embedding_type is {kind}: the configuration's model rotates nothing; use no rope")
    if fields.get("alibi"):
        raise ValueError("the configuration says alibi: its model rotates nothing; use no rope")
    says_none = "rope_scaling" in fields and fields["rope_scaling"] is None  # how many older configurations say "plain"
    if not says_none and all(fields.get(name) in (None, {}) for name in (*_NAMES_A_ROPE, *_SCALING)):
        raise ValueError(
            f"the configuration names no rotary embedding ({', '.join((*_SCALING, *_BASE))} and others are not set); "
            "add rope_theta if its model rotates, or use no rope"
        )


def _scaling_of(fields: Mapping[str, Any], layer_type: str | None, is_of_layer: bool) -> dict[str, Any]:
    """rope_parameters or rope_scaling, of one type of layer; is_of_layer: of the layer whose fields these are."""
    found = [fields[name] for name in _SCALING if fields.get(name)]
    for value in found:
        if not isinstance(value, Mapping):
            raise ValueError(f"rope_scaling is {value!r}; it must be a dictionary with a rope_type")
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError(f"rope_parameters is {found[0]} and rope_scaling {found[1]}; give one of them")
    scaling: Mapping[str, Any] = found[0] if found else {}
    by_type = {name: value for name, value in scaling.items() if _is_of_a_layer(name, value)}
    local = _one_of(fields, _LOCAL_BASE)
    if not by_type and local is not None:
        base = fields.get(_GLOBAL_BASE, scaling.get("rope_theta", fields.get("rope_theta")))
        by_type = {FULL: {**scaling, "rope_theta": base}, SLIDING: {"rope_theta": local}}
    if not by_type:
        if layer_type is not None and not is_of_layer and layer_type not in (fields.get("layer_types") or ()):
            raise ValueError(
                f"layer_type is {layer_type!r}; the configuration has one rope for all layers, so give none"
            )
        return dict(scaling)
    if layer_type is None:
        first = next(iter(by_type.values()))
        if any(value != first for value in by_type.values()):
            raise ValueError(
                f"layers of {', '.join(by_type)} turn differently; make a Rope of each by layer_type= or layer="
            )
        layer_type = next(iter(by_type))
    if layer_type not in by_type:
        raise ValueError(f"layer_type is {layer_type!r}; the configuration has ropes for {', '.join(by_type)}")
    if by_type[layer_type] is None:
        raise ValueError(f"layers of {layer_type} rotate nothing; use no rope for them")
    return dict(by_type[layer_type])


def _is_of_a_layer(name: str, value: Any) -> bool:
    """Whether an entry of rope_parameters is all parameters of one type of layer; None for one that rotates nothing."""
    return isinstance(value, Mapping) or (value is None and name.endswith("_attention"))


def _head_dim(fields: Mapping[str, Any]) -> int:
    for name in _HEAD_DIMS:
        if fields.get(name):
            return int(fields[name])
    hidden, heads = _one_of(fields, _HIDDEN), _one_of(fields, _HEADS)
    for name, value in (("hidden_size", hidden), ("num_attention_heads", heads)):
        if value is None:
            raise ValueError(f"the configuration has no {name}; give head_dim, or hidden_size and num_attention_heads")
    return int(hidden // heads)


def _rotary_dim(fields: Mapping[str, Any], head_dim: int, default: float) -> int:
    share, given = _one_of(fields, _SHARE), fields.get("rotary_dim")
    if given is None:
        return int(head_dim * (default if share is None else share))
    if share is not None and int(head_dim * share) != given:
        raise ValueError(
            f"the configuration says rotary_dim {given}, and {share} of head_dim {head_dim}, which is "
            f"{int(head_dim * share)}; give one of them"
        )
    return int(given)


def _complete(scaling: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Lengths that a scaling needs and that stand beside it, and the factor that two lengths give."""
    kind = _kind_of(scaling)
    if kind not in ("dynamic", "yarn", "llama3", "longrope"):
        return
    most, original = (fields.get(name) for name in _LENGTHS)
    if original is not None and kind != "dynamic":
        scaling["original_max_position_embeddings"] = original  # as transformers: beside the scaling it counts more
    scaling.setdefault("original_max_position_embeddings", most)
    if kind in ("yarn", "longrope") and most is not None and scaling.get("factor") is None:
        scaling["factor"] = most / scaling["original_max_position_embeddings"]


def _name_axes(scaling: dict[str, Any], model_type: Any) -> None:
    """The axes of positions that a model's code has where its configuration does not say."""
    section = of_model(SECTIONS, model_type, None)
    if section is not None:
        scaling.setdefault("mrope_section", section)
    if scaling.get("mrope_section") is not None and model_type in TAKE_TURNS.split():
        scaling["mrope_interleaved"] = True


def _kind_of(scaling: Mapping[str, Any]) -> Any:
    kind = scaling.get("rope_type", scaling.get("type"))
    return "longrope" if kind == "su" else kind  # Phi-3's first name for it


def _one_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value under any of these names; None where there is none. Raises ValueError where two differ."""
    found = {name: fields[name] for name in names if fields.get(name) is not None}
    if len(set(found.values())) > 1:
        said = " and ".join(f"{name} {value}" for name, value in found.items())
        raise ValueError(f"the configuration says {said}, which are names of one thing; give one of them")
    return next(iter(found.values()), None)
