"""A rope as kernels take it: its numbers in device memory."""

from __future__ import annotations

from kvit._native import row_ops
from kvit._native.buffer import Buffer
from kvit.ops.rope import Rope


def pack_rope(rope: Rope, device: str) -> row_ops.PackedRope:
    """What a launch on the device needs of the rope. Raises NoGpuError."""
    import numpy

    steps = numpy.array(rope.steps, numpy.uint64).view(numpy.int64)
    axes = None if rope.axes is None else Buffer.from_numpy(numpy.array(rope.axes, numpy.uint8), device)
    return row_ops.PackedRope(Buffer.from_numpy(steps, device), rope.interleaved, rope.attention_factor, axes)
