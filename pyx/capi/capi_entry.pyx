"""The way of the C API into Python: shut before Python ends, and where a fork left Python behind.

Python stops a thread that comes for the GIL while it ends, with all locks that the thread has. So the way is shut
first, and Python's end waits for the calls that are inside.
"""
import atexit

from libc.stdio cimport snprintf

from kvit._native.capi_error cimport ERROR_BYTES, error_text
from kvit._native.forks cimport at_fork, has_lost_python

cdef extern from "Python.h":
    int Py_IsInitialized() noexcept nogil

cdef extern from "unistd.h" nogil:
    int usleep(unsigned int microseconds)

# GCC's and clang's own atomics: plain C has none that Cython could declare.
cdef extern from * nogil:
    int __ATOMIC_SEQ_CST
    int32_t load "__atomic_load_n"(const int32_t *place, int order)
    void store "__atomic_store_n"(int32_t *place, int32_t value, int order)
    int32_t add "__atomic_add_fetch"(int32_t *place, int32_t value, int order)

cdef enum:
    STEP_US = 500
    LONGEST_US = 10_000_000            # a call that waits for a GPU which never ends does not keep the process

cdef int32_t num_inside = 0
cdef int32_t is_shut = 0


cdef bint enter_python() noexcept nogil:
    # Count first, then look: shut closes the way first, then waits for the count.
    add(&num_inside, 1, __ATOMIC_SEQ_CST)
    if load(&is_shut, __ATOMIC_SEQ_CST) == 0 and Py_IsInitialized() and not has_lost_python():
        return True
    add(&num_inside, -1, __ATOMIC_SEQ_CST)
    if has_lost_python():
        snprintf(error_text(), ERROR_BYTES, b"NoInterpreter: this process was forked from C, and a thread of its "
                 b"parent may have had Python's locks; fork by os.fork, or start another program by exec")
    else:
        snprintf(error_text(), ERROR_BYTES, b"NoInterpreter: Python has ended, or is about to; call kvit before "
                 b"Py_Finalize")
    return False


cdef int32_t leave_python(int32_t status) noexcept nogil:
    add(&num_inside, -1, __ATOMIC_SEQ_CST)
    return status


cdef void forget_calls() noexcept nogil:
    """In the child of a fork: the calls are those of threads that are not here."""
    store(&num_inside, 0, __ATOMIC_SEQ_CST)


def shut():
    """What Python calls when it is about to end: no call comes in any more, and those that are inside have left."""
    cdef int waited_us = 0
    store(&is_shut, 1, __ATOMIC_SEQ_CST)
    with nogil:
        while load(&num_inside, __ATOMIC_SEQ_CST) > 0 and waited_us < LONGEST_US:
            usleep(STEP_US)
            waited_us += STEP_US


at_fork(forget_calls)
atexit.register(shut)
