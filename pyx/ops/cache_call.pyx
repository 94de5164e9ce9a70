"""What calls on a cache ask of their arguments in C: whether they fit the shape of cache that a call is for."""
from kvit._native.tensor cimport KVIT_I32, ON_CUDA, ON_HOST

cdef enum:
    VECTOR_BYTES = 16      # kvit/_checks.py says why: rows begin at multiples of it
    MOST = 0x7FFFFFFF      # rows that kernels can index


cdef class CacheCall:
    """Base of the calls of kvit.Attention, kvit.Append and kvit.Gather, each made for one shape of cache."""

    cdef int made_for(self, Device home, HoldsFaults faults, PackedCache cache) except -1:
        self.home = home
        self.faults = faults
        self.device_type = ON_HOST if home.is_host else ON_CUDA
        self.device_id = 0 if home.is_host else home.ordinal
        self.kv_heads = cache.value.num_kv_heads
        self.head_dim = cache.value.head_dim
        self.k_code = cache.k.code
        self.v_code = cache.v.code
        self.cache_code = cache.code
        return 0

    cdef int rows_of_each(self, int64_t rows, PackedTable table, Tensor tokens) noexcept:
        if not self.is_here(table.lengths):
            return -1
        if tokens is not None:
            return 0 if self.is_indptr(tokens, table.value.num_sequences) else -1
        if table.value.num_sequences == 0 or rows % table.value.num_sequences != 0:
            return -1
        return <int>(rows // table.value.num_sequences)

    cdef bint is_here(self, Tensor tensor) noexcept:
        return tensor.device_type == self.device_type and tensor.device_id == self.device_id

    cdef bint is_cache(self, PackedCache cache) noexcept:
        return (
            cache.value.num_kv_heads == self.kv_heads and cache.value.head_dim == self.head_dim
            and cache.k.code == self.k_code and cache.v.code == self.v_code and cache.code == self.cache_code
            and self.is_here(cache.k)
        )

    cdef bint are_rows(self, Tensor rows, int heads, int code) noexcept:
        return (
            rows.ndim == 3 and rows.code == code and self.is_here(rows) and rows.dims[0] <= MOST
            and rows.dims[1] == heads and rows.dims[2] == self.head_dim
            and rows.steps[2] == rows.bits // 8
            and (<size_t>rows.data | <size_t>rows.steps[0] | <size_t>rows.steps[1]) % VECTOR_BYTES == 0
        )

    cdef bint is_indptr(self, Tensor tokens, int num_sequences) noexcept:
        return (
            tokens.ndim == 1 and tokens.code == KVIT_I32 and self.is_here(tokens)
            and tokens.dims[0] == <int64_t>num_sequences + 1 and tokens.is_dense_last()
        )
