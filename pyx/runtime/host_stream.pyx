"""Streams of the host: work on one is done in order, by whichever thread gives it, or recorded for a graph."""
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from kvit._native.driver_table cimport (
    CAPTURE_INVALIDATED, CAPTURE_UNSUPPORTED, ILLEGAL_STATE, NOT_READY, OUT_OF_MEMORY, SUCCESS,
)
from kvit._native.forks cimport begin_work, end_work

cdef extern from "pthread.h" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


# What a handle points to. Its mutex is held while its work runs, and never while the GIL is waited for.
cdef struct HostStream:
    pthread_mutex_t mutex
    Recording *recording               # NULL unless the stream is being captured
    HostStream *next                   # of those that were made and not destroyed

cdef HostStream default_stream
default_stream.recording = NULL
pthread_mutex_init(&default_stream.mutex, NULL)

cdef HostStream *newest = NULL
cdef pthread_mutex_t registry          # held while the list of streams is read or changed
pthread_mutex_init(&registry, NULL)


cdef inline HostStream *stream_at(void *handle) noexcept nogil:
    return &default_stream if handle == NULL else <HostStream *>handle


cdef int run(void *handle, Work work, const void *arguments, size_t num_bytes) noexcept nogil:
    cdef Recording *recording
    cdef void *kept
    cdef int status
    begin_work()
    recording = enter(handle)
    if recording == NULL:
        status = work(arguments)
    else:
        kept = malloc(num_bytes)
        if kept != NULL:
            memcpy(kept, arguments, num_bytes)
        status = record(recording, work, kept)
    leave(handle)
    end_work()
    return status


cdef Recording *enter(void *handle) noexcept nogil:
    pthread_mutex_lock(&stream_at(handle).mutex)
    return stream_at(handle).recording


cdef void leave(void *handle) noexcept nogil:
    pthread_mutex_unlock(&stream_at(handle).mutex)


cdef int record(Recording *recording, Work work, void *arguments) noexcept nogil:
    cdef Recorded *items = NULL
    if arguments != NULL:
        items = <Recorded *>realloc(recording.items, (recording.count + 1) * sizeof(Recorded))
    if items == NULL:
        free(arguments)
        recording.is_broken = True
        return OUT_OF_MEMORY
    items[recording.count].work = work
    items[recording.count].arguments = arguments
    recording.items = items
    recording.count += 1
    return SUCCESS


cdef struct Copy:
    void *target
    const void *source
    size_t num_bytes


cdef struct Fill:
    void *data
    unsigned char value
    size_t num_bytes


cdef int do_copy(const void *arguments) noexcept nogil:
    cdef const Copy *wanted = <const Copy *>arguments
    memmove(wanted.target, wanted.source, wanted.num_bytes)
    return SUCCESS


cdef int do_fill(const void *arguments) noexcept nogil:
    cdef const Fill *wanted = <const Fill *>arguments
    memset(wanted.data, wanted.value, wanted.num_bytes)
    return SUCCESS


cdef int copy(void *target, const void *source, size_t num_bytes, void *stream) except? -1 nogil:
    cdef Copy wanted = Copy(target, source, num_bytes)
    return run(stream, do_copy, &wanted, sizeof(wanted))


cdef int fill(void *data, unsigned char value, size_t num_bytes, void *stream) except? -1 nogil:
    cdef Fill wanted = Fill(data, value, num_bytes)
    return run(stream, do_fill, &wanted, sizeof(wanted))


cdef bint is_stream(const void *handle) noexcept nogil:
    cdef HostStream *found
    begin_work()
    pthread_mutex_lock(&registry)
    found = newest
    while found != NULL and found != handle:
        found = found.next
    pthread_mutex_unlock(&registry)
    end_work()
    return found != NULL


cdef int stream_create(void **stream) except? -1 nogil:
    global newest
    cdef HostStream *made = <HostStream *>calloc(1, sizeof(HostStream))
    if made == NULL:
        return OUT_OF_MEMORY
    pthread_mutex_init(&made.mutex, NULL)
    stream[0] = made
    begin_work()
    pthread_mutex_lock(&registry)
    made.next = newest
    newest = made
    pthread_mutex_unlock(&registry)
    end_work()
    return SUCCESS


