"""The union of attention results over different keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvit import _checks, dtypes
from kvit._native import merge
from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import ShapeError
from kvit.ops import aliases
from kvit.selection import registry

_WORD_BYTES = 4  # what a lane of the kernel moves at a time
_OUT_DTYPES = (dtypes.float16, dtypes.bfloat16, dtypes.float32)


def merge_state(
    out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, *, out: Any = None, lse: Any = None, stream: Any = None
) -> tuple[Any, Any]:
    """The attention over the union of two disjoint sets of keys, from the attention over each.

    out_a, out_b  [tokens, query_heads, head_dim], f16, bf16 or f32
    lse_a, lse_b  float32 [tokens, query_heads], natural log

    The rest is as merge_states says, whose parts these are.
    """
    return _merge_list(("out_a", "out_b"), ("lse_a", "lse_b"), (out_a, out_b), (lse_a, lse_b), out, lse, stream)


def merge_states(outs: Any, lses: Any, *, out: Any = None, lse: Any = None, stream: Any = None) -> tuple[Any, Any]:
    """The attention over the union of disjoint sets of keys, from the attention over each: one part or more.

    outs    list of [tokens, query_heads, head_dim], or all of them stacked, [parts, tokens, query_heads, head_dim];
            f16, bf16 or f32
    lses    list of float32 [tokens, query_heads], or [parts, tokens, query_heads]; natural log
    out     [tokens, query_heads, head_dim], written; f32 where parts have 16 bits, f16 or bf16 where they have 32, or
            of their type, as which it is allocated if absent
    lse     float32 [tokens, query_heads], written; allocated if absent
    stream  Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

    Returns (out, lse), those that were given. Weights and sums are float32, part after part, and the result is rounded
    once: the same bits by every call. One launch merges a list of up to 16 parts, and stacked parts of any number; of a
    longer list every 16 are merged into float32 memory, which the call allocates, and these results then.
    A part with lse = -inf adds nothing, whatever its output holds; without any other the result is zeros and -inf. +inf
    counts as -inf: vLLM and FlashAttention write it where there were no keys.
    In place: out may be a part, and lse the lse of a part. Any other overlap with what is read is refused.
    Raises ShapeError, DtypeError, DeviceError, LayoutError, KernelMissing; nothing is launched then.
    Defined by kvit.reference.merge_states. Dao et al., Flash-Decoding, 2023.
    """
    is_list = isinstance(outs, list | tuple)
    if is_list != isinstance(lses, list | tuple):
        raise ShapeError(
            f"outs is a {type(outs).__name__} and lses a {type(lses).__name__}; give lists of both, or stack both"
        )
    if not is_list:
        return _merge_stacked(outs, lses, out, lse, stream)
    if len(outs) != len(lses) or not outs:
        raise ShapeError(f"there are {len(outs)} outs and {len(lses)} lses; give as many of both, at least one")
    names = tuple(f"outs[{i}]" for i in range(len(outs))), tuple(f"lses[{i}]" for i in range(len(outs)))
    return _merge_list(*names, outs, lses, out, lse, stream)


def _merge_list(
    out_names: Sequence[str],
    lse_names: Sequence[str],
    given_outs: Sequence[Any],
    given_lses: Sequence[Any],
    out: Any,
    lse: Any,
    stream: Any,
) -> tuple[Any, Any]:
    first = _checks.tensor(out_names[0], given_outs[0])
    on = Stream.wrap(stream, first.device)
    _checks.require_shape(out_names[0], first, tokens=None, query_heads=None, head_dim=None)
    outs = [
        first,
        *(_checks.tensor(*pair, first.dtype, on) for pair in zip(out_names[1:], given_outs[1:], strict=True)),
    ]
    lses = [_checks.lse(*pair, first.shape) for pair in zip(lse_names, given_lses, strict=True)]
    for name, found in zip(out_names, outs, strict=True):
        _require_rows_of(first.shape, name, found)
    named = tuple(zip(out_names, outs, strict=True)), tuple(zip(lse_names, lses, strict=True))
    _checks.require_device(first.device, **dict(named[0]), **dict(named[1]))
    into = _Result(first, out, lse, on)
    aliases.require_apart("out", into.out, ("lse", into.lse), *named[0], *named[1], same=tuple(out_names))
    aliases.require_apart("lse", into.lse, *named[1], *named[0], same=tuple(lse_names))
    kernel, device = registry.find("merge", dtype=first.dtype.short, out=into.out.dtype.short), Device.of(first.device)
    most = merge.MOST_PARTS
    if len(outs) <= most:
        merge.merge_list(kernel, device, outs, lses, into.out, into.lse, on)
        return into.given
    rounds = -(-len(outs) // most)
    partial = registry.find("merge", dtype=first.dtype.short, out="f32")
    kernel = registry.find("merge", dtype="f32", out=into.out.dtype.short)
    sums = Buffer.empty((rounds, *first.shape), "float32", device, on)
    sums_lse = Buffer.empty((rounds, *first.shape[:2]), "float32", device, on)
    for i in range(rounds):
        part = slice(i * most, (i + 1) * most)
        merge.merge_list(partial, device, outs[part], lses[part], sums[i], sums_lse[i], on)
    merge.merge_stacked(kernel, device, sums, sums_lse, into.out, into.lse, on)
    return into.given


def _merge_stacked(given_outs: Any, given_lses: Any, out: Any, lse: Any, stream: Any) -> tuple[Any, Any]:
    outs = _checks.tensor("outs", given_outs)
    on = Stream.wrap(stream, outs.device)
    _checks.require_shape("outs", outs, parts=None, tokens=None, query_heads=None, head_dim=None)
    if outs.shape[0] == 0:
        raise ShapeError(f"outs has shape {list(outs.shape)}: no parts; give at least one")
    lses = _checks.tensor("lses", given_lses, dtypes.float32, on)
    _checks.require_shape("lses", lses, **dict(zip(("parts", "tokens", "query_heads"), outs.shape[:3], strict=True)))
    _require_words("outs", outs)
    _checks.require_device(outs.device, outs=outs, lses=lses)
    first = _part(outs, 0)
    into = _Result(first, out, lse, on)
    # Only what lies over a part is compared with every part.
    parts, part_lses = _parts_if_met("outs", outs, into.out), _parts_if_met("lses", lses, into.lse)
    names = tuple(name for name, _ in (*parts, *part_lses))
    aliases.require_apart("out", into.out, ("lse", into.lse), ("lses", lses), *parts, same=names)
    aliases.require_apart("lse", into.lse, ("outs", outs), *part_lses, same=names)
    kernel = registry.find("merge", dtype=first.dtype.short, out=into.out.dtype.short)
    merge.merge_stacked(kernel, Device.of(outs.device), outs, lses, into.out, into.lse, on)
    return into.given


class _Result:
    """Where a merge of parts like `part` writes: what was given, checked, or new memory."""

    def __init__(self, part: Tensor, out: Any, lse: Any, stream: Stream):
        self.out = _checks.tensor(
            "out", Buffer.empty(part.shape, part.dtype, part.device, stream) if out is None else out
        )
        if self.out.dtype not in _OUT_DTYPES:  # raw integers, as numpy has for bfloat16
            self.out = _checks.tensor("out", self.out, part.dtype)
        _require_rows_of(part.shape, "out", self.out)
        lse = Buffer.empty(part.shape[:2], "float32", part.device, stream) if lse is None else lse
        self.lse = _checks.lse("lse", lse, part.shape)
        self.given = self.out if out is None else out, lse
        _checks.require_writable("out", self.out)
        _checks.require_writable("lse", self.lse)
        _checks.require_device(part.device, out=self.out, lse=self.lse)


def _require_rows_of(shape: tuple[int, ...], name: str, found: Tensor) -> None:
    _checks.require_shape(name, found, **dict(zip(("tokens", "query_heads", "head_dim"), shape, strict=True)))
    _require_words(name, found)


def _require_words(name: str, found: Tensor) -> None:
    if found.dtype.bytes_for(found.shape[-1]) % _WORD_BYTES:
        raise ShapeError(
            f"{name} has head_dim {found.shape[-1]}; {found.dtype} needs an even one, to be read in words of 4 bytes"
        )
    _checks.require_rows(name, found, _WORD_BYTES)


def _part(stacked: Tensor, index: int) -> Tensor:
    """Part `index` of stacked ones."""
    return Tensor.from_pointer(
        stacked.pointer + index * stacked.strides[0], stacked.shape[1:], stacked.dtype, stacked.device,
        strides=stacked.strides[1:], readonly=stacked.readonly, owner=stacked,
    )  # fmt: skip


def _parts_if_met(name: str, stacked: Tensor, written: Tensor) -> tuple[aliases.Named, ...]:
    """The parts, each by its name, if something written lies over any."""
    if not aliases.tensors_meet(stacked, written):
        return ()
    return tuple((f"{name}[{i}]", _part(stacked, i)) for i in range(stacked.shape[0]))
