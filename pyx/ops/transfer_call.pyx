"""A call of kvit.Append or kvit.Gather: what fits as it is goes straight to the kernel, all else through Python."""
from kvit._native.checks cimport are_rows
from kvit._native.context cimport device_of
from kvit._native.faults cimport HoldsFaults
from kvit._native.import_array cimport as_tensor
from kvit._native.kernel_graph cimport graph_of
from kvit._native.module cimport load_kernel
from kvit._native.overlaps cimport cross, may_meet_itself, meet, meets_itself
from kvit._native.packed_cache cimport HoldsCache, PackedCache, is_same_type, meets_cache
from kvit._native.packed_table cimport HoldsTable, PackedTable, meets_table
from kvit._native.packers cimport memory_of
from kvit._native.row_ops cimport PackedRope, fits_grid, move_rows, shares_of
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor


cdef class TransferCall:
    """What kvit.Append and kvit.Gather derive from: the launch of a call that needs none of Python's checks.

    entry       of the kernel, which is loaded by the first call, or at once for a graph
    faults      where kernels report; keeps the stream of the last call
    cache       a cache of the shape and types that the operation is for; not kept
    into_pages  append; else gather
    by_graph    launch the kernel by a graph of it
    """

    def __init__(self, object entry, str device not None, HoldsFaults faults not None, PackedCache cache not None,
                 bint into_pages, bint by_graph=False):
        self.made_for(device_of(device), faults, cache)
        self.entry = entry
        self.shares = shares_of(entry, self.dev)
        self.into_pages = into_pages
        if by_graph:
            self.kernel = load_kernel(entry, self.dev)
            self._graph = graph_of(self.kernel)

    def _launched(self, k, v, view, table, query_indptr=None, stream=None, PackedRope rope=None) -> bool:
        """Launch the call if it fits as it is. False: nothing was launched, and Python's checks know why.

        Raises DtypeError, DeviceError, LayoutError for what is no tensor or no stream.
        """
        if self.dev is None:
            raise TypeError("TransferCall.__init__ was not called")
        cdef Stream on_stream = stream_of(stream, self.dev)
        cdef void *handle = NULL if self.dev.is_host else on_stream.c_stream
        cdef Tensor k_rows = as_tensor(k, None, handle)
        cdef Tensor v_rows = as_tensor(v, None, handle)
        cdef Tensor indptr = None if query_indptr is None else as_tensor(query_indptr, None, handle)
        cdef int each
        if not (isinstance(view, HoldsCache) and isinstance(table, HoldsTable)):
            return False
        cdef PackedCache cache = (<HoldsCache>view).packed
        cdef PackedTable packed = (<HoldsTable>table).packed
        if cache is None or packed is None or not self.fits(k_rows, v_rows, cache):
            return False
        if not (self.are_apart(k_rows, cache, packed, indptr) and self.are_apart(v_rows, cache, packed, indptr)):
            return False
        if self.into_pages:
            if may_lie_in(packed, cache) or meets_cache(memory_of(indptr), cache):
                return False
        elif meet(&k_rows.memory, &v_rows.memory):
            return False
        each = self.fitting_each(k_rows.memory.shape[0], packed, indptr)
        if each < 0 or not fits_grid(&self.shares, k_rows.memory.shape[0], self.type.kv_heads):
            return False
        if self.kernel is None:
            self.kernel = load_kernel(self.entry, self.dev)
        move_rows(self.kernel, self.shares, cache, packed, k_rows, v_rows, indptr, each, self.faults.buffer, on_stream,
                  self.into_pages, rope, self._graph)
        self.faults.last_stream = on_stream
        return True

    cdef bint fits(self, Tensor k, Tensor v, PackedCache cache) noexcept:
        """Whether the rows fit the cache, and what would be written may be."""
        cdef bint is_written = not self.into_pages
        if not (is_same_type(&cache.type, &self.type) and self.are_transferred(k, -1, self.type.k_dim, is_written)
                and self.are_transferred(v, k.memory.shape[0], self.type.v_dim, is_written)):
            return False
        return is_written or not (
            cache.meets_itself or cache.k.memory.readonly or cache.v.memory.readonly
            or is_locked_pair(cache.k_params, cache.type.dtype) or is_locked_pair(cache.v_params, cache.type.dtype)
        )

    cdef bint are_apart(self, Tensor rows, PackedCache cache, PackedTable table, Tensor query_indptr) noexcept:
        """Whether rows lie apart from the cache; those that are written from all else that is read, too."""
        if meets_cache(&rows.memory, cache):
            return False
        return self.into_pages or not (
            (may_meet_itself(&rows.memory) and meets_itself(&rows.memory)) or meets_table(&rows.memory, table)
            or meet(&rows.memory, memory_of(query_indptr))
        )

    cdef bint are_transferred(self, Tensor rows, int64_t tokens, int channels, bint is_written) noexcept:
        return are_rows(&rows.memory, self.type.device, self.type.dtype, tokens, self.type.kv_heads, channels,
                        is_written)


cdef bint may_lie_in(PackedTable table, PackedCache cache) noexcept:
    """Whether numbers of the table may lie in the cache: between the lowest byte of a pool and its highest."""
    for i in range(3):
        for j in range(6):
            if cross(&table.extents[i], &cache.extents[j]):
                return True
    return False


cdef bint is_locked_pair(Tensor params, int dtype) noexcept:
    """Whether these are (scale, zero) that nobody may write. Scales of float8 have another type, and are only read."""
    return params is not None and params.memory.dtype == dtype and params.memory.readonly != 0
