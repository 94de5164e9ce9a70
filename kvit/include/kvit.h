// kvit from C: attention over paged KV caches through a table of functions that any thread may call.
//
//   #include <Python.h>
//   #include <kvit.h>
//
//   const kvit_api* kvit = kvit_import();  // once, with the GIL held; NULL: a Python exception is set
//   kvit->attention(op, view, &table, &q, &out, NULL, NULL, stream);  // from any thread, with the GIL or without
//
// docs/c_api.md says what is stable, who owns what, which threads may do what, and which calls take the GIL.
#ifndef KVIT_H
#define KVIT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kvit_caches.h"
#include "kvit_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// Grows by one whenever something is added. Nothing is ever removed or moved.
#define KVIT_API_VERSION 7

// The functions. All but last_error return an enum kvit_status. What is refused has launched and changed nothing, and
// last_error() has the words. `q`, `out`, `k` and `v` are [tokens, heads, head_dim], sequence after
// sequence; `lse` is float32 [tokens, query_heads], natural log, or NULL. Launches return before a GPU is done.
typedef struct kvit_api {
  uint32_t size;     // of the table behind this pointer: a later kvit has a larger one
  uint32_t version;  // KVIT_API_VERSION of the kvit that filled it

  // Of the calling thread's last call that failed: "ShapeError: q has ...", in UTF-8. Valid until its next failure.
  const char* (*last_error)(void);

  int32_t (*view_create)(const kvit_view_options* options, kvit_view** view);
  int32_t (*view_query)(kvit_view* view, kvit_view_info* info);
  int32_t (*view_destroy)(kvit_view* view);

  int32_t (*op_create)(const kvit_op_options* options, kvit_op** op);
  int32_t (*op_query)(kvit_op* op, kvit_op_info* info);
  // Which kernel was chosen and what a launch of it takes: as much as fits `capacity` bytes with the NUL that ends it.
  // `length`, where not NULL, gets the bytes of the whole text without its NUL.
  int32_t (*op_explain)(kvit_op* op, char* text, size_t capacity, size_t* length);
  // Waits for `stream`; KVIT_ERROR_PAGE_TABLE if a kernel of this operation met a fault, told once. fault may be NULL.
  int32_t (*op_check)(kvit_op* op, kvit_stream stream, kvit_fault* fault);
  // Its work must be done: the workspace goes back to the device.
  int32_t (*op_destroy)(kvit_op* op);

  // Attend new tokens to the cache. query_indptr, here and below: int32 [sequences + 1] on the device, where each
  // sequence's rows begin; NULL: all have as many. Rows that no sequence has are left as they are.
  int32_t (*attention)(kvit_op* op, kvit_view* view, const kvit_page_table* table, const kvit_tensor* q,
                       const kvit_tensor* out, const kvit_tensor* lse, const kvit_tensor* query_indptr,
                       kvit_stream stream);
  // Write the rows of k and v as the last tokens of their sequences: the table's lengths include them.
  int32_t (*append)(kvit_op* op, kvit_view* view, const kvit_page_table* table, const kvit_tensor* k,
                    const kvit_tensor* v, const kvit_tensor* query_indptr, kvit_stream stream);
  // Fill the rows of k and v with the last tokens of the sequences.
  int32_t (*gather)(kvit_op* op, kvit_view* view, const kvit_page_table* table, const kvit_tensor* k,
                    const kvit_tensor* v, const kvit_tensor* query_indptr, kvit_stream stream);
  // The attention over the union of two disjoint sets of keys, from the attention over each. lse may be NULL.
  int32_t (*merge_states)(const kvit_tensor* out_a, const kvit_tensor* lse_a, const kvit_tensor* out_b,
                          const kvit_tensor* lse_b, const kvit_tensor* out, const kvit_tensor* lse, kvit_stream stream);

  int32_t (*cache_create)(const kvit_cache_options* options, kvit_cache** cache);
  int32_t (*cache_query)(kvit_cache* cache, kvit_cache_info* info);
  // Sequences are destroyed on their own, before or after.
  int32_t (*cache_destroy)(kvit_cache* cache);
  // new_tokens [count], here and below: how many of the rows each sequence has; NULL: all have as many. Host memory, as
  // sequences is.
  int32_t (*cache_append)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count, const kvit_tensor* k,
                          const kvit_tensor* v, const int64_t* new_tokens, kvit_stream stream);
  // scale 0: head_dim ** -0.5.
  int32_t (*cache_attention)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count, const kvit_tensor* q,
                             const kvit_tensor* out, const kvit_tensor* lse, const int64_t* new_tokens, float scale,
                             int32_t mask, kvit_stream stream);
  int32_t (*cache_check)(kvit_cache* cache, kvit_stream stream, kvit_fault* fault);

  int32_t (*sequence_create)(kvit_cache* cache, kvit_sequence** sequence);
  int32_t (*sequence_query)(kvit_sequence* sequence, kvit_sequence_info* info);
  // A second sequence of the same tokens that shares their pages until one grows.
  int32_t (*sequence_fork)(kvit_sequence* sequence, kvit_sequence** fork);
  int32_t (*sequence_truncate)(kvit_sequence* sequence, int64_t length);
  // Its pages go back to the cache.
  int32_t (*sequence_destroy)(kvit_sequence* sequence);

  // Since version 2:

  // Fill k and v [tokens of all the sequences, kv_heads, head_dim], in the cache's dtype, end to end.
  int32_t (*cache_gather)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count, const kvit_tensor* k,
                          const kvit_tensor* v, kvit_stream stream);
  // The cache's memory as a view, for operations that are given a page table. It keeps the memory, and is destroyed on
  // its own.
  int32_t (*cache_view)(kvit_cache* cache, kvit_view** view);
  // The pages that hold the sequence, in the order of its tokens: as many as `capacity` has room for, in host memory.
  // `count`, where not NULL, gets how many there are.
  int32_t (*sequence_pages)(kvit_sequence* sequence, int32_t* pages, int64_t capacity, int64_t* count);

  // Since version 4:

  // As `attention`, with what single calls add to the mask of an operation that was made for it; NULL: nothing.
  // spans int32 [tokens, 2]: (begin, end) of keys of its sequence that a query sees too, if its own position is one of
  // them. tree int64 [tokens, 1 or 2], the bits of 64 new tokens each: of its sequence's new tokens a query sees those
  // whose bits are set.
  int32_t (*attention_masked)(kvit_op* op, kvit_view* view, const kvit_page_table* table, const kvit_tensor* q,
                              const kvit_tensor* out, const kvit_tensor* lse, const kvit_tensor* query_indptr,
                              const kvit_tensor* spans, const kvit_tensor* tree, kvit_stream stream);

  // Since version 5:

  int32_t (*rope_create)(const kvit_rope_options* options, kvit_rope** rope);
  // Operations and caches that were made with it keep what they need of it.
  int32_t (*rope_destroy)(kvit_rope* rope);
  // As `append`, of an operation that may have a rope and norms; extras NULL: nothing besides.
  int32_t (*append_rotated)(kvit_op* op, kvit_view* view, const kvit_page_table* table, const kvit_tensor* k,
                            const kvit_tensor* v, const kvit_tensor* query_indptr, const kvit_append_extras* extras,
                            kvit_stream stream);
  // Copy page source[i] to page target[i], int32 [count] on the device. Waits for the stream; KVIT_ERROR_PAGE_TABLE
  // where the view has no such page, whose pair is left alone.
  int32_t (*copy_pages)(kvit_view* view, const kvit_tensor* source, const kvit_tensor* target, kvit_stream stream);
  // Convert page source_pages[i] of one view into page target_pages[i] of another, which stores rows in another layout
  // or codec; NULL and NULL: all pages. Waits, and reports, as copy_pages does.
  int32_t (*convert_pages)(kvit_view* source, kvit_view* target, const kvit_tensor* source_pages,
                           const kvit_tensor* target_pages, kvit_stream stream);
  // As cache_append, of a cache with a rope: q [tokens, query_heads, head_dim] turns with k, to q_out, or in place
  // where that is NULL.
  int32_t (*cache_append_rotated)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count,
                                  const kvit_tensor* k, const kvit_tensor* v, const kvit_tensor* q,
                                  const kvit_tensor* q_out, const int64_t* new_tokens, kvit_stream stream);
  // As cache_gather, in an order of axes, enum kvit_layout: [tokens, kv_heads, head_dim] or [kv_heads, tokens,
  // head_dim].
  int32_t (*cache_gather_layout)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count,
                                 const kvit_tensor* k, const kvit_tensor* v, int32_t layout, kvit_stream stream);
  // Pages in use come first, free ones last. `moved`, where not NULL, gets how many pages moved.
  int32_t (*cache_defragment)(kvit_cache* cache, int64_t* moved, kvit_stream stream);
  // Store K and V of all pages otherwise; 0 leaves a side as it is. Scales are of float8, as in kvit_cache_options.
  int32_t (*cache_requantise)(kvit_cache* cache, int32_t k_dtype, int32_t v_dtype, const kvit_tensor* k_scale,
                              const kvit_tensor* v_scale, kvit_stream stream);

  // Since version 6:

  // Layers are counted from 0, in the order of the model.
  int32_t (*layer_query)(kvit_cache* cache, int32_t layer, kvit_layer_info* info);
  // As cache_view, of one layer.
  int32_t (*layer_view)(kvit_cache* cache, int32_t layer, kvit_view** view);
  // Attend the last tokens of sequences to one layer; options NULL: a causal mask, and the layer's own window.
  int32_t (*layer_attention)(kvit_cache* cache, int32_t layer, kvit_sequence* const* sequences, int64_t count,
                             const kvit_tensor* q, const kvit_tensor* out, const kvit_tensor* lse,
                             const int64_t* new_tokens, const kvit_attention_options* options, kvit_stream stream);
  // As cache_gather_layout, of one layer. Where K and V share rows, k gets whole rows and v is NULL.
  int32_t (*layer_gather)(kvit_cache* cache, int32_t layer, kvit_sequence* const* sequences, int64_t count,
                          const kvit_tensor* k, const kvit_tensor* v, int32_t layout, kvit_stream stream);
  // As cache_append, of all layers: k and v [num_layers]; v NULL where K and V share rows in all layers.
  int32_t (*cache_append_layers)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count,
                                 const kvit_tensor* const* k, const kvit_tensor* const* v, int32_t num_layers,
                                 const int64_t* new_tokens, kvit_stream stream);
  // How many free pages so many new tokens would take, copies of shared pages included. new_tokens [count], here and
  // in step_create: of each sequence; NULL: one.
  int32_t (*cache_pages_needed)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count,
                                const int64_t* new_tokens, int64_t* pages);
  // Drop drop[i] tokens behind the first keep[i] of each sequence, in all layers; keep NULL: 0. With rotate 1 the keys
  // behind them turn to their new places by the rope; with 0 they only move, for keys that hold no position.
  int32_t (*cache_shift)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count, const int64_t* drop,
                         const int64_t* keep, int32_t rotate, kvit_stream stream);

  // Begin a step: room for new tokens of sequences in all layers, and one page table. The calls of the step run on
  // `stream`, and see the sequences with their new tokens.
  int32_t (*step_create)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count, const int64_t* new_tokens,
                         kvit_stream stream, kvit_step** step);
  // Write K and V of the step's tokens in one layer. q and q_out as in cache_append_rotated, or NULL.
  int32_t (*step_append)(kvit_step* step, int32_t layer, const kvit_tensor* k, const kvit_tensor* v,
                         const kvit_tensor* q, const kvit_tensor* q_out);
  // Attend to one layer: q has a row for each of the step's tokens, or new_tokens says how many each sequence has.
  int32_t (*step_attention)(kvit_step* step, int32_t layer, const kvit_tensor* q, const kvit_tensor* out,
                            const kvit_tensor* lse, const int64_t* new_tokens, const kvit_attention_options* options);
  // Let the sequences have their new tokens, in all layers, and end the step. KVIT_ERROR_STEP, and they stay as they
  // were, where some layers got no K and V, or a sequence was changed meanwhile.
  int32_t (*step_commit)(kvit_step* step);
  // Drops the step, if it was not committed: the pages go back, and the sequences stay as they were.
  int32_t (*step_destroy)(kvit_step* step);

  // copy_pages and convert_pages by an operation that was made once. They wait for nothing: op_check tells of pages
  // that a view does not have. chains int32 [chains + 1] on the device: where chains of pairs begin, which are copied
  // in order, so that pages may move along or round; NULL: no page is in both lists.
  int32_t (*op_copy_pages)(kvit_op* op, kvit_view* view, const kvit_tensor* source, const kvit_tensor* target,
                           const kvit_tensor* chains, kvit_stream stream);
  int32_t (*op_convert_pages)(kvit_op* op, kvit_view* source, kvit_view* target, const kvit_tensor* source_pages,
                              const kvit_tensor* target_pages, kvit_stream stream);

  // Since version 7:

  // A batch: sequences that take many steps together. Its page table keeps its place on the device, so that a graph of
  // one step's calls stands for later steps. options NULL: all defaults.
  int32_t (*batch_create)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count,
                          const kvit_batch_options* options, kvit_batch** batch);
  int32_t (*batch_query)(kvit_batch* batch, kvit_batch_info* info);
  // Other sequences of the cache in the place of those before, as many. KVIT_ERROR_STEP while a step is open.
  int32_t (*batch_use)(kvit_batch* batch, kvit_sequence* const* sequences, int64_t count);
  // As step_create, with the table and the stream of the batch, which has one open step at a time. Outside of captures:
  // it sends what changed in the table. A graph that holds the calls of a step is launched between this and
  // step_commit, in a step of as many new tokens of each sequence.
  int32_t (*batch_step)(kvit_batch* batch, const int64_t* new_tokens, kvit_step** step);
  // As step_attention of the step that is open. While none is: attend the last tokens of the sequences as they are.
  int32_t (*batch_attention)(kvit_batch* batch, int32_t layer, const kvit_tensor* q, const kvit_tensor* out,
                             const kvit_tensor* lse, const int64_t* new_tokens, const kvit_attention_options* options);
  // Graphs of its steps must be done: its page table goes back to the device. An open step keeps the table until it is
  // destroyed.
  int32_t (*batch_destroy)(kvit_batch* batch);

  // Copy the bytes of a sequence, as they are stored in all layers, to host memory. Waits for the stream. The sequence
  // stays as it is: destroy it to have its pages back.
  int32_t (*cache_swap_out)(kvit_cache* cache, kvit_sequence* sequence, kvit_stream stream, kvit_swapped** swapped);
  // A new sequence of these bytes, in that cache or in another one of the same layers, as often as is wanted.
  int32_t (*cache_swap_in)(kvit_cache* cache, kvit_swapped* swapped, kvit_stream stream, kvit_sequence** sequence);
  int32_t (*swapped_query)(kvit_swapped* swapped, kvit_swapped_info* info);
  int32_t (*swapped_destroy)(kvit_swapped* swapped);
} kvit_api;

