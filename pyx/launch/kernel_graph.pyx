"""Launches of one kernel by a graph of it, whose parameters are set anew for each: what costs the host least."""
cimport cython
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from kvit._native.driver_table cimport OUT_OF_MEMORY, SUCCESS, DriverTable, LaunchConfig
from kvit._native.errors cimport check, fail

cdef extern from "pthread.h" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

# The driver functions, as they are called without the GIL: what they raise cannot be raised here. They return -1 then,
# which is no CUresult.
ctypedef int (*ContextId)(void *context, uint64_t *id) noexcept nogil
ctypedef int (*GraphCreate)(void **graph) noexcept nogil
ctypedef int (*GraphAddKernel)(void **made, void *graph, const KernelNode *node) noexcept nogil
ctypedef int (*GraphMakeExecutable)(void **executable, void *graph) noexcept nogil
ctypedef int (*GraphDestroy)(void *graph) noexcept nogil
ctypedef int (*ExecutableSetKernel)(void *executable, void *place, const KernelNode *node) noexcept nogil
ctypedef int (*GraphLaunch)(void *executable, void *stream) noexcept nogil


@cython.no_gc_clear
cdef class KernelGraph:
    """What launches one kernel by a graph of it, on any stream, from any thread.

    Launches of a graph never run side by side: each begins when the one before it has ended, on whatever stream that
    was. On the host the kernel is run as ever, and calls take turns there too.
    """

    def __cinit__(self):
        pthread_mutex_init(&self.mutex, NULL)

    def __init__(self):
        raise TypeError("KernelGraph.of(kernel) makes one")

    @staticmethod
    def of(Kernel kernel not None) -> KernelGraph:
        """A graph of the kernel, made for the context that its device is used in now. Raises DriverError."""
        return graph_of(kernel)

    def __dealloc__(self):
        cdef ContextGraph *old
        cdef int entered
        while self.newest != NULL:
            old = self.newest
            self.newest = old.next
            try:
                entered = self.kernel.dev.enter()
                self.kernel.dev.driver.executable_destroy(old.executable)  # work under way goes on to its end
                self.kernel.dev.driver.graph_destroy(old.graph)
                self.kernel.dev.leave(entered)
            except Exception:  # the driver is going away with the process
                pass
            free(old.params)
            free(old)
        pthread_mutex_destroy(&self.mutex)

    cdef void lock(self) noexcept nogil:
        pthread_mutex_lock(&self.mutex)

    cdef void unlock(self) noexcept nogil:
        pthread_mutex_unlock(&self.mutex)

    cdef int launch(self, void *context, const LaunchConfig *config, const void *params, void *stream,
                    const char **call) noexcept nogil:
        cdef const DriverTable *driver = self.kernel.dev.driver
        cdef KernelNode node = node_of(self.kernel, context, config, params)
        cdef ContextGraph *found = NULL
        cdef int status = self.find(&node, &found, call)
        if status == SUCCESS and not self.is_set(found, &node):
            call[0] = b"cuGraphExecKernelNodeSetParams"
            found.is_known = False
            status = (<ExecutableSetKernel>driver.executable_set_kernel)(found.executable, found.node, &node)
            if status == SUCCESS:
                found.config = config[0]
                found.is_known = True
                memcpy(found.params, params, self.kernel.params_bytes)
        if status == SUCCESS:
            call[0] = b"cuGraphLaunch"
            status = (<GraphLaunch>driver.graph_launch)(found.executable, stream)
        return status

    cdef bint is_set(self, const ContextGraph *graph, const KernelNode *node) noexcept nogil:
        """Whether the node was set to just this by the launch before."""
        return (
            graph.is_known and memcmp(&graph.config, &node.config, sizeof(LaunchConfig)) == 0
            and memcmp(graph.params, node.params, self.kernel.params_bytes) == 0
        )

    cdef int find(self, const KernelNode *node, ContextGraph **found, const char **call) noexcept nogil:
        """The graph of the node's context; made where there is none yet."""
        cdef uint64_t context = 0
        cdef int status
        call[0] = b"cuCtxGetId"
        status = (<ContextId>self.kernel.dev.driver.context_id)(node.context, &context)
        if status != SUCCESS:
            return status
        found[0] = self.newest
        while found[0] != NULL and found[0].context != context:
            found[0] = found[0].next
        return SUCCESS if found[0] != NULL else self.make(node, context, found, call)

    cdef int make(self, const KernelNode *node, uint64_t context, ContextGraph **made,
                  const char **call) noexcept nogil:
        cdef const DriverTable *driver = self.kernel.dev.driver
        cdef ContextGraph *new = <ContextGraph *>calloc(1, sizeof(ContextGraph))
        cdef int status
        call[0] = b"cuGraphCreate"
        if new == NULL:
            return OUT_OF_MEMORY
        new.params = calloc(1, self.kernel.params_bytes)
        status = OUT_OF_MEMORY if new.params == NULL else (<GraphCreate>driver.graph_create)(&new.graph)
        if status == SUCCESS:
            call[0] = b"cuGraphAddKernelNode"
            status = (<GraphAddKernel>driver.graph_add_kernel)(&new.node, new.graph, node)
        if status == SUCCESS:
            call[0] = b"cuGraphInstantiate"
            status = (<GraphMakeExecutable>driver.graph_make_executable)(&new.executable, new.graph)
        if status != SUCCESS:
            if new.graph != NULL:
                (<GraphDestroy>driver.graph_destroy)(new.graph)
            free(new.params)
            free(new)
            return status
        new.context = context
        new.next = self.newest
        self.newest = made[0] = new
        return SUCCESS

    def __repr__(self):
        if self.kernel is None:
            return "KernelGraph(of no kernel)"
        return f"KernelGraph({self.kernel.entry.symbol!r}, device={self.kernel.dev.spec!r})"


cdef KernelGraph graph_of(Kernel kernel):
    cdef KernelGraph graph = KernelGraph.__new__(KernelGraph)
    cdef ContextGraph *made = NULL
    cdef const char *call = NULL
    cdef KernelNode node
    cdef LaunchConfig config = kernel.config_of(kernel.config.cluster.x)
    cdef void *context = NULL
    cdef void *zeros
    cdef int ordinal = -1
    cdef int status
    cdef int entered
    graph.kernel = kernel
    if kernel.host != NULL:
        return graph
    zeros = calloc(1, kernel.params_bytes)  # copied into the node, and never launched
    if zeros == NULL:
        raise MemoryError
    entered = kernel.dev.enter()
    try:
        check(kernel.dev.driver.context_current(&context, &ordinal), b"cuCtxGetCurrent")
        node = node_of(kernel, context, &config, zeros)
        status = graph.find(&node, &made, &call)
    finally:
        kernel.dev.leave(entered)
        free(zeros)
    if status != SUCCESS:
        fail(status, call, f"a graph of {kernel.entry.symbol}")
    return graph


cdef KernelNode node_of(Kernel kernel, void *context, const LaunchConfig *config,
                        const void *params) noexcept nogil:
    cdef KernelNode node
    node.kernel = kernel.handle
    node.context = context
    node.params = params
    node.config = config[0]
    return node
