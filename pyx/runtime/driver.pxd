# The CUDA driver: found and initialised when somebody first needs it.
from kvit._native.driver_table cimport DriverTable

# Its table. The first call loads and initialises the driver; raises NoGpuError where that fails.
cdef const DriverTable *cuda_table() except NULL

# CUDA version of the driver: 1000 * major + 10 * minor. Raises NoGpuError where there is none.
cdef int cuda_version() except -1

# Ordinal of the GPU whose memory this is; 0 where the driver does not know, or there is none.
cdef int gpu_of(const void *data) noexcept
