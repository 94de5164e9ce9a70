# The C structs by which XLA calls the handlers of custom calls, as its ABI of version 0 fixes them: what kvit uses.
from libc.stdint cimport int32_t, int64_t, uint32_t

cdef enum:
    XLA_EXTENSION_METADATA = 1
    XLA_STAGE_EXECUTE = 3
    XLA_IS_BUFFER = 1                  # of an argument, and of a result
    XLA_IS_STRING = 4                  # of an attribute
    XLA_INVALID_ARGUMENT = 3           # codes of errors
    XLA_FAILED_PRECONDITION = 9

    XLA_S8 = 2
    XLA_S32 = 4
    XLA_S64 = 5
    XLA_U8 = 6
    XLA_U16 = 7
    XLA_U32 = 8
    XLA_F16 = 10
    XLA_F32 = 11
    XLA_F64 = 12
    XLA_BF16 = 16
    XLA_F8E5M2 = 19
    XLA_F8E4M3FN = 20


# Every struct begins with its size as the side knows it that made it; extensions hang on a list.
cdef struct XlaExtension:
    size_t struct_size
    int type
    XlaExtension *next


cdef struct XlaVersion:
    size_t struct_size
    XlaExtension *extensions
    int major
    int minor


cdef struct XlaMetadata:
    size_t struct_size
    XlaVersion api_version             # written by a handler that is asked
    uint32_t traits                    # and so is this: 0 says that calls must not be captured


# Of version 0.1: without a size of its own, which tells it from the other.
cdef struct XlaFirstMetadata:
    XlaVersion api_version
    uint32_t traits


cdef struct XlaMetadataExtension:
    XlaExtension base
    XlaMetadata *metadata


cdef struct XlaError                   # NULL: none


cdef struct XlaErrorCreate:
    size_t struct_size
    XlaExtension *extensions
    const char *message
    int code


cdef struct XlaStreamGet:
    size_t struct_size
    XlaExtension *extensions
    void *context
    void *stream                       # a CUstream


cdef struct XlaOrdinalGet:
    size_t struct_size
    XlaExtension *extensions
    void *context
    int32_t ordinal                    # of the GPU


# Functions of the runtime, in its order. kvit calls three of them.
cdef struct XlaApi:
    size_t struct_size
    XlaExtension *extensions
    XlaVersion version
    const void *internal
    XlaError *(*error_create)(XlaErrorCreate *given) noexcept nogil
    void *error_get_message
    void *error_destroy
    void *handler_register
    XlaError *(*stream_get)(XlaStreamGet *given) noexcept nogil
    void *type_register
    void *context_get
    void *state_set
    void *state_get
    void *memory_allocate
    void *memory_free
    void *pool_schedule
    void *pool_num_threads
    void *future_create
    void *future_set_available
    void *future_set_error
    void *run_id_get
    XlaError *(*ordinal_get)(XlaOrdinalGet *given) noexcept nogil


cdef struct XlaBuffer:
    size_t struct_size
    XlaExtension *extensions
    int dtype
    void *data
    int64_t rank
    int64_t *shape                     # dense, the last axis innermost


cdef struct XlaBytes:
    const char *text                   # without a NUL behind it
    size_t length


cdef struct XlaBuffers:
    size_t struct_size
    XlaExtension *extensions
    int64_t count
    int *types
    void **items


cdef struct XlaAttributes:
    size_t struct_size
    XlaExtension *extensions
    int64_t count
    int *types
    XlaBytes **names
    void **items


cdef struct XlaCall:
    size_t struct_size
    XlaExtension *extensions
    const XlaApi *api
    void *context
    int stage
    XlaBuffers arguments
    XlaBuffers results
    XlaAttributes attributes
