# Which device a call runs on, and the CUDA context that goes with it.
from kvit._native.driver_table cimport DriverTable


cdef class Device:
    cdef const DriverTable *driver
    cdef readonly bint is_host
    cdef readonly int ordinal          # of the GPU; -1 on the host
    cdef readonly str spec             # "cuda:0", "host"
    cdef int num_forks                 # when it was made: a child has no use of its parent's CUDA
    cdef void *primary                 # retained on first use; NULL until then
    cdef object default_stream         # the Stream of the legacy default stream, made by `stream` on first use
    cdef dict facts                    # attribute -> value, asked for once

    # Makes a context of this device current: the caller's if it belongs to the device, else the primary one.
    # Returns what `leave` must be given. Every call through `driver` stands between the two.
    cdef int enter(self) except -1
    # The driver. Raises TypeError for a Device that was not made by device_of.
    cdef const DriverTable *table(self) except NULL
    cdef void leave(self, int entered) noexcept
    # The primary context, retained.
    cdef void *primary_context(self) except? NULL
    cdef object attribute(self, int attribute)

# The Device that `spec` names: a Device, "host", "cuda" (= "cuda:0"), "cuda:N". One object per device and process.
cdef Device device_of(object spec)

# Stands in an object whose __init__ was not called, in place of its device: whatever needs a device says so.
cdef Device no_device()
