"""A call of kvit.Attention: what fits as it is goes straight to the kernel, all else through Python first."""

from typing import Any

from kvit._native.attention_launch import AttentionLaunch
from kvit._native.faults import HoldsFaults
from kvit._native.packed_cache import HoldsCache, PackedCache
from kvit._native.packed_table import HoldsTable
from kvit._native.tensor import Tensor

class AttentionCall:
    """The call of kvit.Attention, which derives from it."""

    def __init__(self, launch: AttentionLaunch, faults: HoldsFaults, cache: PackedCache, dtype: int) -> None: ...
    def __call__(
        self,
        q: Any,
        view: HoldsCache,
        table: HoldsTable,
        *,
        query_indptr: Any = None,
        out: Any = None,
        lse: Any = None,
        spans: Any = None,
        tree: Any = None,
        stream: Any = None,
    ) -> Tensor:
        """Attend new tokens to the cache: one launch. Returns before the work is done; allocates nothing if given out.

        q             [tokens, query_heads, head_dim], sequence after sequence, in the operation's dtype
        view          CacheView of the operation's shape; pages of any size
        table         PageTable of the same sequences; lengths include the new tokens, whose K and V are in the cache
                      already
        query_indptr  int32 [sequences + 1] on the device: where each sequence's rows of q begin; absent: all have as
                      many
        out           like q, written in place; allocated if absent
        lse           float32 [tokens, query_heads], receives the natural log of the sum of exp(score); any strides
        spans         int32 [tokens, 2] on the device: (begin, end) of keys that a query sees too, if its own position
                      is one of them; of an operation that was made with spans=True
        tree          int64 [tokens, 1 or 2] on the device, bits of the new tokens that a query sees; of an operation
                      that was made with tree=True
        stream        Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent
        """
