# Launches of one kernel by a graph of it, whose parameters are set anew for each: what costs the host least.
from libc.stdint cimport uint64_t

from kvit._native.driver_table cimport KernelNode, LaunchConfig
from kvit._native.host_stream cimport pthread_mutex_t
from kvit._native.module cimport Kernel


# A kernel node runs in the context that it was made in, and cannot move to another.
cdef struct ContextGraph:
    uint64_t context                   # its id: no later context has the same, as one may have the same address
    void *graph                        # CUgraph; the node is a part of it
    void *node                         # CUgraphNode
    void *executable                   # CUgraphExec
    void *params                       # what the node was set to last, a copy
    LaunchConfig config                # and how it was to be launched
    bint is_known                      # whether params and config are what the node has
    ContextGraph *next


cdef class KernelGraph:
    cdef Kernel kernel
    cdef pthread_mutex_t mutex         # held while parameters are set and launched; never while the GIL is waited for
    cdef ContextGraph *newest          # of each context that has launched; none on the host

    # Between the two a thread has the kernel's launches for itself.
    cdef void lock(self) noexcept nogil
    cdef void unlock(self) noexcept nogil

    # Launches, locked. `context` is current, and the stream not being captured. Returns a CUresult; `call` gets the
    # name of the driver function that it is of. Allocates in the first launch of a context alone.
    cdef int launch(self, void *context, const LaunchConfig *config, const void *params, void *stream,
                    const char **call) noexcept nogil

    cdef bint is_set(self, const ContextGraph *graph, const KernelNode *node) noexcept nogil
    cdef int find(self, const KernelNode *node, ContextGraph **found, const char **call) noexcept nogil
    cdef int make(self, const KernelNode *node, uint64_t context, ContextGraph **made,
                  const char **call) noexcept nogil

# A graph of the kernel, made for the context that its device is used in now.
cdef KernelGraph graph_of(Kernel kernel)
