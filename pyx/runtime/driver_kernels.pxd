# The CUDA driver's functions for kernels, as a DriverTable has them. They raise where there is no driver.
from libc.stdint cimport int64_t

from kvit._native.driver_table cimport DriverTable

cdef void fill_kernels(DriverTable *table) noexcept

# A tensor map of bytes in five axes, the innermost dense, for boxes of the first two. dense_bytes: what L2 may fetch at
# once. Needs cuda_table() first.
cdef int encode_tensor_map(unsigned char *map, void *base, const int64_t *extents, const int64_t *strides,
                           int box_bytes, int box_rows, int64_t dense_bytes) except? -1 nogil