cdef int stream_destroy(void *stream) except? -1 nogil:
    global newest
    cdef HostStream *old = <HostStream *>stream
    cdef HostStream **link = &newest
    begin_work()
    pthread_mutex_lock(&registry)
    while link[0] != old:
        link = &link[0].next
    link[0] = old.next
    pthread_mutex_unlock(&registry)
    end_work()
    graph_destroy(old.recording)
    pthread_mutex_destroy(&old.mutex)
    free(old)
    return SUCCESS


cdef int stream_synchronize(void *stream) except? -1 nogil:
    cdef Recording *recording
    begin_work()
    recording = enter(stream)  # once it is ours, what other threads gave it is done
    if recording != NULL:
        recording.is_broken = True
    leave(stream)
    end_work()
    return SUCCESS if recording == NULL else CAPTURE_UNSUPPORTED


cdef int stream_query(void *stream) except? -1 nogil:
    cdef HostStream *found = stream_at(stream)
    cdef int status = SUCCESS
    begin_work()
    if pthread_mutex_trylock(&found.mutex) != 0:
        status = NOT_READY
    else:
        if found.recording != NULL:
            found.recording.is_broken = True
            status = CAPTURE_UNSUPPORTED
        leave(stream)
    end_work()
    return status


cdef int stream_is_capturing(void *stream, int *is_capturing) except? -1 nogil:
    is_capturing[0] = stream_at(stream).recording != NULL
    return SUCCESS


cdef int capture_begin(void *stream) except? -1 nogil:
    cdef Recording *recording
    cdef int status = SUCCESS
    if stream == NULL:
        return CAPTURE_UNSUPPORTED
    begin_work()
    if enter(stream) != NULL:
        status = ILLEGAL_STATE
    else:
        recording = <Recording *>calloc(1, sizeof(Recording))
        if recording == NULL:
            status = OUT_OF_MEMORY
        else:
            pthread_mutex_init(&recording.mutex, NULL)
            (<HostStream *>stream).recording = recording
    leave(stream)
    end_work()
    return status


cdef int capture_end(void *stream, void **graph) except? -1 nogil:
    cdef Recording *recording
    begin_work()
    recording = enter(stream)
    stream_at(stream).recording = NULL
    leave(stream)
    end_work()
    graph[0] = NULL
    if recording == NULL:
        return ILLEGAL_STATE
    if recording.is_broken:
        graph_destroy(recording)
        return CAPTURE_INVALIDATED
    graph[0] = recording
    return SUCCESS


cdef int graph_destroy(void *graph) except? -1 nogil:
    cdef Recording *recording = <Recording *>graph
    cdef size_t i
    if recording == NULL:
        return SUCCESS
    for i in range(recording.count):
        free(recording.items[i].arguments)
    free(recording.items)
    pthread_mutex_destroy(&recording.mutex)
    free(recording)
    return SUCCESS


cdef int graph_instantiate(void **executable, void *graph) except? -1 nogil:
    executable[0] = graph
    return SUCCESS


cdef int graph_launch(void *executable, void *stream) except? -1 nogil:
    cdef Recording *recording
    cdef int status
    begin_work()
    recording = enter(stream)
    if recording == NULL:
        status = replay(<Recording *>executable)
    else:  # a GPU does not take a graph into another's capture either
        recording.is_broken = True
        status = CAPTURE_UNSUPPORTED
    leave(stream)
    end_work()
    return status


cdef int replay(Recording *work) noexcept nogil:
    cdef int status = SUCCESS
    cdef size_t i
    pthread_mutex_lock(&work.mutex)
    for i in range(work.count):
        status = work.items[i].work(work.items[i].arguments)
        if status != SUCCESS:
            work.failed = i
            break
    pthread_mutex_unlock(&work.mutex)
    return status
