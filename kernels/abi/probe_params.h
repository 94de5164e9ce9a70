// What a launch hands to kernels that show or measure something: plain C structs, passed by value.
#ifndef KVIT_ABI_PROBE_PARAMS_H
#define KVIT_ABI_PROBE_PARAMS_H

#include "abi/params.h"

#ifdef __cplusplus
extern "C" {
#endif

// One tile through one iterator; `entry/probe.cuh` and `entry/probe_boxes.cuh` draw what lands where.
typedef struct KvitProbeParams {
  KvitCache cache;
  KvitPageTable table;
  uint8_t* shared_image;  // [kSharedBytes] shared memory after the copy, poisoned before
  uint8_t* fragments;     // [threads, kFragmentBytes] registers of every thread
  KvitFault* fault;
  int32_t sequence, head, tile, max_s;
  int32_t s_begin, s_count;  // slice of the S iterations, or of the boxes of a tile; s_count < 0: all
  int32_t stage;             // ring slot that the tile lands in
  int32_t advances;          // the tile is reached by SetTile(tile - advances), then so many Advance()
  int32_t box_tokens;        // of a box of both maps, as in KvitDecodeParams
  int32_t reserved[15];
  KvitTensorMap k_map, v_map;  // for kernels that copy by them
} KvitProbeParams;

// Memory to be read once, for the sake of how long that takes. base is a multiple of 16.
typedef struct KvitReadParams {
  const void* base;
  int64_t bytes;  // a multiple of 16
  uint32_t* sum;  // the sum of all 32-bit words is added to it
} KvitReadParams;

#ifdef __cplusplus
}
static_assert((sizeof(KvitProbeParams) - 2 * sizeof(KvitTensorMap)) % 64 == 0, "tensor maps lie at multiples of 64");
#endif

#endif  // KVIT_ABI_PROBE_PARAMS_H
