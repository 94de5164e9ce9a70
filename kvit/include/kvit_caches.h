// What kvit.h says of caches that own their memory: their options, layers and sequences. Include kvit.h, which does.
#ifndef KVIT_CACHES_H
#define KVIT_CACHES_H

#include <stdint.h>

#include "kvit_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// What lies side by side in the memory of a cache, among layers that are alike. Since version 6.
enum kvit_storage {
  KVIT_STORAGE_LAYERS = 0,  // the pages of each layer
  KVIT_STORAGE_PAGES = 1,   // the layers of each page
};

// Layers that are alike and follow one another. Where a field is 0, the options of the cache say it. Since version 6.
typedef struct kvit_layer_spec {
  uint32_t size;  // the same in every spec of an array, whose elements lie so many bytes apart
  int32_t count;  // of layers; 1 by default
  int32_t kv_heads, head_dim, v_dim;
  int32_t k_dtype, v_dtype;           // as in kvit_cache_options
  int32_t shares_kv;                  // 1: V is the first v_dim channels of K, in the same memory; -1: it is not
  int32_t is_unturned;                // 1: their keys do not turn, whatever the rope of the cache
  int32_t window_left, window_right;  // keys that their queries see where a call names none; all by default
  int32_t reserved;                   // 0
  kvit_rope* rope;
  const kvit_tensor *k_scale, *v_scale;
} kvit_layer_spec;

typedef struct kvit_cache_options {
  uint32_t size;
  int32_t layout;  // enum kvit_layout; HND by default
  int64_t pages, page_size;
  int32_t kv_heads, head_dim;
  int32_t dtype;             // of queries, outputs, and of rows that are appended; bfloat16 by default
  int32_t k_dtype, v_dtype;  // how K and V are stored: U8 is int8, U4 is int4, with or without KVIT_HADAMARD; as dtype
                             // by default
  int32_t device_type, device_id;
  int32_t reserved;  // 0
  // of float8: F32, [] or [kv_heads], there as long as the cache is; 1 by default
  const kvit_tensor *k_scale, *v_scale;
  // Since version 5:
  kvit_rope* rope;  // how append turns K, and Q with it; K is stored as it comes by default
  // Since version 6:
  const kvit_layer_spec* specs;  // [num_specs] layers that differ, in the order of the model; NULL: all are alike
  int32_t num_specs;
  int32_t num_layers;  // layers that are alike; 1 by default; 0 where there are specs
  int32_t v_dim;       // channels of a row of V, and of an output; head_dim by default
  int32_t shares_kv;   // 1: V is the first v_dim channels of K, in the same memory
  int32_t storage;     // enum kvit_storage
  int32_t reserved_2;  // 0
} kvit_cache_options;

typedef struct kvit_cache_info {
  uint32_t size;
  int32_t dtype, k_dtype, v_dtype;
  int64_t num_pages, num_free_pages, page_size, bytes;
  int32_t kv_heads, head_dim;  // as the options said
  int32_t device_type, device_id;
  // Since version 6:
  int32_t num_layers;  // k_dtype and v_dtype are 0 where they differ among these
  int32_t reserved;    // 0
} kvit_cache_info;

// Since version 6.
typedef struct kvit_layer_info {
  uint32_t size;
  int32_t dtype, k_dtype, v_dtype;
  int32_t kv_heads, head_dim, v_dim;
  int32_t shares_kv;                  // 1: V is the first channels of K, in the same memory
  int32_t has_rope;                   // 1: append turns its keys
  int32_t window_left, window_right;  // keys that its queries see where a call names none; 0: all
  int32_t reserved;                   // 0
} kvit_layer_info;

// What layer_attention and step_attention do besides a causal mask, each field as in kvit_op_options. Since version 6.
typedef struct kvit_attention_options {
  uint32_t size;
  int32_t mask;                       // enum kvit_mask
  float scale;                        // head_dim ** -0.5 by default
  int32_t window_left, window_right;  // the layer's own by default
  int32_t chunk;
  float softcap;
  int32_t reserved;                                // 0
  const kvit_tensor *sinks, *alibi, *temperature;  // there as long as the cache is
  const kvit_tensor *spans, *tree;                 // as in attention_masked
} kvit_attention_options;

typedef struct kvit_sequence_info {
  uint32_t size;
  int32_t reserved;
  int64_t length, num_pages;
} kvit_sequence_info;

// Since version 7.
typedef struct kvit_batch_options {
  uint32_t size;
  int32_t reserved;  // 0
  // Tokens of each sequence that the page table has room for, counted in pages of all of them together. By default
  // there is room for twice as many pages as the cache has, which is enough unless most of them are shared.
  int64_t max_tokens;
  kvit_stream stream;  // of all calls of the batch and of its steps
} kvit_batch_options;

// Since version 7.
typedef struct kvit_batch_info {
  uint32_t size;
  int32_t has_open_step;  // 1: a step was begun, and neither committed nor destroyed
  int64_t num_sequences;
  int64_t max_pages;  // of all sequences together, that the page table has room for
} kvit_batch_info;

// Since version 7.
typedef struct kvit_swapped_info {
  uint32_t size;
  int32_t reserved;           // 0
  int64_t length, num_pages;  // tokens, and the pages that they take in a cache
  int64_t bytes;              // of host memory
} kvit_swapped_info;

#ifdef __cplusplus
}
#endif

#endif  // KVIT_CACHES_H
