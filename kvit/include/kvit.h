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

#ifdef __cplusplus
extern "C" {
#endif

// Grows by one whenever something is added. Nothing is ever removed or moved.
#define KVIT_API_VERSION 1

#define KVIT_MAX_NDIM 8

// What every call returns. The words of an error are in last_error().
enum kvit_status {
  KVIT_OK = 0,
  KVIT_ERROR_SHAPE = 1,            // shapes that do not fit each other, or that no kernel covers
  KVIT_ERROR_DTYPE = 2,            // an element type that is unknown, or that this argument cannot have
  KVIT_ERROR_DEVICE = 3,           // a device that does not exist, or arguments that live on different ones
  KVIT_ERROR_LAYOUT = 4,           // strides, alignment or packing that the call cannot read in place
  KVIT_ERROR_CACHE_FULL = 5,       // fewer free pages than the call needs; nothing was written
  KVIT_ERROR_SEQUENCE_FREED = 6,   // a sequence whose pages went back to its cache
  KVIT_ERROR_PAGE_TABLE = 7,       // a kernel met a page id, length or offset that cannot be
  KVIT_ERROR_KERNEL_MISSING = 8,   // nothing that was built covers the request on this device
  KVIT_ERROR_DRIVER = 9,           // a call into the CUDA driver failed
  KVIT_ERROR_NO_GPU = 10,          // no driver, or no GPU
  KVIT_ERROR_HOST_BACKEND = 11,    // the host backend is not built, or a kernel on it broke a rule
  KVIT_ERROR_ARGUMENT = 12,        // NULL where something is needed, a struct of an unknown size, an unknown option
  KVIT_ERROR_HANDLE = 13,          // a handle that was destroyed, is of another kind, or never was one
  KVIT_ERROR_BUSY = 14,            // an operation that another thread's call is using
  KVIT_ERROR_OUT_OF_MEMORY = 15,   // of the host
  KVIT_ERROR_NO_INTERPRETER = 16,  // Python has ended, or never began
  KVIT_ERROR_INTERNAL = 17,        // an exception that no other status names: a fault of kvit
};

// Element types, with the codes that kvit uses everywhere.
enum kvit_dtype {
  KVIT_DTYPE_F32 = 1,
  KVIT_DTYPE_F16 = 2,
  KVIT_DTYPE_BF16 = 3,
  KVIT_DTYPE_U8 = 4,
  KVIT_DTYPE_U4 = 5,  // packed in pairs along the last axis, element 0 in the low half; that axis has stride 0
  KVIT_DTYPE_F8E4M3 = 6,
  KVIT_DTYPE_F8E5M2 = 7,
  KVIT_DTYPE_I32 = 8,
  KVIT_DTYPE_I64 = 9,
  KVIT_DTYPE_U16 = 10,
  KVIT_DTYPE_U32 = 11,
  KVIT_DTYPE_F64 = 12,
  KVIT_DTYPE_I8 = 13,
};

// DLPack's numbers.
enum kvit_device_type { KVIT_DEVICE_HOST = 1, KVIT_DEVICE_CUDA = 2 };

// The order of the axes of a cache.
enum kvit_layout {
  KVIT_LAYOUT_DEFAULT = 0,
  KVIT_LAYOUT_NHD = 1,  // [pages, page_size, kv_heads, head_dim]
  KVIT_LAYOUT_HND = 2,  // [pages, kv_heads, page_size, head_dim]
};

enum kvit_op_kind { KVIT_OP_ATTENTION = 0, KVIT_OP_APPEND = 1, KVIT_OP_GATHER = 2 };

enum kvit_mask {
  KVIT_MASK_CAUSAL = 0,  // query i of a sequence's n new tokens sees keys up to length - n + i
  KVIT_MASK_NONE = 1,    // every query sees all keys of its sequence
};

// Somebody's memory: where its elements lie. Read during the call that takes it, then never again.
typedef struct kvit_tensor {
  void* data;                      // element [0, 0, ...]
  int64_t shape[KVIT_MAX_NDIM];    // [ndim] elements
  int64_t strides[KVIT_MAX_NDIM];  // [ndim] bytes to the next index
  int32_t ndim;
  int32_t dtype;        // enum kvit_dtype
  int32_t device_type;  // enum kvit_device_type
  int32_t device_id;    // ordinal of the GPU; 0 on the host
  int32_t readonly;     // not 0: a call that would write it refuses
  int32_t reserved;     // 0
} kvit_tensor;

// Which pages hold which sequence. All int32, on the device of the cache; kernels check what they read there.
typedef struct kvit_page_table {
  const kvit_tensor* pages;    // [sequences, slots] page ids; with indptr [entries], of all sequences end to end
  const kvit_tensor* indptr;   // [sequences + 1] where each sequence's entries begin; NULL: dense
  const kvit_tensor* lengths;  // [sequences] tokens in the cache, those of this call included
} kvit_page_table;

// What a kernel met: `value` stands in place `slot` of `sequence`; -1 where the fault is of no sequence.
typedef struct kvit_fault {
  int32_t sequence, slot, value;
} kvit_fault;

// A CUstream (or cudaStream_t), which the caller owns. NULL: the legacy default stream; the only one on the host.
typedef struct CUstream_st* kvit_stream;

// Handles. Opaque, and never addresses: one that was destroyed is recognised for ever.
typedef struct kvit_view kvit_view;          // a paged cache in the caller's memory
typedef struct kvit_op kvit_op;              // attention, append or gather for one shape of cache, its kernel chosen
typedef struct kvit_cache kvit_cache;        // a paged cache that owns its memory
typedef struct kvit_sequence kvit_sequence;  // a growing list of tokens in a kvit_cache

// Options and answers begin with their size as the caller knows it (sizeof), so that they can grow at the end. In
// options 0 is every field's default; of an answer the first `size` bytes are filled.

typedef struct kvit_view_options {
  uint32_t size;
  int32_t layout;            // enum kvit_layout; NHD by default
  const kvit_tensor *k, *v;  // pools, axes as `layout` says; without one of pages where page_size is given
  int64_t page_size;         // tokens of a page; by default as the shape says
  const kvit_tensor *k_params, *v_params;  // of int8 (U8) and int4 (U4): (scale, zero) of every row
  const kvit_tensor *k_scale, *v_scale;    // of float8: F32, [] or [kv_heads] or of every row; 1 by default
  int32_t k_dtype, v_dtype;                // of what is stored, where the tensors can only say "16 bits" or "bytes"
  int32_t dtype;                           // of queries; by default the 16-bit one among those above, or bfloat16
  int32_t reserved;                        // 0
} kvit_view_options;

typedef struct kvit_view_info {
  uint32_t size;
  int32_t dtype;  // of queries, outputs, and of rows that are appended
  int32_t k_dtype, v_dtype;
  int64_t num_pages, page_size;
  int32_t kv_heads, head_dim;
  int32_t device_type, device_id;
} kvit_view_info;

typedef struct kvit_op_options {
  uint32_t size;
  int32_t kind;                 // enum kvit_op_kind
  kvit_view* view;              // its dtype, KV heads, head_dim and device count, not its memory
  int32_t query_heads;          // attention: a multiple of the KV heads
  int32_t dtype;                // attention: of queries and outputs; the view's by default
  float scale;                  // attention: of the scores, before exp; head_dim ** -0.5 by default
  int32_t mask;                 // attention: enum kvit_mask
  int32_t tokens_per_sequence;  // attention: usual number of new tokens, a hint for the choice of kernel; 1 by default
  int32_t reserved;             // 0
  // attention: uint8 [workspace_bytes] of the caller, all zero, there as long as the operation is; kvit's own if NULL
  const kvit_tensor* workspace;
} kvit_op_options;

typedef struct kvit_op_info {
  uint32_t size;
  int32_t kind;
  int64_t workspace_bytes;  // fixed by the device and the shape, whatever the batch; 0 but for attention
  int32_t dtype, k_dtype, v_dtype;
  int32_t query_heads, kv_heads, head_dim;  // query_heads: 0 but for attention
  int32_t device_type, device_id;
} kvit_op_info;

typedef struct kvit_cache_options {
  uint32_t size;
  int32_t layout;  // enum kvit_layout; HND by default
  int64_t pages, page_size;
  int32_t kv_heads, head_dim;
  int32_t dtype;             // of queries, outputs, and of rows that are appended; bfloat16 by default
  int32_t k_dtype, v_dtype;  // how K and V are stored: U8 is int8, U4 is int4; as dtype by default
  int32_t device_type, device_id;
  int32_t reserved;  // 0
  const kvit_tensor *k_scale,
      *v_scale;  // of float8: F32, [] or [kv_heads], there as long as the cache is; 1 by default
} kvit_cache_options;

typedef struct kvit_cache_info {
  uint32_t size;
  int32_t dtype, k_dtype, v_dtype;
  int64_t num_pages, num_free_pages, page_size, bytes;
  int32_t kv_heads, head_dim;
  int32_t device_type, device_id;
} kvit_cache_info;

typedef struct kvit_sequence_info {
  uint32_t size;
  int32_t reserved;
  int64_t length, num_pages;
} kvit_sequence_info;

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

  // Attend new tokens to the cache. tokens: int32 [sequences + 1] on the device, where each sequence's rows begin;
  // NULL: all have as many.
  int32_t (*attention)(kvit_op* op, kvit_view* view, const kvit_page_table* table, const kvit_tensor* q,
                       const kvit_tensor* out, const kvit_tensor* lse, const kvit_tensor* tokens, kvit_stream stream);
  // Write the rows of k and v as the last tokens of their sequences: the table's lengths include them.
  int32_t (*append)(kvit_op* op, kvit_view* view, const kvit_page_table* table, const kvit_tensor* k,
                    const kvit_tensor* v, const kvit_tensor* tokens, kvit_stream stream);
  // Fill the rows of k and v with the last tokens of the sequences.
  int32_t (*gather)(kvit_op* op, kvit_view* view, const kvit_page_table* table, const kvit_tensor* k,
                    const kvit_tensor* v, const kvit_tensor* tokens, kvit_stream stream);
  // The attention over the union of two disjoint sets of keys, from the attention over each. lse may be NULL.
  int32_t (*merge_states)(const kvit_tensor* out_a, const kvit_tensor* lse_a, const kvit_tensor* out_b,
                          const kvit_tensor* lse_b, const kvit_tensor* out, const kvit_tensor* lse, kvit_stream stream);

  int32_t (*cache_create)(const kvit_cache_options* options, kvit_cache** cache);
  int32_t (*cache_query)(kvit_cache* cache, kvit_cache_info* info);
  // Sequences are destroyed on their own, before or after.
  int32_t (*cache_destroy)(kvit_cache* cache);
  // lengths [count]: how many of the rows each sequence has; NULL: all have as many. Host memory, as sequences is.
  int32_t (*cache_append)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count, const kvit_tensor* k,
                          const kvit_tensor* v, const int64_t* lengths, kvit_stream stream);
  // scale 0: head_dim ** -0.5.
  int32_t (*cache_attention)(kvit_cache* cache, kvit_sequence* const* sequences, int64_t count, const kvit_tensor* q,
                             const kvit_tensor* out, const kvit_tensor* lse, const int64_t* lengths, float scale,
                             int32_t mask, kvit_stream stream);
  int32_t (*cache_check)(kvit_cache* cache, kvit_stream stream, kvit_fault* fault);

  int32_t (*sequence_create)(kvit_cache* cache, kvit_sequence** sequence);
  int32_t (*sequence_query)(kvit_sequence* sequence, kvit_sequence_info* info);
  // A second sequence of the same tokens that shares their pages until one grows.
  int32_t (*sequence_fork)(kvit_sequence* sequence, kvit_sequence** fork);
  int32_t (*sequence_truncate)(kvit_sequence* sequence, int64_t length);
  // Its pages go back to the cache.
  int32_t (*sequence_destroy)(kvit_sequence* sequence);
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
