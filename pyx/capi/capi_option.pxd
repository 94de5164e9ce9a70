# Options and answers of the C API: structs that begin with their size, and the constants in them.
from libc.stdint cimport int32_t, uint32_t

from kvit.capi cimport KVIT_HADAMARD


# kvit.dtypes.Dtype, or None for code 0. Raises DtypeError.
cdef object to_dtype(int32_t code, str name)

# kvit.codecs.Codec of a dtype that may have KVIT_HADAMARD, or None for code 0; and the other way. Raises DtypeError.
cdef object to_codec(int32_t code, str name)
cdef inline int32_t stored_as(int32_t dtype, bint is_transformed) noexcept nogil:
    return dtype | (KVIT_HADAMARD if is_transformed else 0)

# "NHD" or "HND". Raises ArgumentError.
cdef str to_layout(int32_t layout, str default)

# Whether an enum kvit_mask is the causal one. Raises ArgumentError.
cdef bint is_causal(int32_t mask) except -1

# Whether an option that is 0 or 1 is 1. Raises ArgumentError.
cdef bint is_set(int32_t option, str name) except -1

# "direct" or "graph". Raises ArgumentError.
cdef str to_launch(int32_t launch)

# Raises ArgumentError unless there is a place for a new handle.
cdef int check_target(const void *target, str name, str kind) except -1

# Copies options that have grown since they had the bytes of one of `earlier` to `read`, which has the `known` bytes of
# today: what the caller's header did not have yet is 0. Raises ArgumentError.
cdef int read_options(void *read, const void *options, list earlier, uint32_t known, str name) except -1

# Raises ArgumentError unless a struct that begins with its size is there and has `known` bytes.
cdef int check_size(const void *options, uint32_t known, str name) except -1

# Fills the caller's struct from `found`, if it has the `known` bytes, or the `earlier` ones that it had before it grew.
# Returns a kvit_status.
cdef int32_t answer(void *info, void *found, uint32_t earlier, uint32_t known, const char *name) noexcept nogil
