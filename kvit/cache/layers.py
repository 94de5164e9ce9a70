"""The layers of a PagedCache: how many there are, and in what they differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kvit import _checks, codecs
from kvit.codecs import Codec
from kvit.dtypes import Dtype
from kvit.errors import DtypeError, ShapeError
from kvit.layouts.key_smoothing import KeySmoothing, require_fitting
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
    v_dim, shares_kv  the same
    k, v              how they store K and V, as in PagedCache
    k_scale, v_scale  of float8, as in PagedCache
    rope              how their keys turn; False: they do not
    smoothing         KeySmoothing of these layers' keys, as CacheView has it: of one layer, as a rule, so count is 1
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
    v_dim: int | None = None
    shares_kv: bool | None = None
    smoothing: KeySmoothing | None = None


class LayerKind(NamedTuple):
    """What layers have in common that lie side by side in memory, and share their operations."""

    kv_heads: int
    head_dim: int
    sides: tuple[Codec, Codec]
    scales: tuple[Any, Any]
    rope: Rope | None
    v_dim: Any  # an int; of a cache's arguments None, which stands for head_dim
    shares_kv: bool = False
    smoothing: KeySmoothing | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for kinds that are alike: they may have other numbers in their smoothings."""
        dims = self.head_dim, self.v_dim, self.shares_kv
        smooths = None if self.smoothing is None else self.smoothing.has_mean
        return (self.kv_heads, *dims, *self.sides, *map(id, self.scales), id(self.rope), smooths)

    @property
    def written_dims(self) -> tuple[int, int]:
        """Channels of the rows that append writes as K and as V: where they share rows, the last and the first ones.

        The last ones are those behind V; where all are V's, those that turn, or a half if none does.
        """
        if not self.shares_kv:
            return self.head_dim, self.v_dim
        last = self.head_dim - self.v_dim
        if last == 0:
            last = self.head_dim // 16 * 8 if self.rope is None else self.rope.head_dim
        return last, self.head_dim - last

    def checked(self, name: str, compute: Dtype) -> LayerKind:
        """This kind. Raises ShapeError, DtypeError: K and V that cannot share rows, a smoothing of other keys. `name`
        stands before arguments.
        """
        if self.smoothing is not None:
            require_fitting(self.smoothing, self.kv_heads, self.head_dim)
        if not self.shares_kv:
            return self
        if self.smoothing is not None:
            raise DtypeError(f"{name}smoothing is of keys alone, and K and V share rows here (shares_kv); leave it out")
        dims = f"{name}head_dim {self.head_dim} and {name}v_dim {self.v_dim}"
        if self.v_dim > self.head_dim or self.head_dim % 8 or self.v_dim % 8 or self.head_dim < 16:
            raise ShapeError(
                f"{dims} of rows that K and V share; V is the first channels of K: v_dim is at most head_dim, and both "
                "are multiples of 8"
            )
        if any(side is not codecs.codec_of(compute) for side in self.sides):
            raise DtypeError(
                f"{name}k is {self.sides[0]} and {name}v {self.sides[1]} in rows that K and V share; those are stored "
                f"as {compute} alone: leave k and v out"
            )
        turns, behind = 0 if self.rope is None else self.rope.head_dim, self.head_dim - self.v_dim
        if turns and turns != (behind or min(turns, self.head_dim - 8)):
            what = f"the {behind} channels behind those of V" if behind else f"at most {self.head_dim - 8} channels"
            raise ShapeError(
                f"the rope turns {turns} channels and {dims}; of rows that K and V share, the last channels turn: give "
                f"a kvit.Rope of {what}, or rope={'False' if name else 'None'} for rows that are turned already"
            )
        return self


def kinds_of(layers: Any, own: LayerKind, compute: Dtype) -> list[tuple[LayerKind, Window]]:
    """The kind and the window of every layer.

    layers  a number of layers like the cache, or LayerSpecs
    own     what the cache's arguments say
    compute dtype of queries, which K and V are stored in where nobody says anything else

    Raises ShapeError, DtypeError, TypeError.
    """
    if not isinstance(layers, Iterable):
        [v_dim] = _checks.require_counts(v_dim=own.head_dim if own.v_dim is None else own.v_dim)
        return [(own._replace(v_dim=v_dim).checked("", compute), None)] * _count("layers", layers)
    found: list[tuple[LayerKind, Window]] = []
    for i, spec in enumerate(layers):
        _checks.instance(f"layers[{i}]", spec, LayerSpec, "a kvit.LayerSpec, or one number for all layers")
        kind = _kind_of(i, spec, own).checked(f"layers[{i}].", compute)
        found += [(kind, spec.window)] * _count(f"layers[{i}].count", spec.count)
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
    given = own.v_dim if spec.v_dim is None else spec.v_dim
    [v_dim] = _checks.require_counts(**{f"layers[{i}].v_dim": dim if given is None else given})
    shares_kv = _checks.flag(f"layers[{i}].shares_kv", own.shares_kv if spec.shares_kv is None else spec.shares_kv)
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
    if rope is own.rope and rope is not None and rope.head_dim != dim and not shares_kv:
        raise ShapeError(
            f"layers[{i}] has head_dim {dim} and the cache's rope turns rows of {rope.head_dim} channels; give the "
            "layer a rope of its own, or rope=False"
        )
    smoothing = own.smoothing if spec.smoothing is None else spec.smoothing
    return LayerKind(heads, dim, (sides[0], sides[1]), (scales[0], scales[1]), rope, v_dim, shares_kv, smoothing)
