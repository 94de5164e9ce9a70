# What fork() leaves a child: the host's memory as between two calls, and Python only where Python itself forked.
from libc.stdint cimport int32_t

# What works on the host's memory, or holds a lock of the runtime's, stands between these two. A fork waits until
# nothing does, and what would begin meanwhile waits for the fork. Not twice in one thread, and not while the GIL is
# waited for.
cdef void begin_work() noexcept nogil
cdef void end_work() noexcept nogil

# How many forks lie between this process and the one that loaded kvit.
cdef int32_t num_forks() noexcept nogil

# Whether this process was forked by other means than os.fork: threads of the parent may have held Python's locks.
cdef bint has_lost_python() noexcept nogil

# Has `forget` called in the child of every fork, before anything else of kvit runs there.
ctypedef void (*Forget)() noexcept nogil
cdef int at_fork(Forget forget) except -1
