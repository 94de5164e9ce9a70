"""What a configuration says of one layer, where layers differ: in head_dim, in base, in whether they rotate at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvit.ops.rope_models import STILL

FULL, SLIDING = "full_attention", "sliding_attention"


def of_layer(fields: dict[str, Any], layer: int | None, layer_type: str | None) -> tuple[dict[str, Any], str | None]:
    """The fields of one layer, as if all were like it, and its type if the configuration has types.

    layer  index of the layer; None where the type says enough, or all layers are alike

    Raises ValueError: there is no such layer, it is of another type, it rotates nothing, or layers differ and neither
    a layer nor a type is given.
    """
    if layer is not None:
        _require_layer(fields, layer)
        found = _type_of(fields, layer)
        if layer_type is not None and found is not None and found != layer_type:
            raise ValueError(f"layer {layer} is of {found}, and layer_type is {layer_type!r}; give one of them")
        layer_type = layer_type or found
    fields = _with_own_head_dim(fields, layer, layer_type)
    fields = _with_own_base(fields, layer)
    fields = _with_own_scaling(fields, layer)
    turning = _of_each(fields, "no_rope_layers")  # 1 where a layer turns
    if layer is not None and turning and not turning[layer]:
        raise ValueError(f"layer {layer} rotates nothing (no_rope_layers); use no rope for it")
    if layer_type == FULL and fields.get("sliding_window") and fields.get("model_type") in STILL.split():
        raise ValueError(f"layers of {FULL} rotate nothing in a model of {fields['model_type']}; use no rope for them")
    return fields, layer_type


def _require_layer(fields: Mapping[str, Any], layer: int) -> None:
    counts = (fields.get("num_hidden_layers"), len(fields.get("layer_types") or ()) or None)
    count = next((count for count in counts if count is not None), None)
    if layer < 0 or (count is not None and layer >= count):
        raise ValueError(f"layer is {layer}; give one from 0 to {'the last' if count is None else count - 1}")


def _type_of(fields: Mapping[str, Any], layer: int) -> str | None:
    types, period = fields.get("layer_types"), fields.get("sliding_window_pattern")
    if types:
        return str(types[layer])
    if isinstance(period, int) and period > 0:  # Gemma 3 before layer_types
        return SLIDING if (layer + 1) % period else FULL
    return None


def _with_own_head_dim(fields: dict[str, Any], layer: int | None, layer_type: str | None) -> dict[str, Any]:
    own = _own_fields(fields)
    everywhere = fields.get("head_dim")
    if layer is not None:
        return {**fields, **own.get(layer, {})}
    types = fields.get("layer_types") or ()
    of_type = [own.get(i, {}).get("head_dim", everywhere) for i, name in enumerate(types) if name == layer_type]
    found = set(of_type) if of_type else {each.get("head_dim", everywhere) for each in own.values()} | {everywhere}
    if len(found) > 1:
        raise ValueError("layers of the configuration differ in head_dim; give layer=, the index of one")
    return {**fields, "head_dim": found.pop()}


def _own_fields(fields: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """What layers have of their own, by index."""
    given = fields.get("per_layer_config")
    if isinstance(given, Mapping):
        return {int(key): dict(value) for key, value in given.items()}
    if given is not None:  # of an object: a whole configuration for each layer
        return {i: {"head_dim": getattr(each, "head_dim", None)} for i, each in enumerate(given)}
    wide = fields.get("global_head_dim")
    if wide is None:
        return {}
    return {i: {"head_dim": wide} for i, name in enumerate(fields.get("layer_types") or ("",)) if name in ("", FULL)}


def _with_own_base(fields: dict[str, Any], layer: int | None) -> dict[str, Any]:
    bases = _of_each(fields, "layer_rope_theta")
    if not bases:
        return fields
    if layer is None and any(base != bases[0] for base in bases):
        raise ValueError(
            "layers of the configuration turn differently (layer_rope_theta); give layer=, the index of one"
        )
    base = bases[layer or 0]
    if not base:
        raise ValueError(f"layer {layer or 0} rotates nothing (layer_rope_theta is {base}); use no rope for it")
    return _changed(fields, lambda scaling: {**scaling, "rope_theta": base}, base)


def _with_own_scaling(fields: dict[str, Any], layer: int | None) -> dict[str, Any]:
    scaled = fields.get("rope_scaling_layers")
    if scaled is None:
        return fields
    count = fields.get("num_hidden_layers")
    if layer is None and (count is None or set(scaled) != set(range(count))):
        raise ValueError("only some layers scale positions (rope_scaling_layers); give layer=, the index of one")
    if layer is None or layer in scaled:
        return fields
    kept = ("rope_theta", "partial_rotary_factor")
    return _changed(fields, lambda scaling: {name: scaling[name] for name in kept if name in scaling}, None)


def _changed(fields: dict[str, Any], change: Any, base: Any) -> dict[str, Any]:
    """The fields with another rope: changed where it is described, and with this base if one is given."""
    found = dict(fields)
    names = [name for name in ("rope_parameters", "rope_scaling") if isinstance(fields.get(name), Mapping)]
    for name in names:
        found[name] = change(fields[name])
    if base is not None and (not names or fields.get("rope_theta") is not None):
        found["rope_theta"] = base
    return found


def _of_each(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    return list(value) if isinstance(value, list | tuple) else []
