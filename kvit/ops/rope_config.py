"""Reads what a model's configuration says of rotary positions: right, or refused by the name of what is not known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# What a model's own code takes where its configuration says nothing: by model_type, as transformers 5.24 has them.
_SHARES = {
    "gpt_neox qwen3_5_moe_text qwen3_5_text qwen3_next stablelm": 0.25,
    "bamba glm glm4 glm4_moe glm4v_moe_text nemotron persimmon phi recurrent_gemma": 0.5,
    "moonshine": 0.9,
}
_BASES = {
    "nomic_bert": 1e3,
    "jina_embeddings_v3": 2e4,
    "helium": 1e5,
    "gpt_oss": 1.5e5,
    "gte": 1.6e5,
    "bitnet cohere csm ernie4_5 ernie4_5_moe exaone flex_olmo llama4_text mllama_text_model olmo3": 5e5,
    "qwen3_vl_moe_text qwen3_vl_text": 5e5,
    "cwm emu3_text_model lfm2 lfm2_moe minimax ministral3 mixtral phimoe": 1e6,
    "qwen2_5_omni_text qwen2_5_vl_text qwen2_vl_text qwen3_omni_moe_text solar_open": 1e6,
    "smollm3": 2e6,
    "minimax_m2 minimax_m3_vl_text": 5e6,
    "bailing_hybrid": 6e6,
    "sarvam_moe": 8e6,
    "longcat_flash": 1e7,
    "hy_v3": 11158840.0,
    "apertus": 1.2e7,
}
# Models whose code pairs channels (2 i, 2 i + 1). Others may say so by rope_interleave.
_INTERLEAVED = (
    "codegen cohere cohere2 cohere2_moe deepseek_v2 ernie4_5 ernie4_5_moe glm glm4 glm4v_text glm_ocr_text gptj helium "
    "llama4_text moonshine moonshine_streaming"
)
# Models whose code does what their configuration does not say.
_ODD = {"ernie4_5_vl_moe ernie4_5_vl_moe_text": "its model orders channels for positions on three axes"}

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
    *("no_rope_layers", "no_rope_layer_interval"),  # which layers do not turn at all
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


def read(config: Any, layer_type: str | None = None) -> RopeConfig:
    """What `config` says, as Rope.from_config takes it. Raises ValueError, which names what is missing or unknown."""
    fields = _fields(config)
    text = fields.get("text_config")
    if text is not None:  # a model of text and something else: the cache is the text's
        if any(fields.get(name) for name in (*_NAMES_A_ROPE, *_SCALING)):
            raise ValueError("the configuration has a rope beside its text_config; give text_config, if that is meant")
        return read(text, layer_type)
    _refuse_strangers(fields)
    model_type = fields.get("model_type")
    scaling = _scaling_of(fields, layer_type)
    head_dim = _head_dim(fields)
    rotary_dim = _rotary_dim({**fields, **scaling}, head_dim, _default(_SHARES, model_type, 1.0))
    base = _one_of({**fields, **scaling}, _BASE)
    scaling = {
        name: value
        for name, value in scaling.items()
        if name not in (*_SHARE, *_BASE, *_NOT_OF_ROTATION) and value is not None
    }
    _complete(scaling, fields)
    return RopeConfig(
        head_dim,
        _default(_BASES, model_type, 10000.0) if base is None else base,
        rotary_dim,
        bool(fields.get("rope_interleave") or model_type in _INTERLEAVED.split()),
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
    for names, reason in _ODD.items():
        if fields.get("model_type") in names.split():
            raise ValueError(f"{reason} (model_type {fields['model_type']}); kvit.Rope has positions on one")
    layers = fields.get("per_layer_config") or {}
    widths = {layer.get("head_dim") for layer in layers.values()} if isinstance(layers, Mapping) else set()
    if fields.get("is_heterogeneous") or {*widths, fields.get("global_head_dim")} - {None, fields.get("head_dim")}:
        raise ValueError(
            "layers of the configuration differ, and may do so in head_dim; give that of one layer: "
            "config.per_layer_config[layer]"
        )
    if fields.get("alibi"):
        raise ValueError("the configuration says alibi: its model rotates nothing; use no rope")
    says_none = "rope_scaling" in fields and fields["rope_scaling"] is None  # how many older configurations say "plain"
    if not says_none and all(fields.get(name) in (None, {}) for name in (*_NAMES_A_ROPE, *_SCALING)):
        raise ValueError(
            f"the configuration names no rotary embedding ({', '.join((*_SCALING, *_BASE))} and others are not set); "
            "add rope_theta if its model rotates, or use no rope"
        )


def _scaling_of(fields: Mapping[str, Any], layer_type: str | None) -> dict[str, Any]:
    """rope_parameters or rope_scaling, of one type of layer."""
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
        by_type = {"full_attention": {**scaling, "rope_theta": base}, "sliding_attention": {"rope_theta": local}}
    if not by_type:
        if layer_type is not None and layer_type not in (fields.get("layer_types") or ()):
            raise ValueError(
                f"layer_type is {layer_type!r}; the configuration has one rope for all layers, so give none"
            )
        return dict(scaling)
    if layer_type is None:
        first = next(iter(by_type.values()))
        if any(value != first for value in by_type.values()):
            raise ValueError(f"layers of {', '.join(by_type)} turn differently; make a Rope of each by layer_type=")
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
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ("dynamic", "yarn", "llama3"):
        return
    most, original = (fields.get(name) for name in _LENGTHS)
    if original is not None and kind != "dynamic":
        scaling["original_max_position_embeddings"] = original  # as transformers: beside the scaling it counts more
    scaling.setdefault("original_max_position_embeddings", most)
    if kind == "yarn" and most is not None and scaling.get("factor") is None:
        scaling["factor"] = most / scaling["original_max_position_embeddings"]


def _one_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value under any of these names; None where there is none. Raises ValueError where two differ."""
    found = {name: fields[name] for name in names if fields.get(name) is not None}
    if len(set(found.values())) > 1:
        said = " and ".join(f"{name} {value}" for name, value in found.items())
        raise ValueError(f"the configuration says {said}, which are names of one thing; give one of them")
    return next(iter(found.values()), None)


def _default(table: Mapping[str, float], model_type: Any, otherwise: float) -> float:
    return next((value for names, value in table.items() if model_type in names.split()), otherwise)
