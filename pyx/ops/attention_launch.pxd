# Launches of attention: constants packed once, a call's arguments by every launch.
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.module cimport Kernel
from kvit._native.packed_cache cimport PackedCache
from kvit._native.packed_table cimport PackedTable
from kvit._native.params cimport KvitCache, KvitDecodeParams, KvitPageTable
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor
from kvit._native.tensor_map cimport Boxes, TensorMaps
from kvit.capi cimport kvit_tensor


# Everything of an attention call that does not change from call to call.
cdef struct AttentionPlan:
    KvitDecodeParams constants
    LaunchConfig config
    Boxes boxes                        # of its tensor copies, if it copies so


cdef class AttentionLaunch:
    cdef AttentionPlan plan
    cdef readonly Kernel kernel
    cdef KernelGraph graph             # that launches it; None: it is launched itself
    cdef readonly Tensor workspace     # the host backend zeroes it after a launch that did not come to its end
    cdef readonly Tensor tickets       # its head
    cdef readonly Tensor fault
    cdef readonly tuple arrays         # sinks, alibi slopes and temperatures: Tensor, or None
    cdef readonly bint takes_spans     # whether calls may bring them
    cdef readonly bint takes_trees

    cdef int modify(self, object modifiers) except -1
    # Launches. q, out [tokens, query_heads, head_dim]; lse float32 [tokens, query_heads] or None; spans int32 [tokens,
    # 2] or None; tree int64 [tokens, words] or None; all checked before.
    cdef int run(self, PackedCache cache, PackedTable table, Tensor q, Tensor out, Tensor lse, Tensor indptr, int each,
                 Tensor spans, Tensor tree, Stream stream) except -1


# Fills the struct of a launch, for Python and for C. `each` and indptr: see pack_tokens. False: the maps that the
# kernel copies by are not made yet.
cdef bint pack_attention(KvitDecodeParams *params, const AttentionPlan *plan, const KvitCache *cache,
                         const TensorMaps *maps, const KvitPageTable *table, const kvit_tensor *indptr, int each,
                         const kvit_tensor *q, const kvit_tensor *out, const kvit_tensor *lse,
                         const kvit_tensor *spans, const kvit_tensor *tree) noexcept nogil
