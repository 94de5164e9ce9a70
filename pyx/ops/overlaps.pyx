# cython: cdivision=True
"""Whether the elements of two tensors share memory."""
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.elements cimport bits_of
from kvit._native.tensor cimport Tensor


# An axis of a tensor: so many pieces, so many bytes apart.
cdef struct Axis:
    int64_t count
    int64_t stride

# Where the elements of a tensor lie: pieces of `width` bytes, on axes with falling strides.
cdef struct Pieces:
    uintptr_t begin
    int64_t width
    int num_axes
    Axis[8] axes                       # as many as tensors have at most


cdef bint meet(const kvit_tensor *a, const kvit_tensor *b) noexcept nogil:
    cdef Extent extent, other
    cdef Pieces first, second
    if a == NULL or b == NULL:
        return False
    extent, other = extent_at(a), extent_at(b)
    if not cross(&extent, &other):
        return False
    describe(&first, a)
    describe(&second, b)
    return pieces_meet(&first, 0, &second, 0, <int64_t>(second.begin - first.begin))


cdef bint are_same(const kvit_tensor *a, const kvit_tensor *b) noexcept nogil:
    cdef int i
    if a.data != b.data or a.dtype != b.dtype or a.ndim != b.ndim:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i] or (a.shape[i] > 1 and a.strides[i] != b.strides[i]):
            return False
    return True


cdef bint meets_itself(const kvit_tensor *memory) noexcept nogil:
    cdef Pieces pieces
    cdef int i
    if memory == NULL:
        return False
    for i in range(memory.ndim):
        if memory.shape[i] == 0:
            return False
    for i in range(memory.ndim):
        if memory.shape[i] > 1 and memory.strides[i] == 0 and not is_packed(memory, i):
            return True
    describe(&pieces, memory)
    for i in range(pieces.num_axes):
        if pieces.axes[i].stride < reach(&pieces, i + 1):
            return True
    return False


cdef bint is_packed(const kvit_tensor *memory, int axis) noexcept nogil:
    """Whether this is the last axis of a 4-bit type, whose stride reads 0."""
    return axis == memory.ndim - 1 and bits_of(memory.dtype) < 8


cdef void describe(Pieces *pieces, const kvit_tensor *memory) noexcept nogil:
    """Sort the axes of a tensor that has elements. What is repeated at stride 0 counts once."""
    cdef int bits = bits_of(memory.dtype)
    cdef int last = memory.ndim - 1
    cdef int i, place
    cdef Axis axis
    pieces.begin = <uintptr_t>memory.data
    pieces.width = bits // 8 if bits >= 8 else memory.shape[last] * bits // 8
    pieces.num_axes = 0
    for i in range(memory.ndim):
        axis.count = memory.shape[i]
        axis.stride = memory.strides[i]
        if axis.count == 1 or axis.stride == 0:
            continue
        if axis.stride < 0:
            pieces.begin += (axis.count - 1) * axis.stride
            axis.stride = -axis.stride
        place = pieces.num_axes
        while place > 0 and pieces.axes[place - 1].stride < axis.stride:
            pieces.axes[place] = pieces.axes[place - 1]
            place -= 1
        pieces.axes[place] = axis
        pieces.num_axes += 1
    # Pieces that touch are one.
    while pieces.num_axes > 0 and pieces.axes[pieces.num_axes - 1].stride == pieces.width:
        pieces.num_axes -= 1
        pieces.width *= pieces.axes[pieces.num_axes].count


cdef int64_t reach(const Pieces *pieces, int first_axis) noexcept nogil:
    """Bytes from the beginning of the first piece to the end of the last one, on the axes from `first_axis` on."""
    cdef int64_t found = pieces.width
    cdef int i
    for i in range(first_axis, pieces.num_axes):
        found += (pieces.axes[i].count - 1) * pieces.axes[i].stride
    return found


cdef bint pieces_meet(const Pieces *a, int a_axis, const Pieces *b, int b_axis, int64_t offset) noexcept nogil:
    """Whether pieces of a, on its axes from a_axis on, meet those of b, which begin `offset` bytes behind them.

    Of the axis with the largest stride T, which both may have, what lies inside T on either side is compared once for
    each of the two ways in which one can lie beside the other: `offset` modulo T, and T less than that.
    """
    cdef int64_t a_reach = reach(a, a_axis)
    cdef int64_t b_reach = reach(b, b_axis)
    cdef int64_t period, steps, rest, a_stride, b_stride
    cdef int64_t a_count = 1
    cdef int64_t b_count = 1
    cdef int i
    if offset >= a_reach or -offset >= b_reach:
        return False
    a_stride = a.axes[a_axis].stride if a_axis < a.num_axes else 0
    b_stride = b.axes[b_axis].stride if b_axis < b.num_axes else 0
    period = max(a_stride, b_stride)
    if period == 0:
        return True
    if a_stride == period:
        a_count = a.axes[a_axis].count
        a_axis += 1
    if b_stride == period:
        b_count = b.axes[b_axis].count
        b_axis += 1
    if reach(a, a_axis) > period or reach(b, b_axis) > period:
        return True
    steps = offset // period
    rest = offset - steps * period
    if rest < 0:
        steps -= 1
        rest += period
    for i in range(2):  # piece j of b lies rest - i * period behind piece i of a where j - i = -steps - i
        if -a_count < -steps - i < b_count and pieces_meet(a, a_axis, b, b_axis, rest - i * period):
            return True
    return False


def tensors_meet(Tensor a not None, Tensor b not None) -> bool:
    """Whether any byte belongs to an element of both; also where strides do not tell them apart."""
    return meet(&a.memory, &b.memory)


def tensors_are_same(Tensor a not None, Tensor b not None) -> bool:
    """Whether both are the same elements of the same memory, in the same places."""
    return are_same(&a.memory, &b.memory)


def tensor_meets_itself(Tensor tensor not None) -> bool:
    """Whether two elements share a byte; also where strides do not tell them apart."""
    return meets_itself(&tensor.memory)
