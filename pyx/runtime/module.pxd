# Kernels as they are loaded: from a cubin or PTX on a GPU, from the host library elsewhere.
from kvit._native.context cimport Device
from kvit._native.driver_table cimport DriverTable, LaunchConfig
from kvit._native.host cimport KvitHostKernel


cdef class Library:
    cdef const DriverTable *driver
    cdef void *handle                  # CUlibrary: one serves every GPU of the process
    cdef readonly str path


cdef class Kernel:
    cdef readonly object entry         # kvit.selection.registry.KernelInfo
    cdef Device dev
    cdef readonly Library library      # None on the host
    cdef void *handle                  # CUkernel; NULL on the host
    cdef const KvitHostKernel *host    # NULL on a GPU
    cdef LaunchConfig config           # of its launches, whose grid is a call's; (0, 1, 1) here
    cdef readonly int params_bytes

    # The config of a launch of so many CTAs.
    cdef LaunchConfig config_of(self, unsigned int ctas) noexcept nogil

# The loaded kernel of a registry entry on a device: one per (file, symbol, device), loaded on first use.
cdef Kernel load_kernel(object entry, Device device)
