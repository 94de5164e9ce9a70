"""The layers of a PagedCache: how many there are, and in what they differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kvit import _checks, codecs
from kvit.codecs import Codec
from kvit.dtypes import Dtype
from kvit.errors import ShapeError
from kvit.ops.modifiers import Window
from kvit.ops.rope import Rope

MOST_LAYERS = 4096
"""More than any model has."""


class LayerSpec(NamedTuple):
    """`count` layers of a model that are alike, in the order of the model. What is absent is the cache's own.

        layers=[kvit.LayerSpec(count=5, window=1024), kvit.LayerSpec(kv_heads=2, head_dim=128)] * 8

    count             layers that follow one another
    kv_heads          of these layers
    head_dim          the same
    k, v              how they store K and V, as in PagedCache
    k_scale, v_scale  of float8, as in PagedCache
    rope              how their keys turn; False: they do not
    window            keys that their queries see, as kvit.Attention has it; None: all. Calls of kvit.attention on
                      such layers take it where they name none. Pages are for all layers: none is given back earlier

    PagedCache raises what it says of these.
    """

    count: int = 1
    kv_heads: int | None = None
    head_dim: int | None = None
    k: Any = None
    v: Any = None
    k_scale: Any = None
    v_scale: Any = None
    rope: Rope | bool | None = None
    window: Window = None


class LayerKind(NamedTuple):
    """What layers have in common that lie side by side in memory, and share their operations."""

    kv_heads: int
    head_dim: int
    sides: tuple[Codec, Codec]
    scales: tuple[Any, Any]
    rope: Rope | None

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for kinds that are alike."""
        return (self.kv_heads, self.head_dim, *self.sides, *map(id, self.scales), id(self.rope))


def kinds_of(layers: Any, own: LayerKind, compute: Dtype) -> list[tuple[LayerKind, Window]]:
    """The kind and the window of every layer.

    layers  a number of layers like the cache, or LayerSpecs
    own     what the cache's arguments say
    compute dtype of queries, which K and V are stored in where nobody says anything else

    Raises ShapeError, DtypeError, TypeError.
    """
    if not isinstance(layers, Iterable):
        return [(own, None)] * _count("layers", layers)
    found: list[tuple[LayerKind, Window]] = []
    for i, spec in enumerate(layers):
        _checks.instance(f"layers[{i}]", spec, LayerSpec, "a kvit.LayerSpec, or one number for all layers")
        found += [(_kind_of(i, spec, own), spec.window)] * _count(f"layers[{i}].count", spec.count)
    if not found:
        raise ShapeError("layers is empty; a cache has at least one layer")
    return found


def _count(name: str, given: Any) -> int:
    """A number of layers. Raises ShapeError."""
    [count] = _checks.require_counts(**{name: given})
    if count > MOST_LAYERS:
        raise ShapeError(f"{name} is {count}; a cache has at most {MOST_LAYERS} layers")
    return count


def _kind_of(i: int, spec: LayerSpec, own: LayerKind) -> LayerKind:
    heads, dim = _checks.require_counts(
        **{
            f"layers[{i}].kv_heads": own.kv_heads if spec.kv_heads is None else spec.kv_heads,
            f"layers[{i}].head_dim": own.head_dim if spec.head_dim is None else spec.head_dim,
        }
    )
    sides, scales = list(own.sides), list(own.scales)
    for side, (stored, scale) in enumerate(((spec.k, spec.k_scale), (spec.v, spec.v_scale))):
        if stored is not None:
            sides[side] = codecs.codec_of(stored)
            scales[side] = None if sides[side] is not own.sides[side] else scales[side]
        if scale is not None:
            scales[side] = scale
    rope = own.rope if spec.rope is None else spec.rope or None
    if rope is not None:
        _checks.made(f"layers[{i}].rope", rope, Rope, "a kvit.Rope, or False for keys that do not turn")
    if rope is own.rope and rope is not None and rope.head_dim != dim:
        raise ShapeError(
            f"layers[{i}] has head_dim {dim} and the cache's rope turns rows of {rope.head_dim} channels; give the "
            "layer a rope of its own, or rope=False"
        )
    return LayerKind(heads, dim, (sides[0], sides[1]), (scales[0], scales[1]), rope)
