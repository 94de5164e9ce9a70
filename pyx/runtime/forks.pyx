"""What fork() leaves a child: the host's memory as between two calls, and Python only where Python itself forked.

A child has one thread, and every lock as it was. So a fork waits for the work that other threads do on the host; and
locks that only one process can hold are asked how many forks ago they were made.
"""
import os

# A lock for reading is held by what works, the one for writing by a fork. Forks come first, or threads that never rest
# would keep one waiting for ever.
cdef extern from * nogil:
    """
    #include <pthread.h>
    static pthread_rwlock_t kvit_work = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
    static int kvit_num_forks = 0;
    static int kvit_has_lost_python = 0;

    static void kvit_before_fork(void) { pthread_rwlock_wrlock(&kvit_work); }
    static void kvit_after_fork(void) { pthread_rwlock_unlock(&kvit_work); }
    static void kvit_in_child(void) {
      /* Made anew: the lock knows of threads that are not here. */
      const pthread_rwlock_t fresh = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
      kvit_work = fresh;
      kvit_num_forks += 1;
      kvit_has_lost_python = 1;
    }
    """
    ctypedef struct pthread_rwlock_t:
        pass
    pthread_rwlock_t kvit_work
    int kvit_num_forks
    int kvit_has_lost_python
    void kvit_before_fork() noexcept
    void kvit_after_fork() noexcept
    void kvit_in_child() noexcept
    int pthread_rwlock_rdlock(pthread_rwlock_t *lock)
    int pthread_rwlock_unlock(pthread_rwlock_t *lock)
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)


cdef void begin_work() noexcept nogil:
    pthread_rwlock_rdlock(&kvit_work)


cdef void end_work() noexcept nogil:
    pthread_rwlock_unlock(&kvit_work)


cdef int32_t num_forks() noexcept nogil:
    return kvit_num_forks


cdef bint has_lost_python() noexcept nogil:
    return kvit_has_lost_python


cdef int at_fork(Forget forget) except -1:
    if pthread_atfork(NULL, NULL, forget) != 0:
        raise MemoryError("no memory for what a fork has to do")
    return 0


def keep_python():
    """What os.fork calls in the child, once it has made Python's own locks anew."""
    global kvit_has_lost_python
    kvit_has_lost_python = 0


if pthread_atfork(kvit_before_fork, kvit_after_fork, kvit_in_child) != 0:
    raise MemoryError("no memory for what a fork has to do")
os.register_at_fork(after_in_child=keep_python)
