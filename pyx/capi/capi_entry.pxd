# The way of the C API into Python: shut before Python ends, and where a fork left Python behind.
from libc.stdint cimport int32_t

# Whether Python can be entered; where it cannot, the last error of the thread says why. A call that was let in ends
# with leave_python, which gives its status back. What takes the GIL is a function of its own, called in between: one
# that may take it goes through Python whether it did or not.
cdef bint enter_python() noexcept nogil
cdef int32_t leave_python(int32_t status) noexcept nogil
