// What a launch hands to a kernel: plain C structs, passed by value. All strides are in bytes unless they say
// otherwise.
#ifndef KVIT_ABI_PARAMS_H
#define KVIT_ABI_PARAMS_H

#include <stddef.h>
#include <stdint.h>

// The GPU wants tensor maps at multiples of 64; whoever packs one for a launch need not.
#ifdef __CUDACC__
#define KVIT_TENSOR_MAP_ALIGNMENT alignas(64)
#else
#define KVIT_TENSOR_MAP_ALIGNMENT
#endif

#ifdef __cplusplus
extern "C" {
#endif

// One of K, V, K parameters, V parameters: row (page, token in page, head) holds all channels, densely.
typedef struct KvitPool {
  void* base;  // NULL where the codec stores nothing here
  int64_t page_stride, token_stride, head_stride;
} KvitPool;

// NHD, HND and any other order differ only in strides.
typedef struct KvitCache {
  KvitPool pool[4];  // indexed like the iterators: 0 K, 1 V, 2 K parameters, 3 V parameters
  int32_t num_pages, page_size, num_kv_heads;
  int16_t k_dim, v_dim;  // channels of a row of K and of V
  // Channels of a block of the Hadamard transform of which rows are stored, a power of two from 8 to 128; 0: as they
  // are.
  int32_t k_hadamard, v_hadamard;
  // [num_pages] where each page lies: a pool's base then counts bytes from there, and its page_stride is 0. NULL: page
  // p lies at p * page_stride.
  const void* const* blocks;
} KvitCache;

// How the bytes of a row lie: byte b at b / bytes * stride + b % bytes of the row's address. Dense: bytes of a row, 0.
typedef struct KvitChunks {
  int64_t bytes, stride;
} KvitChunks;

// Which pages hold a sequence.
//   dense    pages[sequence * row_stride + slot]
//   ragged   pages[indptr[sequence] + slot]
typedef struct KvitPageTable {
  const int32_t* pages;
  const int32_t* indptr;   // [sequences + 1], NULL when dense
  const int32_t* lengths;  // [sequences] tokens in the cache, those of this call included
  int64_t row_stride;      // in entries
  int32_t num_sequences;
  int32_t max_pages;  // dense: slots of a row; ragged: entries of pages
} KvitPageTable;

// [token, head, channel] of queries, outputs, or new keys and values; channels are dense.
typedef struct KvitRows {
  void* base;
  int64_t token_stride, head_stride;
} KvitRows;

// [token, head] in f32, natural log. base NULL: not wanted.
typedef struct KvitLse {
  float* base;
  int64_t token_stride, head_stride;
} KvitLse;

// What a KvitFault says.
enum KvitFaultKind {
  KVIT_FAULT_NONE = 0,
  KVIT_FAULT_PAGE = 1,    // value = the page id, slot = its place in the sequence's row
  KVIT_FAULT_LENGTH = 2,  // value = the length; negative, or more than the table's pages hold
  KVIT_FAULT_INDPTR = 3,  // value = the offending entry
  KVIT_FAULT_BLOCK = 4,   // value = a page id whose entry in `blocks` is NULL or no multiple of 16
};

// The first fault that a kernel met, in device memory; kind 0 means none. Written once, read by the next check.
typedef struct KvitFault {
  int32_t kind, sequence, slot, value;
} KvitFault;

// Which of the call's new tokens (rows of q, or of new keys) belong to which sequence: the last ones of each.
typedef struct KvitTokens {
  const int32_t* indptr;  // [sequences + 1] into the rows; NULL: `each` rows per sequence
  int32_t each;
  int32_t total;
} KvitTokens;

// Division by a fixed number >= 1 of what is below 2^31: x / divisor = x * magic >> shift. abi/divisor.h makes them.
typedef struct KvitDivisor {
  uint32_t magic;
  int32_t shift;
} KvitDivisor;

// Tokens of the smallest box of a tensor map: the swizzle repeats after so many rows.
enum { KVIT_LEAST_BOX_TOKENS = 8 };

// A tensor map (CUtensorMap) of the rows of K or V, made by the driver, or for the host by the host backend. Axes,
// innermost first: byte of a chunk of up to 128, token in page, chunk of the row, head, page. A box is `box_tokens` of
// one chunk of one head; chunks of 128, 64 and 32 bytes are swizzled by that many. With lines, where tokens of fewer
// than 128 bytes lie one after the other: byte of a line of 128, line of the page, 1, head, page.
typedef struct KVIT_TENSOR_MAP_ALIGNMENT KvitTensorMap {
  unsigned char bytes[128];
} KvitTensorMap;

// What variant `general` has besides: of a mask, and of scores. All zero: nothing. Positions of queries and keys are
// their places in the sequence; docs/attention.md says what stands where the new tokens are a tree.
typedef struct KvitGeneral {
  const int32_t* spans;   // [tokens, 2] keys [begin, end): a query whose position lies there sees them too; NULL: none
  const uint64_t* trees;  // [tokens, tree_words] bit j: the query sees its sequence's new token j; NULL: a chain
  const float* sinks;     // [num_query_heads] scores that the sum has once more, for no key; NULL: none
  const float* alibi;     // [num_query_heads] slopes: a score loses one for each position between query and key
  const float* temperature;  // [positions] factor of the queries at a position; of later ones the last; NULL: 1
  int32_t window_left, window_right;  // keys that a query sees up to its own, and from its own on; 0: all
  int32_t chunk;                      // a query sees keys of its own chunk of so many; 0: of all
  KvitDivisor by_chunk;               // division by chunk, where there is one
  int32_t tree_words;                 // 1 or 2: a sequence of more than 64 * tree_words new tokens is a chain
  int32_t positions;                  // of temperature, at least 1
  float cap_log2, cap_rate;           // a score s becomes c tanh(s / c): c log2(e), and 2 / c; 0: it does not
  int32_t reserved[13];
} KvitGeneral;

// Attention of new tokens over the cache. Grid: any number of CTAs, the same for every launch on a workspace.
typedef struct KvitDecodeParams {
  KvitCache cache;
  KvitPageTable table;
  KvitTokens tokens;
  KvitRows q, out;
  KvitLse lse;
  KvitFault* fault;
  // First a counter that CTAs take their tickets from, alone in `workspace_head_bytes`, then of each CTA `part_bytes`,
  // or `split_part_bytes` where split_tiles is set (facts of the kernel): [grid, parts, rows, v_dim + 2] f32, (O, max,
  // sum) of what a CTA leaves for others to join. Zero before the first launch, and every launch leaves it so, but for
  // the last third of split parts: any bytes.
  void* workspace;
  float scale;  // of the scores, before exp
  int32_t num_query_heads;
  int32_t causal;                // 1: query i of n sees keys up to length - n + i
  int32_t box_tokens;            // of a box of both maps: a power of two that divides the page size
  KvitDivisor page_size, group;  // by cache.page_size, and by query heads of a KV head
  int32_t split_tiles;           // every head is cut after each so many tiles; 0: where a CTA's share ends
  // 1: the launch in front writes no lengths, no table and no token before a sequence's new ones, so that all these may
  // be read before it has ended.
  int32_t reads_ahead;
  int32_t partitions;  // lines of work, each with heads and CTAs of its own: divides the grid and the KV heads
  int32_t reserved[9];
  KvitTensorMap k_map, v_map;  // for kernels that copy by them
  KvitGeneral general;         // for kernels of variant `general`; behind what all others read
} KvitDecodeParams;

// Rows k and v of a call's tokens, to or from their pages: token j of n of a sequence is at position length - n + j.
// Gather writes k and v.
typedef struct KvitTransferParams {
  KvitCache cache;
  KvitPageTable table;
  KvitTokens tokens;
  KvitRows k, v;
  KvitFault* fault;
  const float* smoothing;  // [3, num_kv_heads, k_dim] of keys: mean, width, 1 / width; no launch writes it; NULL: none
} KvitTransferParams;

// Rotary position embedding. Pair i of a row turns by positions * steps[i] / 2^64 turns.
typedef struct KvitRope {
  const uint64_t* steps;     // [rotary_dim / 2], at a multiple of 16 bytes; no launch writes them
  const int32_t* positions;  // [tokens], NULL: a token's place in its sequence
  float attention_factor;    // of cosines and sines
  int32_t rotary_dim;        // leading channels that turn, a multiple of 16, or of 4 up to 32; 0: none do
  int32_t is_interleaved;    // pairs are channels (2 i, 2 i + 1); else (i, i + rotary_dim / 2)
  int32_t reserved;
} KvitRope;

// What rows pass through besides, where append's variant is `extended`, which smooths keys too. All zero: nothing.
typedef struct KvitAppendExtras {
  const void *k_norm, *q_norm;      // [head_dim] weights of RMSNorm in the rows' dtype; no launch writes them
  float norm_epsilon, norm_offset;  // added to the mean square, and to every weight
  const uint8_t* axes;              // [rotary_dim / 2] which row of the positions turns a pair; NULL: there is one row
  int32_t axis_stride;              // entries of rope.positions from one row to the next; 0: every axis has the same
  int32_t reserved;
} KvitAppendExtras;

// Rows into pages, biased and rotated on the way; rows of queries, rotated beside them. All zero behind `transfer`: as
// they are.
typedef struct KvitAppendParams {
  KvitTransferParams transfer;           // k and v are read
  KvitRows q, q_out;                     // [tokens, num_query_heads, head_dim], q_out may be q
  const void *k_bias, *v_bias, *q_bias;  // [heads, head_dim] in the rows' dtype, no launch writes them; NULL: none
  const int32_t* prefix_lengths;         // [sequences] positions below are read-only and skipped; NULL: none
  KvitRope rope;
  int32_t num_query_heads;  // 0: no queries
  int32_t passes;           // over its heads, of each warp: it moves so many times as many as its lanes have room for
  KvitAppendExtras extras;
} KvitAppendParams;

// Cached tokens to other positions. Row p of a sequence of `table` becomes what row p - by of that sequence of `source`
// was, with K turned by `by` positions; rows below `first` come from row p as they are. Where is_in_place is set, every
// row stays where it is, and those from `first` on turn. Grid: parts * table.num_sequences CTAs.
typedef struct KvitShiftParams {
  KvitCache cache;
  KvitPageTable table, source;
  const int32_t *by, *first;  // [sequences]; NULL: by_each, first_each
  int32_t by_each, first_each;
  KvitRope rope;  // without positions; its attention factor is 1
  KvitFault* fault;
  const float* smoothing;  // as KvitTransferParams has it
  int32_t parts;           // CTAs that share a sequence
  int32_t is_in_place;
} KvitShiftParams;

// The entries of sequences that the queries of a call have chosen, as page tables of a view with smaller pages. Page p
// of the cache, part i of it (part_tokens = entry_tokens / pages_per_entry tokens), KV head h of choosers is page
// p * page_step + i * part_step + h * head_step of that view. Grid: a warp for each row and chooser.
typedef struct KvitSelectParams {
  KvitPageTable table;
  KvitTokens tokens;
  const int32_t* indices;  // [tokens, choosers, entries] entry numbers, -1: none
  int32_t* pages;          // [tokens * choosers, entries * pages_per_entry]
  int32_t* lengths;        // [tokens * choosers]
  KvitFault* fault;
  int32_t num_pages, page_size;  // of the cache
  int32_t entry_tokens, pages_per_entry, entries, choosers;
  int32_t page_step, part_step, head_step;
  int32_t is_causal;
} KvitSelectParams;

// Whole pages within one cache, pool by pool: for fork, copy-on-write and defragmentation. Grid: num_chains *
// num_kv_heads.
typedef struct KvitCopyPagesParams {
  KvitCache cache;
  const int32_t *source, *target;  // [count] page ids, checked by the kernel
  const int32_t* chains;           // [num_chains + 1] into the pairs, which a chain copies in order; NULL: each alone
  int64_t row_bytes[4];            // bytes of one (page, token, head) row in each pool; 0: pool unused
  KvitFault* fault;
  int32_t count;
  int32_t num_chains;  // count where chains is NULL
} KvitCopyPagesParams;

// Pages of one cache into pages of another with rows of the same bytes in other places. Grid: any number of CTAs.
typedef struct KvitRelayoutParams {
  KvitCache source, target;
  KvitChunks source_chunks[4], target_chunks[4];
  int64_t row_bytes[4];                        // of a row in each pool, both sides; 0: pool unused
  const int32_t *source_pages, *target_pages;  // [count] page ids, checked by the kernel; NULL: 0, 1, ...
  KvitFault* fault;
  int32_t count;
  int32_t reserved;
} KvitRelayoutParams;

// K or V of pages of one cache into pages of another that stores them otherwise. Grid: parts * count CTAs.
typedef struct KvitRequantiseParams {
  KvitCache source, target;
  const int32_t *source_pages, *target_pages;  // [count] page ids, checked by the kernel; NULL: 0, 1, ...
  KvitFault* fault;
  int32_t count;
  int32_t side;      // 0 K, 1 V
  int32_t parts;     // CTAs that share a page; 1 where in_order
  int32_t in_order;  // 1: a page's new rows overwrite its old ones (entry/requantise.cuh says where they may lie)
} KvitRequantiseParams;

// Parts that a launch of merge takes from places of their own.
enum { KVIT_MERGE_PARTS = 16 };

// softmax-weighted union of states over disjoint keys. A list of parts has a place for each. Stacked parts, any number
// of them, begin at places[0] and lses[0], and lie part_stride and lse_part_stride bytes apart.
typedef struct KvitMergeParams {
  KvitRows places[KVIT_MERGE_PARTS];
  KvitLse lses[KVIT_MERGE_PARTS];
  KvitRows out;
  KvitLse lse;
  int64_t part_stride, lse_part_stride;
  int32_t num_parts, is_stacked;
  int32_t num_tokens, num_heads, head_dim, reserved;
} KvitMergeParams;

#ifdef __cplusplus
}
static_assert(sizeof(KvitPool) == 32 && sizeof(KvitCache) == 160, "the ABI of a cache is fixed");
static_assert(sizeof(KvitPageTable) == 40 && sizeof(KvitTokens) == 16, "the ABI of a page table is fixed");
static_assert(sizeof(KvitRows) == 24 && sizeof(KvitLse) == 24 && sizeof(KvitFault) == 16, "the ABI of rows is fixed");
static_assert(sizeof(KvitTensorMap) == 128 && sizeof(KvitDecodeParams) == 768, "the ABI of attention is fixed");
static_assert(sizeof(KvitGeneral) == 128, "the ABI of attention is fixed");
static_assert(offsetof(KvitDecodeParams, k_map) % 64 == 0, "tensor maps lie at multiples of 64");
static_assert(sizeof(KvitTransferParams) == 280 && sizeof(KvitRope) == 32 && sizeof(KvitAppendParams) == 440,
              "the ABI of append and gather is fixed");
static_assert(sizeof(KvitShiftParams) == 320 && sizeof(KvitSelectParams) == 128,
              "the ABI of shift and select is fixed");
#endif

#endif  // KVIT_ABI_PARAMS_H
