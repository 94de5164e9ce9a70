"""New rows of K and V into their pages, biased, turned and encoded on the way."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kvit import _checks, dtypes
from kvit._native import row_ops
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import LayoutError, ShapeError
from kvit.layouts.views import CacheView, PageTable
from kvit.ops import aliases
from kvit.ops.faults import FaultRecord
from kvit.ops.operation import Launch, rows_per_sequence
from kvit.ops.packed_rope import pack_rope
from kvit.ops.rope import Rope
from kvit.ops.rope_scaling import NUM_AXES
from kvit.ops.row_norm import norms_of
from kvit.ops.transfer import Transfer, checked_rows, rows_like_each_other

# Besides k, v and the table.
_READ = ("q", "k_bias", "v_bias", "q_bias", "k_norm", "q_norm", "prefix_lengths", "positions")


class Append(Transfer):
    """Writes new K and V into their pages, for one shape of cache; rotates K, and Q, on the way. A call is one launch.

    Where the view has a KeySmoothing, K and Q pass through it behind the rope.

    view            CacheView of the caches to come: their dtype, KV heads and head_dim count, not their memory
    rope            Rope of the same head_dim: how K turns with the tokens' positions. K is stored as it comes if absent
    k_norm, q_norm  [head_dim] in the view's dtype, on its device: weights of an RMSNorm of every row of K, and of Q,
                    before it turns (QK-norm). Kept, and read by every call; a launch right in front must not write them
    norm_eps        what the mean square of a row gets before its root: rms_norm_eps of configurations
    norm_offset     what every weight gets: 1 for models that keep weights less 1, as Gemma does
    launch          "direct", or "graph" for calls that cost the host less and take turns, as Attention has it
    faults          record of faults to share with other operations; its own if absent

    Raises KernelMissing (nothing built covers the shape), ShapeError (a rope or weights of another head_dim),
    DtypeError, DeviceError, LayoutError (weights), ValueError (an unknown launch, a norm_eps that is not above 0),
    NoGpuError.
    Defined by kvit.reference.append.
    """

    family = "append"
    _rope: row_ops.PackedRope | None = None
    _norms: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        view: CacheView,
        *,
        rope: Rope | None = None,
        k_norm: Any = None,
        q_norm: Any = None,
        norm_eps: float = 1e-6,
        norm_offset: float = 0.0,
        launch: Launch = "direct",
        faults: FaultRecord | None = None,
    ):
        if rope is not None:
            _checks.made("rope", rope, Rope, "a kvit.Rope")
        is_extended = k_norm is not None or q_norm is not None or getattr(view, "smoothing", None) is not None
        if rope is not None and (rope.axes is not None or rope.rotary_dim % 16):
            is_extended = True
        super().__init__(view, launch=launch, faults=faults, variant="extended" if is_extended else "simple")
        self._smooths = view.smoothing is not None
        self._norms = norms_of(view, k_norm, q_norm, norm_eps, norm_offset)
        if rope is not None and rope.head_dim != self.head_dim:
            raise ShapeError(f"the rope turns rows of {rope.head_dim} channels; the view's have {self.head_dim}")
        self.rope = rope
        self._rope = None if rope is None else pack_rope(rope, self.device)

    def __call__(
        self,
        k: Any,
        v: Any,
        view: CacheView,
        table: PageTable,
        *,
        query_indptr: Any = None,
        k_bias: Any = None,
        v_bias: Any = None,
        prefix_lengths: Any = None,
        positions: Any = None,
        q: Any = None,
        q_bias: Any = None,
        q_out: Any = None,
        stream: Any = None,
    ) -> None:
        """Write the rows of k and v as the last tokens of their sequences. Returns before the work is done.

        k, v            [tokens, kv_heads, head_dim], sequence after sequence, in the view's dtype; any strides, dense
                        channels: slices of one packed tensor of queries, keys and values will do
        view            CacheView of the operation's shape; its pages are written
        table           PageTable whose lengths include the new tokens: token j of n goes to position length - n + j
        query_indptr    int32 [sequences + 1] on the device: where each sequence's rows begin; absent: all have as many
        k_bias, v_bias  [kv_heads, head_dim] in the view's dtype: added in float32, before anything else. Weights: a
                        launch right in front must not write them
        prefix_lengths  int32 [sequences] on the device: tokens of lower positions lie in pages that sequences share and
                        that nobody writes any more. They are skipped: neither they nor their pages are looked at
        positions       int32 [tokens] on the device: what rows of k and q are turned to; the tokens' places in their
                        sequences if absent. Where rows are stored does not depend on it. [3, tokens] of a rope with
                        axes: time, height and width
        q               [tokens, query_heads, head_dim] in the view's dtype: normalised, turned and smoothed as k is,
                        those of skipped tokens too
        q_bias          [query_heads, head_dim], as k_bias
        q_out           like q, written; q itself, in place, if absent. Otherwise it lies apart from all that is read;
                        so do the pages of the cache. Slices of one packed tensor lie apart. Overlap is refused
        stream          Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        Rows are biased, normalised, turned and smoothed in float32 and rounded to the view's dtype before they are
        encoded: the cache holds the bits that one step before the call would have left. A token that the table gives no
        place is not written, and its q_out is NaN if it has no position either; check() says why. Rows that no sequence
        has, before the first one's or behind the last one's, are skipped.
        Raises ShapeError, DtypeError, DeviceError, LayoutError; nothing is launched then.
        """
        is_plain = k_bias is v_bias is prefix_lengths is positions is q is q_bias is q_out is None
        if is_plain and not self._norms and self._launched(k, v, view, table, query_indptr, stream, self._rope):
            return
        stream = Stream.wrap(stream, self.device)
        self._check_view(view)
        _checks.made("table", table, PageTable, "a kvit.PageTable")
        _checks.require_writable("view.k", view.k)
        _checks.require_writable("view.v", view.v)
        for name, params in (("view.k_params", view.k_params), ("view.v_params", view.v_params)):
            if params is not None and params.dtype is view.dtype:  # the scales of float8 are only read
                _checks.require_writable(name, params)
        k, v = rows_like_each_other(k, v, view, stream)
        each, indptr = rows_per_sequence("k", k, table.num_sequences, query_indptr, stream)
        _checks.require_device(self.device, view=view.k, table=table.lengths, k=k, v=v, query_indptr=indptr)
        extras: dict[str, Any] = {}
        if k_bias is not None:
            extras["k_bias"] = self._bias("k_bias", k_bias, self.kv_heads, stream)
        if v_bias is not None:
            extras["v_bias"] = self._bias("v_bias", v_bias, self.kv_heads, stream)
        if prefix_lengths is not None:
            extras["prefix_lengths"] = self._integers("prefix_lengths", prefix_lengths, stream, table.num_sequences)
        if self._rope is not None:
            extras["rope"] = self._rope
        extras.update(self._rotated(k.shape[0], positions, q, q_bias, q_out, stream))
        extras.update(self._norms)
        read = ("k", k), ("v", v), ("query_indptr", indptr), *((name, extras.get(name)) for name in _READ)
        aliases.require_apart(
            "q_out", extras.get("q_out"), *read, *aliases.numbers_of(table), *aliases.pools_of("view", view.packed),
            same=("q",),
        )  # fmt: skip
        aliases.require_unwritten("view", view.packed, *read, *aliases.numbers_of(table))
        device = Device.of(self.device)
        fault = self.faults.buffer
        extras["graph"] = self._graph
        row_ops.append(self.kernel, device, view.packed, table.packed, k, v, indptr, each, fault, stream, **extras)
        self.faults.last_stream = stream

    def _rotated(
        self, tokens: int, positions: Any, q: Any, q_bias: Any, q_out: Any, stream: Stream
    ) -> dict[str, Tensor]:
        """What needs a rope, weights of Q or a smoothing, checked."""
        if positions is q is q_bias is q_out is None:
            return {}
        changes_q = "q_norm" in self._norms or self._smooths
        if self._rope is None and (positions is not None or not changes_q):
            raise ShapeError("positions and q are for rows that turn; give Append a rope")
        found: dict[str, Tensor] = {}
        if positions is not None:
            found["positions"] = self._integers("positions", positions, stream, tokens)
        if q is None:
            if q_out is not None or q_bias is not None:
                raise ShapeError("q_out and q_bias are of q; give q too")
            return found
        q = checked_rows(
            "q", q, self.dtype, self.device, stream, tokens=tokens, query_heads=None, head_dim=self.head_dim
        )
        heads = q.shape[1]
        if self._smooths:
            _checks.group_size(heads, self.kv_heads)
        if q_out is None:
            q_out = q
        else:
            axes = {"tokens": tokens, "query_heads": heads, "head_dim": self.head_dim}
            q_out = checked_rows("q_out", q_out, self.dtype, self.device, stream, **axes)
        _checks.require_writable("q_out", q_out)
        found.update(q=q, q_out=q_out)
        if q_bias is not None:
            found["q_bias"] = self._bias("q_bias", q_bias, heads, stream)
        return found

    def _bias(self, name: str, source: Any, heads: int, stream: Stream) -> Tensor:
        found = _checks.tensor(name, source, self.dtype, stream)
        _checks.require_shape(name, found, heads=heads, head_dim=self.head_dim)
        _checks.require_rows(name, found)
        row_bytes = self.head_dim * self.dtype.bits // 8
        if heads > 1 and found.strides[0] != row_bytes:
            raise LayoutError(f"{name} has rows {found.strides[0]} bytes apart; they must be dense ({row_bytes} bytes)")
        _checks.require_device(self.device, **{name: found})
        return found

    def _integers(self, name: str, source: Any, stream: Stream, count: int) -> Tensor:
        found = _checks.tensor(name, source, dtypes.int32, stream)
        axes: dict[str, int | None] = {"sequences" if name == "prefix_lengths" else "tokens": count}
        if name == "positions" and self.rope is not None and self.rope.axes is not None and len(found.shape) != 1:
            axes = {"axes": NUM_AXES, **axes}
        _checks.require_shape(name, found, **axes)
        _checks.require_dense(name, found)
        _checks.require_device(self.device, **{name: found})
        return found
