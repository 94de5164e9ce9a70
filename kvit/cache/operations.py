"""The operations of kvit.attention's calls on one cache: made by the first of a kind, kept while in use."""

from __future__ import annotations

from typing import Any

from kvit import _checks
from kvit._native.tensor import Tensor
from kvit.layouts.views import CacheView
from kvit.ops.attention import Attention
from kvit.ops.faults import FaultRecord
from kvit.ops.sparse import SparseAttention

MOST_KEPT = 32
"""Operations that a cache keeps: more than the layers of a model have kinds of calls, however many scales they use."""

MOST_SPARSE = 4
"""Operations for queries that choose: each has memory for what all of its queries may choose."""


class CachedOperations:
    """Attention operations for calls on one cache, the last ones used.

    view    CacheView of the cache
    faults  record of faults that all of them share

    Operations that differ in their scale alone share a workspace: calls on a cache follow one another.
    """

    def __init__(self, view: CacheView, faults: FaultRecord):
        self._view, self._faults = view, faults
        self._kept: dict[tuple, Attention] = {}  # the one that was used last comes last
        self._plain: dict[tuple, Attention] = {}  # of calls without modifiers and scale, found by fewer questions

        self._sparse: dict[tuple, SparseAttention] = {}  # the one that was used last comes last

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept(self) -> tuple[Attention, ...]:
        """Those that were used last. Whoever captures calls into a graph of another library holds these: a graph reads
        their workspaces.
        """
        return tuple(self._kept.values())

    def find(
        self, query_heads: int, tokens_per_sequence: int, causal: bool, scale: float | None, **modifiers: Any
    ) -> Attention:
        """The operation for calls of this kind. Raises ShapeError (heads, a scale that is no number), KernelMissing.

        modifiers  others of Attention's arguments, but for those that are None; arrays as Tensors, which are the same
                   where they lie in the same memory
        """
        is_plain = scale is None and not modifiers
        if is_plain:
            found = self._plain.get((query_heads, tokens_per_sequence, causal))
            if found is not None:
                return found
        group = _checks.group_size(query_heads, self._view.kv_heads)
        rows = 1 << (group * max(1, tokens_per_sequence) - 1).bit_length()
        if scale is not None:
            scale = _checks.number("scale", scale)
        kind = (query_heads, rows, causal, bool(modifiers))
        own = tuple((name, _identity(modifier)) for name, modifier in sorted(modifiers.items()))
        key = (*kind, own, None if scale is None else scale.hex())  # as text, since NaN equals nothing
        found = self._kept.pop(key, None)
        if found is None:
            found = Attention(
                self._view,
                query_heads,
                causal=causal,
                scale=scale,
                tokens_per_sequence=tokens_per_sequence,
                workspace=next((op.workspace for (*other, _, _), op in self._kept.items() if (*other,) == kind), None),
                faults=self._faults,
                **modifiers,
            )
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
                self._plain.clear()
        self._kept[key] = found
        if is_plain:
            if len(self._plain) >= MOST_KEPT:
                self._plain.clear()
            self._plain[query_heads, tokens_per_sequence, causal] = found
        return found

    def find_sparse(
        self,
        query_heads: int,
        tokens: int,
        *,
        entry_tokens: int,
        entries: int,
        per_head: bool,
        causal: bool = True,
        scale: float | None,
        **modifiers: Any,
    ) -> SparseAttention:
        """The operation for queries that choose; arguments as SparseAttention has them. Raises what that raises.

        tokens     queries of the call: operations have room for powers of two
        modifiers  softcap and sinks, but for those that are None
        """
        queries = 1 << (max(1, tokens) - 1).bit_length()
        own = tuple((name, _identity(modifier)) for name, modifier in sorted(modifiers.items()))
        key = (query_heads, queries, entry_tokens, entries, per_head, causal, scale, own)
        found = self._sparse.pop(key, None)
        if found is None:
            found = SparseAttention(
                self._view, query_heads, entry_tokens=entry_tokens, entries=entries, queries=queries,
                per_head=per_head, causal=causal, scale=scale, faults=self._faults, **modifiers,
            )  # fmt: skip
            while len(self._sparse) >= MOST_SPARSE:
                del self._sparse[next(iter(self._sparse))]
        self._sparse[key] = found
        return found


def _identity(modifier: Any) -> Any:
    """What tells one argument from another: of an array where it lies, for an operation keeps it."""
    if isinstance(modifier, Tensor):
        return modifier.pointer, modifier.shape, modifier.strides, modifier.dtype.name
    return repr(modifier)
