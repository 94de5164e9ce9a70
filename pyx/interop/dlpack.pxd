# DLPack's C structs, as its ABI fixes them (github.com/dmlc/dlpack, dlpack.h 1.3).
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    DL_CPU = 1
    DL_CUDA = 2
    DL_CUDA_HOST = 3                   # page-locked memory: the host reads it like its own
    DL_CUDA_MANAGED = 13

    DL_INT = 0
    DL_UINT = 1
    DL_FLOAT = 2
    DL_BFLOAT = 4
    DL_FLOAT8_E4M3FN = 10
    DL_FLOAT8_E5M2 = 12

    DL_FLAG_READ_ONLY = 1
    DL_FLAG_IS_COPIED = 2
    DL_FLAG_PADDED = 4                 # elements of fewer than 8 bits have a byte each


cdef struct DLDevice:
    int32_t device_type
    int32_t device_id


cdef struct DLDataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes


cdef struct DLTensor:
    void *data
    DLDevice device
    int32_t ndim
    DLDataType dtype
    int64_t *shape
    int64_t *strides                   # in elements; NULL: C-contiguous
    uint64_t byte_offset


cdef struct DLManagedTensor:
    DLTensor dl_tensor
    void *manager_ctx
    void (*deleter)(DLManagedTensor *self) noexcept


cdef struct DLPackVersion:
    uint32_t major
    uint32_t minor


cdef struct DLManagedTensorVersioned:
    DLPackVersion version
    void *manager_ctx
    void (*deleter)(DLManagedTensorVersioned *self) noexcept
    uint64_t flags
    DLTensor dl_tensor


# What a type's __dlpack_c_exchange_api__ points to. It lives as long as the process. No function waits for a stream, or
# lets one wait: current_work_stream says where the library works, and the caller orders its own stream behind that.
cdef struct DLPackExchangeHeader:
    DLPackVersion version
    DLPackExchangeHeader *prev_api     # an older version of it, or NULL


cdef struct DLPackExchangeAPI:
    DLPackExchangeHeader header
    void *managed_tensor_allocator
    # 0, or -1 with a Python exception set.
    int (*managed_tensor_from_py_object_no_sync)(void *source, DLManagedTensorVersioned **out) noexcept
    void *managed_tensor_to_py_object_no_sync
    void *dltensor_from_py_object_no_sync
    int (*current_work_stream)(int32_t device_type, int32_t device_id, void **out) noexcept
