# Caches and page tables as C hands them in: kvit_view and kvit_page_table.
from libc.stdint cimport int32_t

from kvit._native.checks cimport DeviceId
from kvit._native.host cimport KvitSpan
from kvit._native.packed_cache cimport CacheType
from kvit._native.params cimport KvitCache, KvitPageTable
from kvit._native.tensor_map cimport TensorMaps
from kvit.capi cimport kvit_page_table, kvit_view, kvit_view_info, kvit_view_options

# What a kvit_view stands for.
cdef struct ViewState:
    KvitCache cache
    KvitSpan[4] spans                  # of K, of V and of their parameters
    int num_spans
    CacheType type
    bint is_readonly
    const TensorMaps *maps             # of the CacheView
    void *view                         # kvit.CacheView, a counted reference

# The functions of kvit_api.
cdef int32_t view_create(const kvit_view_options *options, kvit_view **view) noexcept nogil
cdef int32_t view_query(kvit_view *view, kvit_view_info *info) noexcept nogil
cdef int32_t view_destroy(kvit_view *view) noexcept nogil

# A new handle for the memory of a kvit.CacheView, which it keeps.
cdef kvit_view *publish_view(object view) except NULL

# The kvit.CacheView of a handle; it lives on while a call has it, whoever destroys the handle. Raises where there is
# none.
cdef object find_view(kvit_view *view)

# Packs a table whose tensors a kernel can take. False where it cannot.
cdef bint pack_fitting_table(const kvit_page_table *table, DeviceId device, KvitPageTable *packed) noexcept nogil

# kvit.PageTable, for the Python operations. Raises ArgumentError, ShapeError, DtypeError, DeviceError, LayoutError.
cdef object to_table(const kvit_page_table *table)
