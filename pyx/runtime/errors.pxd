# Turns a driver status into a Python exception.

# How to ask the driver for the name of a status; set by `driver` when a driver is loaded.
ctypedef const char *(*StatusName)(int status) noexcept nogil

cdef StatusName status_name

# Raises DriverError unless `status` is 0. `call` is the driver function that returned it.
cdef int check(int status, const char *call) except -1 nogil

# Raises DriverError for a status that is not 0; `detail` goes into the message: what was being done, to what.
cdef int fail(int status, const char *call, str detail) except -1
