# What a launch touches: memory that it waits for, and that the host backend lets it read and write.
from libc.stdint cimport uintptr_t

from kvit._native.host cimport KvitSpan
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor
from kvit.capi cimport kvit_tensor

cdef enum:
    MAX_SPANS = 40         # a merge of 16 parts has 34


# The memory that a launch on the host may touch; a GPU ignores it. Starts with count = 0.
cdef struct Spans:
    int count
    KvitSpan[40] items

# The bytes of a tensor.
cdef KvitSpan span_of(const kvit_tensor *memory, bint is_written) noexcept nogil

# Adds the bytes of a tensor; NULL is skipped. The caller knows that there is room.
cdef void add_memory(Spans *spans, const kvit_tensor *memory, bint is_written) noexcept nogil

# Says that what was added last is a workspace, if anything was: SPAN_IS_WORKSPACE.
cdef void set_workspace(Spans *spans) noexcept nogil

# Lets what was added from `first` on be touched before the grid dependency sync: what the launch in front leaves alone.
cdef void set_pre_dependency(Spans *spans, int first) noexcept nogil

# Adds a tensor. Raises LayoutError for memory that is written and must not be, ShapeError for too many pieces.
cdef int add_tensor(Spans *spans, Tensor tensor, bint is_written) except -1

# Lets the launch touch a tensor once its producer is done. None is skipped; a GPU needs no spans. Raises as add_tensor.
# Inline: a call has a dozen, of which most have nothing to do.
cdef inline int use(Spans *spans, Stream stream, Tensor tensor, bint is_written) except -1:
    if tensor is None:
        return 0
    if tensor.ready_stream != 0:
        stream.order_after(tensor)
    if stream.kept is not None:
        stream.keep(tensor)
    return add_tensor(spans, tensor, is_written) if stream.dev.is_host else 0
