# Kernels as they are loaded: from a fatbin on a GPU, from the host library elsewhere.
from kvit._native.context cimport Device
from kvit._native.driver_table cimport DriverTable
from kvit._native.host cimport KvitHostKernel


cdef class Library:
    cdef const DriverTable *driver
    cdef void *handle                  # CUlibrary: one serves every GPU of the process
    cdef readonly str path


cdef class Kernel:
    cdef readonly object entry         # kvit.selection.registry.KernelInfo
    cdef Device home
    cdef readonly Library library      # None on the host
    cdef void *handle                  # CUkernel; NULL on the host
    cdef const KvitHostKernel *host    # NULL on a GPU
    cdef unsigned int threads
    cdef unsigned int shared_bytes
    cdef bint overlaps                 # waits for the kernel before it by itself, and may begin before that has ended
    cdef readonly int params_bytes

# The loaded kernel of a registry entry on a device: one per (file, symbol, device), loaded on first use.
cdef Kernel load_kernel(object entry, Device device)
