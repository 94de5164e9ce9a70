// What kvit.h speaks of: statuses, element types, tensors, handles, options and answers. Include kvit.h, which does.
#ifndef KVIT_TYPES_H
#define KVIT_TYPES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

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
  KVIT_ERROR_NO_INTERPRETER = 16,  // Python has ended, is about to, or stayed behind in a fork
  KVIT_ERROR_INTERNAL = 17,        // an exception that no other status names: a fault of kvit
  KVIT_ERROR_INTERRUPTED = 18,     // since version 4: Ctrl-C, or another signal whose handler raised; nothing is lost
  KVIT_ERROR_STEP = 19,            // since version 6: a step that has ended, cannot be kept, or has the sequence
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

// Added to U8 or U4 where k_dtype and v_dtype say how K and V are stored: rows go through a Hadamard transform first.
enum { KVIT_HADAMARD = 0x100 };

// DLPack's numbers.
enum kvit_device_type { KVIT_DEVICE_HOST = 1, KVIT_DEVICE_CUDA = 2 };

// The order of the axes of a cache.
enum kvit_layout {
  KVIT_LAYOUT_DEFAULT = 0,
  KVIT_LAYOUT_NHD = 1,  // [pages, page_size, kv_heads, head_dim]
  KVIT_LAYOUT_HND = 2,  // [pages, kv_heads, page_size, head_dim]
};

enum kvit_op_kind {
  KVIT_OP_ATTENTION = 0,
  KVIT_OP_APPEND = 1,
  KVIT_OP_GATHER = 2,
  KVIT_OP_COPY_PAGES = 3,     // since version 6: whole pages within one cache
  KVIT_OP_CONVERT_PAGES = 4,  // since version 6: whole pages into those of another layout or codec
};

enum kvit_mask {
  KVIT_MASK_CAUSAL = 0,  // query i of a sequence's n new tokens sees keys up to length - n + i
  KVIT_MASK_NONE = 1,    // every query sees all keys of its sequence
};

