"""A call of kvit.Append or kvit.Gather: what fits as it is goes straight to the kernel, all else through Python."""
from kvit._native.import_array cimport as_tensor
from kvit._native.context cimport device_of
from kvit._native.kernel_graph cimport graph_of
from kvit._native.module cimport load_kernel
from kvit._native.ops cimport HoldsCache, HoldsFaults, HoldsTable, PackedCache, PackedTable
from kvit._native.row_ops cimport MOST_WARPS, PackedRope, grid_for, move_rows, shares_of
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
        self.shares = shares_of(entry, self.home)
        self.into_pages = into_pages
        if by_graph:
            self.kernel = load_kernel(entry, self.home)
            self._graph = graph_of(self.kernel)

    def _launched(self, k, v, view, table, tokens=None, stream=None, PackedRope rope=None) -> bool:
        """Launch the call if it fits as it is. False: nothing was launched, and Python's checks know why.

        Raises DtypeError, DeviceError, LayoutError for what is no tensor or no stream.
        """
        if self.home is None:
            raise TypeError("TransferCall.__init__ was not called")
        cdef Stream queue = stream_of(stream, self.home)
        cdef void *handle = NULL if self.home.is_host else queue.handle
        cdef Tensor k_rows = as_tensor(k, None, handle)
        cdef Tensor v_rows = as_tensor(v, None, handle)
        cdef Tensor indptr = None if tokens is None else as_tensor(tokens, None, handle)
        cdef int each
        if not (isinstance(view, HoldsCache) and isinstance(table, HoldsTable)):
            return False
        cdef PackedCache cache = (<HoldsCache>view)._packed
        cdef PackedTable packed = (<HoldsTable>table)._packed
        if cache is None or packed is None or not self.fits(k_rows, v_rows, cache):
            return False
        each = self.rows_of_each(k_rows.dims[0], packed, indptr)
        if each < 0 or grid_for(&self.shares, k_rows.dims[0], self.kv_heads, 0).ctas * self.shares.warps > MOST_WARPS:
            return False
        if self.kernel is None:
            self.kernel = load_kernel(self.entry, self.home)
        move_rows(self.kernel, self.shares, cache, packed, k_rows, v_rows, indptr, each, self.faults.buffer, queue,
                  self.into_pages, rope, self._graph)
        self.faults.last_queue = queue
        return True

    cdef bint fits(self, Tensor k, Tensor v, PackedCache cache) noexcept:
        """Whether the rows fit the cache, and what would be written may be."""
        if not (self.is_cache(cache) and self.are_rows(k, self.kv_heads, cache.code)
                and self.are_rows(v, self.kv_heads, cache.code) and v.dims[0] == k.dims[0]):
            return False
        if not self.into_pages:
            return not (k.is_readonly or v.is_readonly)
        return not (
            cache.k.is_readonly or cache.v.is_readonly or is_locked_pair(cache.k_params, cache.code)
            or is_locked_pair(cache.v_params, cache.code)
        )


cdef bint is_locked_pair(Tensor params, int code) noexcept:
    """Whether these are (scale, zero) that nobody may write. Scales of float8 have another type, and are only read."""
    return params is not None and params.code == code and params.is_readonly
