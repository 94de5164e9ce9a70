"""A call of kvit.Attention: what fits as it is goes straight to the kernel, all else through Python first."""
from kvit._native.attention_launch cimport AttentionLaunch
from kvit._native.buffer cimport empty_buffer
from kvit._native.checks cimport are_lse, are_rows, are_words, is_tree
from kvit._native.faults cimport HoldsFaults
from kvit._native.import_array cimport as_tensor
from kvit._native.overlaps cimport Extent, are_same, cross, extent_at, may_meet_itself, meet, meets_itself
from kvit._native.packed_cache cimport HoldsCache, PackedCache, crosses_cache, is_same_type, meets_cache
from kvit._native.packed_table cimport HoldsTable, PackedTable, crosses_table, meets_table
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport KVIT_I32, Tensor
from kvit._native.tensor_map cimport can_copy
from kvit.capi cimport kvit_tensor


cdef class AttentionCall:
    """The call of kvit.Attention, which derives from it and adds `_fitting`.

    launch  the kernel and its constants
    faults  where kernels report; keeps the stream of the last call
    cache   a cache of the shape and types that the operation is for; not kept
    dtype   enum KvitDtype of queries and outputs
    """

    def __init__(self, AttentionLaunch launch not None, HoldsFaults faults not None, PackedCache cache not None,
                 int dtype):
        self.made_for(launch.kernel.dev, faults, cache)
        self.launch = launch
        self.query_heads = launch.plan.constants.num_query_heads
        self.query_dtype = dtype

    def __call__(self, q, view, table, *, query_indptr=None, out=None, lse=None, spans=None, tree=None,
                 stream=None):
        """Attend new tokens to the cache: one launch. Returns before the work is done; allocates nothing if given out.

        q             [tokens, query_heads, head_dim], sequence after sequence, in the operation's dtype
        view          CacheView of the operation's shape; pages of any size
        table         PageTable of the same sequences; lengths include the new tokens, whose K and V are in the cache
                      already
        query_indptr  int32 [sequences + 1] on the device: where each sequence's rows of q begin; absent: all have as
                      many
        out           like q, written in place; allocated if absent. It may be q itself, whose rows it then replaces
        lse           float32 [tokens, query_heads], receives the natural log of the sum of exp(score); any strides
        spans         int32 [tokens, 2] on the device: (begin, end) of keys that a query sees too, if its own position
                      is one of them; all queries among them have the same. Of an operation made with spans=True
        tree          int64 [tokens, 1 or 2] on the device, the bits of 64 new tokens each: of its sequence's new tokens
                      a query sees those whose bits are set. A sequence of more new tokens than bits is a chain. Of an
                      operation made with tree=True
        stream        Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        A captured graph reads spans and tree afresh at each launch, as it does lengths. out and lse lie apart from each
        other and from all that is read, but for q; overlap is refused.

        Returns out. A sequence with no tokens, and a query that sees no key, gives zeros and lse = -inf, or the sink of
        its head. A sequence that the table describes wrongly gives NaN, and check() says what is wrong. Rows that no
        sequence has, before the first one's or behind the last one's, are left as they are. Quickest for kvit's own
        Buffers and Tensors: others' arrays are looked at anew by every call.
        Raises ShapeError, DtypeError, DeviceError, LayoutError; nothing is launched then.
        """
        if self.launch is None:
            raise TypeError("AttentionCall.__init__ was not called")
        cdef Stream on_stream = stream_of(stream, self.dev)
        cdef void *handle = NULL if self.dev.is_host else on_stream.c_stream
        cdef Tensor rows = as_tensor(q, None, handle)
        cdef Tensor target = None if out is None else as_tensor(out, None, handle)
        cdef Tensor sums = None if lse is None else as_tensor(lse, None, handle)
        cdef Tensor indptr = None if query_indptr is None else as_tensor(query_indptr, None, handle)
        cdef Tensor ranges = None if spans is None else as_tensor(spans, None, handle)
        cdef Tensor words = None if tree is None else as_tensor(tree, None, handle)
        cdef int each = self.fits(rows, view, table, target, sums, indptr, ranges, words)
        if each < 0:
            rows, target, sums, indptr, ranges, words, each = self._fitting(
                rows, view, table, target, sums, indptr, ranges, words, on_stream
            )
        if target is None:
            target = empty_buffer(
                (rows.memory.shape[0], rows.memory.shape[1], self.type.v_dim), self.query_dtype, self.dev, on_stream
            )
        self.launch.run((<HoldsCache>view).packed, (<HoldsTable>table).packed, rows, target, sums, indptr, each,
                        ranges, words, on_stream)
        self.faults.last_stream = on_stream
        return target if out is None else out

    cdef int fits(self, Tensor q, object view, object table, Tensor out, Tensor lse, Tensor indptr, Tensor spans,
                  Tensor tree) noexcept:
        """Rows of q that each sequence has, 0 with `indptr`; -1 unless everything fits as it is."""
        if not (isinstance(view, HoldsCache) and isinstance(table, HoldsTable)):
            return -1
        cdef PackedCache cache = (<HoldsCache>view).packed
        cdef PackedTable packed = (<HoldsTable>table).packed
        cdef int64_t rows = q.memory.shape[0]
        if cache is None or packed is None or not is_same_type(&cache.type, &self.type):
            return -1
        if not (self.are_heads(q, -1, self.type.k_dim, False) and can_copy(&cache.maps, self.launch.plan.boxes)):
            return -1
        if out is not None and not self.are_heads(out, rows, self.type.v_dim, True):
            return -1
        if lse is not None and not are_lse(&lse.memory, self.type.device, rows, self.query_heads):
            return -1
        if not are_outputs_apart(q, out, lse, cache, packed, indptr):
            return -1
        if not self.are_arrays_right(out, lse, spans, tree, rows):
            return -1
        return self.fitting_each(rows, packed, indptr)

    cdef bint are_arrays_right(self, Tensor out, Tensor lse, Tensor spans, Tensor tree, int64_t tokens) noexcept:
        """Whether spans and tree fit, and these and the operation's arrays lie apart from what is written."""
        if spans is not None and not (
            self.launch.takes_spans and are_words(&spans.memory, self.type.device, KVIT_I32, tokens, 2)
        ):
            return False
        if tree is not None and not (
            self.launch.takes_trees and is_tree(&tree.memory, self.type.device, tokens)
        ):
            return False
        cdef Tensor array
        for array in self.launch.arrays:
            if crosses(array, out) or crosses(array, lse):
                return False
        return not (crosses(spans, out) or crosses(spans, lse) or crosses(tree, out) or crosses(tree, lse))

    cdef bint are_heads(self, Tensor rows, int64_t tokens, int channels, bint is_written) noexcept:
        return are_rows(&rows.memory, self.type.device, self.query_dtype, tokens, self.query_heads, channels,
                        is_written)