// A C-contiguous tensor of `ndim` axes; not for uint4, whose strides are the caller's to say.
static inline kvit_tensor kvit_dense(void* data, int32_t dtype, int32_t device_type, int32_t device_id, int32_t ndim,
                                     const int64_t* shape) {
  static const int8_t bytes[] = {0, 4, 2, 2, 1, 0, 1, 1, 4, 8, 2, 4, 8, 1};  // by dtype
  kvit_tensor tensor;
  int64_t stride = dtype > 0 && dtype < (int32_t)sizeof(bytes) ? bytes[dtype] : 0;
  memset(&tensor, 0, sizeof(tensor));
  tensor.data = data;
  tensor.ndim = ndim;
  tensor.dtype = dtype;
  tensor.device_type = device_type;
  tensor.device_id = device_id;
  for (int32_t i = ndim < KVIT_MAX_NDIM ? ndim - 1 : KVIT_MAX_NDIM - 1; i >= 0; --i) {
    tensor.shape[i] = shape[i];
    tensor.strides[i] = stride;
    stride *= shape[i];
  }
  return tensor;
}

#ifdef Py_PYTHON_H  // Python.h comes first, in the one file that imports the table

// Whether the table has all that this header names; raises ImportError and returns -1 where it has not.
static inline int kvit_check_api(const kvit_api* api) {
  if (api->version >= KVIT_API_VERSION && api->size >= sizeof(kvit_api)) return 0;
  PyErr_Format(PyExc_ImportError,
               "the installed kvit has version %u of its C API (%u bytes); this module was compiled against version %u "
               "(%u bytes). Install a newer kvit, or compile the module against the installed one.",
               (unsigned)api->version, (unsigned)api->size, (unsigned)KVIT_API_VERSION, (unsigned)sizeof(kvit_api));
  return -1;
}

// The table, for the life of the process. Call with the GIL held, from the module's init function for example.
// Returns NULL with a Python exception set: kvit is missing, or older than this header.
static inline const kvit_api* kvit_import(void) {
  // PyCapsule_Import imports the first name of a dotted path only.
  PyObject* module = PyImport_ImportModule("kvit._native.capi");
  const kvit_api* api;
  if (module == NULL) return NULL;
  Py_DECREF(module);
  api = (const kvit_api*)PyCapsule_Import("kvit._native.capi._C_API", 0);
  return api != NULL && kvit_check_api(api) == 0 ? api : NULL;
}

#endif  // Py_PYTHON_H

#ifdef __cplusplus
}
#endif

#endif  // KVIT_H
