# How the C API says what went wrong: a status, and words that each thread has for itself.
from libc.stdint cimport int32_t

from kvit.capi cimport kvit_fault

cdef enum:
    ERROR_BYTES = 2048                 # of the words, the NUL included; longer ones are cut

# The calling thread's words; ERROR_BYTES that may be written.
cdef char *error_text() noexcept nogil

# Keeps the words of an exception for the thread, and returns its status. `fault` gets what a PageTableError says. What
# the handler of a signal raised is raised once more in the Python code that called, if such code is waiting. The status
# is kept and returned behind the except clause: `return` inside one, as Cython 3.3 compiles it, gives a traceback back
# that an exception has only where there was memory for it.
cdef int32_t set_last_error(object error, kvit_fault *fault=*) noexcept
