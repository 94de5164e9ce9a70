"""The table of kvit.h: C functions, in the order of struct kvit_api, behind the capsule `_C_API`."""
from cpython.pycapsule cimport PyCapsule_New

from kvit._native.capi_batch cimport (
    batch_attention, batch_create, batch_destroy, batch_query, batch_step, batch_use,
)
from kvit._native.capi_cache cimport (
    cache_append, cache_append_rotated, cache_attention, cache_check, cache_create, cache_destroy, cache_gather,
    cache_gather_layout, cache_query, cache_view,
)
from kvit._native.capi_call cimport append, append_rotated, attention, attention_masked, gather
from kvit._native.capi_error cimport error_text
from kvit._native.capi_layer cimport (
    cache_append_layers, cache_pages_needed, cache_shift, layer_attention, layer_gather, layer_query, layer_view,
)
from kvit._native.capi_op cimport op_check, op_create, op_destroy, op_explain, op_query
from kvit._native.capi_python cimport merge_states
from kvit._native.capi_rope cimport rope_create, rope_destroy
from kvit._native.capi_sequence cimport (
    sequence_create, sequence_destroy, sequence_fork, sequence_pages, sequence_query, sequence_truncate,
)
from kvit._native.capi_step cimport step_append, step_attention, step_commit, step_create, step_destroy
from kvit._native.capi_swap cimport cache_swap_in, cache_swap_out, swapped_destroy, swapped_query
from kvit._native.capi_upkeep cimport (
    cache_defragment, cache_requantise, convert_pages, copy_pages, op_convert_pages, op_copy_pages,
)
from kvit._native.capi_view cimport view_create, view_destroy, view_query
from kvit.capi cimport KVIT_API_VERSION, kvit_api


cdef const char *last_error() noexcept nogil:
    return error_text()


cdef kvit_api table

table.size = sizeof(kvit_api)
table.version = KVIT_API_VERSION
table.last_error = last_error
table.view_create = view_create
table.view_query = view_query
table.view_destroy = view_destroy
table.op_create = op_create
table.op_query = op_query
table.op_explain = op_explain
table.op_check = op_check
table.op_destroy = op_destroy
table.attention = attention
table.append = append
table.gather = gather
table.merge_states = merge_states
table.cache_create = cache_create
table.cache_query = cache_query
table.cache_destroy = cache_destroy
table.cache_append = cache_append
table.cache_attention = cache_attention
table.cache_check = cache_check
table.sequence_create = sequence_create
table.sequence_query = sequence_query
table.sequence_fork = sequence_fork
table.sequence_truncate = sequence_truncate
table.sequence_destroy = sequence_destroy
table.cache_gather = cache_gather
table.cache_view = cache_view
table.sequence_pages = sequence_pages
table.attention_masked = attention_masked
table.rope_create = rope_create
table.rope_destroy = rope_destroy
table.append_rotated = append_rotated
table.copy_pages = copy_pages
table.convert_pages = convert_pages
table.cache_append_rotated = cache_append_rotated
table.cache_gather_layout = cache_gather_layout
table.cache_defragment = cache_defragment
table.cache_requantise = cache_requantise
table.layer_query = layer_query
table.layer_view = layer_view
table.layer_attention = layer_attention
table.layer_gather = layer_gather
table.cache_append_layers = cache_append_layers
table.cache_pages_needed = cache_pages_needed
table.cache_shift = cache_shift
table.step_create = step_create
table.step_append = step_append
table.step_attention = step_attention
table.step_commit = step_commit
table.step_destroy = step_destroy
table.op_copy_pages = op_copy_pages
table.op_convert_pages = op_convert_pages
table.batch_create = batch_create
table.batch_query = batch_query
table.batch_use = batch_use
table.batch_step = batch_step
table.batch_attention = batch_attention
table.batch_destroy = batch_destroy
table.cache_swap_out = cache_swap_out
table.cache_swap_in = cache_swap_in
table.swapped_query = swapped_query
table.swapped_destroy = swapped_destroy

_C_API = PyCapsule_New(&table, b"kvit._native.capi._C_API", NULL)
