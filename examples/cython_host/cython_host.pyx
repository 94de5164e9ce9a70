"""A host in Cython: decodes with kvit through the table of kvit.h, without the GIL, on memory that the caller owns."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit.capi cimport (
    KVIT_DEVICE_CUDA, KVIT_DEVICE_HOST, KVIT_OK, KVIT_OP_APPEND, KVIT_OP_ATTENTION, kvit_api, kvit_import, kvit_op,
    kvit_op_options, kvit_page_table, kvit_tensor, kvit_view, kvit_view_options,
)

import kvit

cdef const kvit_api *api = kvit_import()


def decode(q, k, v, out, k_pool, v_pool, pages, lengths):
    """One new token of every sequence per step: into its page, then attended to all tokens so far.

    q, out          [steps, sequences, query_heads, head_dim]
    k, v            [steps, sequences, kv_heads, head_dim]
    k_pool, v_pool  [pages, page_size, kv_heads, head_dim]
    pages           int32 [sequences, slots]
    lengths         int32 [steps, sequences], of each sequence in each step

    kvit.Buffers, or anything that kvit.Tensor.wrap takes, on one device. Raises RuntimeError with kvit's words.
    """
    cdef kvit_tensor k_memory = tensor_of(k_pool)
    cdef kvit_tensor v_memory = tensor_of(v_pool)
    cdef kvit_tensor[6] steps          # q, out, k, v, lengths of all steps; pages
    cdef kvit_view_options view_options
    cdef kvit_view *view = NULL
    cdef kvit_op *append = NULL
    cdef kvit_op *attention = NULL
    for i, tensor in enumerate((q, out, k, v, lengths, pages)):
        steps[i] = tensor_of(tensor)
    memset(&view_options, 0, sizeof(view_options))
    view_options.size = sizeof(view_options)
    view_options.k = &k_memory
    view_options.v = &v_memory
    check(api.view_create(&view_options, &view))
    try:
        append = make_op(view, KVIT_OP_APPEND, 0)
        attention = make_op(view, KVIT_OP_ATTENTION, <int32_t>steps[0].shape[2])
        with nogil:
            status = run(append, attention, view, steps)
        check(status)
        check(api.op_check(append, NULL, NULL))
        check(api.op_check(attention, NULL, NULL))
    finally:
        if append != NULL:
            api.op_destroy(append)
        if attention != NULL:
            api.op_destroy(attention)
        api.view_destroy(view)


cdef int32_t run(kvit_op *append, kvit_op *attention, kvit_view *view, const kvit_tensor *steps) noexcept nogil:
    cdef kvit_tensor q, out, k, v, lengths
    cdef kvit_page_table table
    cdef int32_t status = KVIT_OK
    cdef int64_t step
    table.pages = &steps[5]
    table.indptr = NULL
    table.lengths = &lengths
    for step in range(steps[0].shape[0]):
        q, out, lengths = at(&steps[0], step), at(&steps[1], step), at(&steps[4], step)
        k, v = at(&steps[2], step), at(&steps[3], step)
        status = api.append(append, view, &table, &k, &v, NULL, NULL)
        if status == KVIT_OK:
            status = api.attention(attention, view, &table, &q, &out, NULL, NULL, NULL)
        if status != KVIT_OK:
            return status
    return status


cdef kvit_tensor at(const kvit_tensor *steps, int64_t step) noexcept nogil:
    """The tensor of one step: the same without its first axis."""
    cdef kvit_tensor tensor = steps[0]
    cdef int i
    tensor.data = <char *>steps.data + step * steps.strides[0]
    tensor.ndim = steps.ndim - 1
    for i in range(tensor.ndim):
        tensor.shape[i] = steps.shape[i + 1]
        tensor.strides[i] = steps.strides[i + 1]
    return tensor


cdef kvit_op *make_op(kvit_view *view, int kind, int32_t query_heads) except NULL:
    cdef kvit_op_options options
    cdef kvit_op *op = NULL
    memset(&options, 0, sizeof(options))
    options.size = sizeof(options)
    options.kind = kind
    options.view = view
    options.query_heads = query_heads
    check(api.op_create(&options, &op))
    return op


cdef kvit_tensor tensor_of(object source):
    cdef kvit_tensor tensor
    cdef int i
    memory = kvit.Tensor.wrap(source)
    memset(&tensor, 0, sizeof(tensor))
    tensor.data = <void *><size_t>memory.pointer
    tensor.ndim = len(memory.shape)
    for i in range(tensor.ndim):
        tensor.shape[i] = memory.shape[i]
        tensor.strides[i] = memory.strides[i]
    tensor.dtype = memory.dtype.code
    tensor.readonly = memory.readonly
    tensor.device_type = KVIT_DEVICE_HOST if memory.device == "host" else KVIT_DEVICE_CUDA
    if tensor.device_type == KVIT_DEVICE_CUDA:
        tensor.device_id = int(memory.device.removeprefix("cuda:"))
    return tensor


cdef int check(int32_t status) except -1:
    if status != KVIT_OK:
        raise RuntimeError(api.last_error().decode())
    return 0
