# Streams of the host: work on one is done in order, by whichever thread gives it, or recorded for a graph.

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass

# One piece of work on what it needs to know. Not 0 where it fails.
ctypedef int (*Work)(const void *arguments) noexcept nogil


cdef struct Recorded:
    Work work
    void *arguments


# What a CUgraph and a CUgraphExec are on a GPU.
cdef struct Recording:
    pthread_mutex_t mutex              # a graph does not run beside itself
    Recorded *items
    size_t count
    size_t failed                      # item that failed when it was replayed last
    bint is_broken                     # something was asked for meanwhile that cannot be recorded

# Locks the stream (NULL: the default stream). Returns NULL where work may be done now; else it must be recorded.
# Between begin_work and end_work of forks, as are all the other functions by themselves.
cdef Recording *enter(void *handle) noexcept nogil
cdef void leave(void *handle) noexcept nogil
# Takes over `arguments`, which malloc made.
cdef int record(Recording *recording, Work work, void *arguments) noexcept nogil

# Whether this is the handle of a stream that lives: nothing behind it is read.
cdef bint is_stream(const void *handle) noexcept nogil

# What the DriverTable has of work, streams and graphs.
cdef int copy(void *target, const void *source, size_t num_bytes, void *stream) except? -1 nogil
cdef int fill(void *data, unsigned char value, size_t num_bytes, void *stream) except? -1 nogil
cdef int stream_create(void **stream) except? -1 nogil
cdef int stream_destroy(void *stream) except? -1 nogil
cdef int stream_synchronize(void *stream) except? -1 nogil
cdef int stream_query(void *stream) except? -1 nogil
cdef int stream_is_capturing(void *stream, int *is_capturing) except? -1 nogil
cdef int capture_begin(void *stream) except? -1 nogil
cdef int capture_end(void *stream, void **graph) except? -1 nogil
cdef int graph_destroy(void *graph) except? -1 nogil
cdef int graph_instantiate(void **executable, void *graph) except? -1 nogil
cdef int graph_launch(void *executable, void *stream) except? -1 nogil
