# Packs and launches what moves rows: append and gather.
from libc.stdint cimport int64_t

from kvit._native.context cimport Device
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.module cimport Kernel
from kvit._native.packed_cache cimport PackedCache
from kvit._native.packed_table cimport PackedTable
from kvit._native.params cimport KvitCache, KvitFault, KvitPageTable, KvitRope, KvitTransferParams
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor
from kvit.capi cimport kvit_tensor


# How the rows of a call are dealt out to the warps of append and gather.
cdef enum:
    MOST_WARPS = 0x7fffffff            # of a call: kernels count them in 32 bits

cdef struct WarpShares:
    int64_t warps                      # of a CTA
    int64_t heads_per_pass             # of one token, K and V; or twice as many heads of queries
    int64_t resident                   # warps that the device runs side by side; 0: each has one pass, whatever comes

cdef struct RowGrid:
    int64_t passes                     # of a warp, over heads of one token
    int64_t ctas                       # more than a launch can have where a call has too many rows

cdef WarpShares shares_of(object entry, Device device) except *

# As many passes as let all warps run side by side: what a warp finds out about its token serves all of them.
cdef RowGrid grid_for(const WarpShares *shares, int64_t tokens, int64_t heads, int64_t query_heads) noexcept nogil

# Whether a call without queries has few enough rows.
cdef bint fits_grid(const WarpShares *shares, int64_t tokens, int64_t heads) noexcept nogil


# Rotary position embedding as kernels take it, made once.
cdef class PackedRope:
    cdef KvitRope value
    cdef readonly Tensor steps
    cdef readonly Tensor axes


# Fills the struct of a launch, for Python and for C. `each` and indptr: see pack_tokens.
cdef void pack_transfer(KvitTransferParams *params, const KvitCache *cache, const KvitPageTable *table,
                        const kvit_tensor *indptr, int each, const kvit_tensor *k, const kvit_tensor *v,
                        KvitFault *fault) noexcept nogil

# Launches an append (into_pages), which turns the rows of k if there is a rope, or a gather. k, v [tokens, kv_heads,
# head_dim]; all checked before. `graph` launches the kernel; None: it is launched itself.
cdef int move_rows(Kernel kernel, WarpShares shares, PackedCache cache, PackedTable table, Tensor k, Tensor v,
                   Tensor query_indptr, int each, Tensor fault, Stream stream, bint into_pages,
                   PackedRope rope, KernelGraph graph) except -1