cdef bint crosses(Tensor a, Tensor b) noexcept:
    """Whether both are there, and their addresses may meet."""
    cdef Extent of_a, of_b
    if a is None or b is None:
        return False
    of_a, of_b = extent_at(&a.memory), extent_at(&b.memory)
    return cross(&of_a, &of_b)


cdef bint are_outputs_apart(Tensor q, Tensor out, Tensor lse, PackedCache cache, PackedTable table,
                            Tensor query_indptr) noexcept:
    """Whether out and lse lie apart from each other, from themselves and from all that is read; out may be q.

    Addresses are compared first, which is all that most calls need.
    """
    cdef Extent rows
    cdef Extent sums = Extent(0, 0)
    cdef Extent queries = extent_at(&q.memory)
    cdef Extent numbers = Extent(0, 0)
    if query_indptr is not None:
        numbers = extent_at(&query_indptr.memory)
    if lse is not None:
        sums = extent_at(&lse.memory)
        if may_meet_itself(&lse.memory) and meets_itself(&lse.memory):
            return False
        if (cross(&sums, &queries) and meet(&lse.memory, &q.memory)) or cross(&sums, &numbers):
            return False
        if is_read(&sums, &lse.memory, cache, table):
            return False
    if out is None:
        return True
    rows = extent_at(&out.memory)
    if may_meet_itself(&out.memory) and meets_itself(&out.memory):
        return False
    if cross(&rows, &queries) and not are_same(&out.memory, &q.memory) and meet(&out.memory, &q.memory):
        return False
    if cross(&rows, &numbers) or (cross(&rows, &sums) and meet(&out.memory, &lse.memory)):
        return False
    return not is_read(&rows, &out.memory, cache, table)


cdef bint is_read(const Extent *extent, const kvit_tensor *memory, PackedCache cache, PackedTable table) noexcept:
    """Whether elements lie over the cache or over the table."""
    return ((crosses_cache(extent, cache) and meets_cache(memory, cache))
            or (crosses_table(extent, table) and meets_table(memory, table)))
