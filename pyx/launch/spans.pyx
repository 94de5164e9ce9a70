"""What a launch touches: memory that it waits for, and that the host backend lets it read and write."""
from libc.stdint cimport int64_t

from kvit._native.host cimport SPAN_IS_WORKSPACE, SPAN_IS_WRITTEN
from kvit._native.elements cimport extent_of

from kvit.errors import LayoutError, ShapeError


cdef KvitSpan span_of(const kvit_tensor *memory, bint is_written) noexcept nogil:
    cdef KvitSpan span
    cdef uintptr_t low, high
    extent_of(memory, &low, &high)
    span.base = <const void *>low
    span.bytes = <int64_t>(high - low)
    span.writable = SPAN_IS_WRITTEN if is_written else 0
    span.pre_dependency = 0
    return span


cdef void add_memory(Spans *spans, const kvit_tensor *memory, bint is_written) noexcept nogil:
    if memory != NULL:
        spans.items[spans.count] = span_of(memory, is_written)
        spans.count += 1


cdef void set_workspace(Spans *spans) noexcept nogil:
    if spans.count != 0:
        spans.items[spans.count - 1].writable = SPAN_IS_WORKSPACE


cdef void set_pre_dependency(Spans *spans, int first) noexcept nogil:
    cdef int i
    for i in range(first, spans.count):
        spans.items[i].pre_dependency = 1


cdef int add_tensor(Spans *spans, Tensor tensor, bint is_written) except -1:
    if is_written and tensor.memory.readonly:
        raise LayoutError(f"{tensor!r} is read-only, and the kernel writes it; give memory that can be written")
    if spans.count == MAX_SPANS:
        raise ShapeError(f"a launch on the host takes at most {MAX_SPANS} pieces of memory")
    add_memory(spans, &tensor.memory, is_written)
    return 0