// How an operation gives its kernel to the driver.
enum kvit_launch {
  KVIT_LAUNCH_DIRECT = 0,  // the kernel itself, which may begin before the kernel before it has ended
  KVIT_LAUNCH_GRAPH = 1,   // a graph of it: least time on the host; calls of the operation take turns on the device
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

// A CUstream (or cudaStream_t), which the caller owns. NULL: the legacy default stream. On the host NULL, or handle
// of a kvit.Stream("host").
typedef struct CUstream_st* kvit_stream;

// Handles. Opaque, and never addresses: one that was destroyed is recognised for ever.
typedef struct kvit_view kvit_view;          // a paged cache in the caller's memory
typedef struct kvit_op kvit_op;              // work of an enum kvit_op_kind on one shape of cache, its kernel chosen
typedef struct kvit_cache kvit_cache;        // a paged cache that owns its memory
typedef struct kvit_sequence kvit_sequence;  // a growing list of tokens in a kvit_cache
typedef struct kvit_rope kvit_rope;          // how keys and queries turn with their positions, since version 5
typedef struct kvit_step kvit_step;          // new tokens of sequences in all layers of a cache, since version 6
typedef struct kvit_batch kvit_batch;        // sequences that take many steps together, since version 7
typedef struct kvit_swapped kvit_swapped;    // the tokens of a sequence in host memory, since version 7

// Options and answers begin with their size as the caller knows it (sizeof), so that they can grow at the end. In
// options 0 is every field's default; of an answer the first `size` bytes are filled.

typedef struct kvit_view_options {
  uint32_t size;
  int32_t layout;            // enum kvit_layout; NHD by default
  const kvit_tensor *k, *v;  // pools, axes as `layout` says; without one of pages where page_size is given
  int64_t page_size;         // tokens of a page; by default as the shape says
  const kvit_tensor *k_params, *v_params;  // of int8 (U8) and int4 (U4): (scale, zero) of every row
  const kvit_tensor *k_scale, *v_scale;    // of float8: F32, [] or [kv_heads] or of every row; 1 by default
  int32_t k_dtype, v_dtype;  // of what is stored, where the tensors can only say "16 bits" or "bytes"; may
                             // have KVIT_HADAMARD
  int32_t dtype;             // of queries; by default the 16-bit one among those above, or bfloat16
  int32_t reserved;          // 0
} kvit_view_options;

typedef struct kvit_view_info {
  uint32_t size;
  int32_t dtype;  // of queries, outputs, and of rows that are appended
  int32_t k_dtype, v_dtype;
  int64_t num_pages, page_size;
  int32_t kv_heads, head_dim;  // head_dim: channels of a row of K
  int32_t device_type, device_id;
  // Since version 6:
  int32_t v_dim;     // channels of a row of V
  int32_t reserved;  // 0
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
  // attention, since version 3: heads are cut at multiples of so many tokens, so that a sequence gives the same bits in
  // any batch; a multiple of the kernel's tile, which a refusal names. By default the work is cut evenly over the GPU
  int32_t split_tokens;
  // attention: uint8 [workspace_bytes] of the caller, all zero, there as long as the operation is; kvit's own if NULL
  const kvit_tensor* workspace;
  // Since version 3:
  int32_t launch;  // enum kvit_launch
  // attention: 1 lets a launch read lengths, page tables, and K and V of all but the new tokens before the launch in
  // front of it in the stream has ended, and promises that that one writes none of these; 0 waits for it with all
  int32_t reads_ahead;
  // Since version 4:
  int32_t window_left, window_right;  // attention: keys that a query sees up to its own, and from its own on; or all
  int32_t chunk;                      // attention: keys of a chunk, of which a query sees its own alone; all by default
  float softcap;                      // attention: a score s becomes softcap * tanh(s / softcap); not by default
  int32_t takes_spans, takes_tree;    // attention: 1 lets calls bring these arrays, by attention_masked
  // attention: F32, one block on the device, there as long as the operation is; none by default
  const kvit_tensor *sinks, *alibi;  // [query_heads] a score of no key; slopes, one of which each position takes away
  const kvit_tensor* temperature;    // [positions] factor of the scores of a query there; of later ones the last
  // Since version 5:
  kvit_rope* rope;                     // append: K turns by it, and Q; K is stored as it comes by default
  const kvit_tensor *k_norm, *q_norm;  // append: [head_dim] weights of an RMSNorm of rows before they turn; none
  float norm_eps, norm_offset;         // append: 1e-6 by default; added to every weight
  // Since version 6:
  kvit_view* target;  // convert pages: where they go, as `view` says where they come from
} kvit_op_options;

typedef struct kvit_op_info {
  uint32_t size;
  int32_t kind;
  int64_t workspace_bytes;  // fixed by the device and the shape, whatever the batch; 0 but for attention
  int32_t dtype, k_dtype, v_dtype;
  int32_t query_heads, kv_heads, head_dim;  // query_heads: 0 but for attention
  int32_t device_type, device_id;
  // Since version 6:
  int32_t v_dim;     // channels of a row of V, and of an output
  int32_t reserved;  // 0
} kvit_op_info;

// Since version 5.
typedef struct kvit_rope_options {
  uint32_t size;
  int32_t head_dim;
  int32_t rotary_dim;   // leading channels that turn; head_dim by default
  int32_t interleaved;  // 1: pairs are channels 2i and 2i + 1; 0: i and i + rotary_dim / 2
  double base;          // rope_theta of configurations; 10000 by default
  // rope_scaling of a configuration, as its JSON: "{\"rope_type\": \"llama3\", ...}"; none by default
  const char* scaling;
} kvit_rope_options;

// What append_rotated has besides append, each by default not. Since version 5.
typedef struct kvit_append_extras {
  uint32_t size;
  int32_t reserved;              // 0
  const kvit_tensor *q, *q_out;  // [tokens, query_heads, head_dim] turned as k is; written to q where q_out is NULL
  const kvit_tensor* positions;  // I32 [tokens] that rows turn to; by default their places in their sequences
  const kvit_tensor* prefix_lengths;            // I32 [sequences]: tokens of lower positions are not written
  const kvit_tensor *k_bias, *v_bias, *q_bias;  // [heads, head_dim], added before anything else
} kvit_append_extras;

#ifdef __cplusplus
}
#endif

#endif  // KVIT_TYPES_H
