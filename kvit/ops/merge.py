"""The union of two attention results over different keys."""

from __future__ import annotations

from typing import Any

from kvit import _checks
from kvit._native import merge
from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import ShapeError
from kvit.selection import registry

_WORD_BYTES = 4  # what a lane of the kernel moves at a time


def merge_states(
    out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, *, out: Any = None, lse: Any = None, stream: Any = None
) -> tuple[Tensor, Tensor]:
    """The attention over the union of two disjoint sets of keys, from the attention over each.

    out_a, out_b  [tokens, query_heads, head_dim], f16, bf16 or f32
    lse_a, lse_b  float32 [tokens, query_heads], natural log
    out, lse      like those of a, written in place; allocated if absent
    stream        Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

    Returns (out, lse). A side with lse = -inf adds nothing, whatever its output holds; two such give zeros and -inf.
    Raises ShapeError, DtypeError, DeviceError, LayoutError, KernelMissing; nothing is launched then.
    Defined by kvit.reference.merge_states. Dao et al., Flash-Decoding, 2023.
    """
    out_a = _checks.tensor("out_a", out_a)
    device = out_a.device
    stream = Stream.wrap(stream, device)
    out_b = _checks.tensor("out_b", out_b, out_a.dtype, stream)
    out = (
        Buffer.empty(out_a.shape, out_a.dtype, device, stream)
        if out is None
        else _checks.tensor("out", out, out_a.dtype)
    )
    _checks.require_shape("out_a", out_a, tokens=None, query_heads=None, head_dim=None)
    if out_a.dtype.bytes_for(out_a.shape[2]) % _WORD_BYTES:
        raise ShapeError(
            f"out_a has head_dim {out_a.shape[2]}; {out_a.dtype} needs an even one, to be read in words of 4 bytes"
        )
    axes = dict(zip(("tokens", "query_heads", "head_dim"), out_a.shape, strict=True))
    for name, found in (("out_a", out_a), ("out_b", out_b), ("out", out)):
        _checks.require_shape(name, found, **axes)
        _checks.require_rows(name, found, _WORD_BYTES)
    lse = Buffer.empty(out_a.shape[:2], "float32", device, stream) if lse is None else lse
    lse_a, lse_b, lse = (
        _checks.lse(name, found, out_a.shape) for name, found in (("lse_a", lse_a), ("lse_b", lse_b), ("lse", lse))
    )
    _checks.require_writable("out", out)
    _checks.require_writable("lse", lse)
    _checks.require_device(device, out_b=out_b, out=out, lse_a=lse_a, lse_b=lse_b, lse=lse)
    kernel = registry.find("merge", dtype=out_a.dtype.short)
    merge.merge(kernel, Device.of(device), out_a, lse_a, out_b, lse_b, out, lse, stream)
    return out, lse
