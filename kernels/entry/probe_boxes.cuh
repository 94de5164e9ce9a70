// Family probe_boxes: loads one tile of K and of V by tensor copies and dumps where every byte landed.
#ifndef KVIT_ENTRY_PROBE_BOXES_CUH
#define KVIT_ENTRY_PROBE_BOXES_CUH

#include <stdint.h>

#include "abi/fact.h"
#include "abi/probe_params.h"
#include "cache/fault.cuh"
#include "cache/sequence_view.cuh"
#include "core/types.h"
#include "iterator/sm90.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// One warp, since the iterator is a warp's. As in decode, a lane looks after one token of every 32: it looks up the
/// token's page, and where a box begins with the token, begins the box's copies.
///
///   shared_image   K data, stage 0 .. Stages - 1 | V data, ...     (behind it, in shared memory: a barrier per stage)
///   fragments      per thread: K | V, each [16 tokens][32 bytes of a row][4 words]: what decode's matrix loads give
///
/// Shared memory is 0xFF before the tile comes. Advances pass through the tile's own slot: each of those tiles is
/// copied, waited for and cleared as the last one is.
template <class T, int D, int Tokens, int Stages>
struct ProbeBoxesKernel {
  using Params = KvitProbeParams;
  using Iterator = Sm90GmemIterator<T, D, Tokens>;
  using Layout = typename Iterator::Layout;
  static_assert(Tokens % 16 == 0, "a matrix load reads 16 tokens");

  static constexpr int kImageBytes = 2 * Stages * Layout::kBytes;
  static constexpr int kLoads = Layout::kRowBytes / 32;                    // of 16 tokens
  static constexpr int kSideFragmentBytes = Tokens / 16 * kLoads * 4 * 4;  // of K, or of V
  static constexpr int kFragmentBytes = 2 * kSideFragmentBytes;

  static constexpr int kThreads = 32;
  static constexpr int kSharedBytes = kImageBytes + Stages * int(sizeof(uint64_t));
  static constexpr int kMinCtas = 1;
  static constexpr KvitFact kFacts[] = {
      {"tile_tokens", Tokens}, {"stages", Stages}, {"fragment_bytes", kFragmentBytes}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    char* keys = shared + params.stage * Layout::kBytes;
    char* values = keys + Stages * Layout::kBytes;
    uint64_t* full = reinterpret_cast<uint64_t*>(shared + kImageBytes) + params.stage;
    for (int i = LaneIndex(); i < kImageBytes / 16; i += 32) {
      StoreShared(shared + i * 16, Words<16>{{~0u, ~0u, ~0u, ~0u}});
    }
    if (LaneIndex() == 0) {
      InitBarrier(full, 1);
      FenceBarrierInit();
    }
    FenceAsyncCopies();  // the first copy must not overtake the poison
    SyncWarp();

    const SequenceView view = ViewSequence(params.table, params.cache.page_size, params.sequence);
    if (view.fault.kind != KVIT_FAULT_NONE) ReportFault(params.fault, view.fault);
    for (int i = 0; i <= params.advances; ++i) {
      Copy(params, view, params.tile - params.advances + i, keys, values, full);
      WaitBarrier(full, i & 1);
      SyncWarp();  // nobody may begin the next phase while somebody waits for this one
      if (params.max_s < Tokens) {
        Iterator::Clear(keys, Max(0, params.max_s));
        Iterator::Clear(values, Max(0, params.max_s));
      }
    }

    uint8_t* fragments = params.fragments + LaneIndex() * kFragmentBytes;
    for (int load = 0; load < Tokens / 16 * kLoads; ++load) {
      const int s = load / kLoads * 16, byte = load % kLoads * 32, lane = LaneIndex();
      Words<16> k, v;
      LoadMatrixX4(k.word, keys + Layout::Offset(s + lane % 16, byte + lane / 16 * 16));
      LoadMatrixX4Transposed(v.word, values + Layout::Offset(s + lane / 16 * 8 + lane % 8, byte + lane / 8 % 2 * 16));
      StoreGlobal(fragments + load * 16, k);
      StoreGlobal(fragments + kSideFragmentBytes + load * 16, v);
    }
    for (int i = LaneIndex(); i < kImageBytes / 16; i += 32) {
      StoreGlobal(params.shared_image + i * 16, LoadShared<Words<16>>(shared + i * 16));
    }
  }

 private:
  KVIT_DEVICE static void Copy(const Params& params, const SequenceView& view, int tile, char* keys, char* values,
                               uint64_t* full) {
    const int boxes = Tokens / params.box_tokens;
    const int end = params.s_count < 0 ? boxes : Min(boxes, params.s_begin + params.s_count);
    const int bytes = Max(0, end - params.s_begin) * params.box_tokens * Layout::kRowBytes;
    if (LaneIndex() == 0) ArriveExpecting(full, 2 * bytes);
    for (int s = LaneIndex(); s < Tokens; s += 32) {
      const uint32_t token = uint32_t(tile) * Tokens + uint32_t(s), page_size = uint32_t(params.cache.page_size);
      const uint32_t slot = token / page_size;
      const bool holds = token < uint32_t(view.length);
      const int32_t page = holds ? LoadGlobalReadOnly<int32_t>(params.table.pages + view.begin + slot) : -1;
      const bool found = uint32_t(page) < uint32_t(params.cache.num_pages);
      if (holds && !found) ReportFault(params.fault, {KVIT_FAULT_PAGE, params.sequence, int32_t(slot), page});
      const int index = s / params.box_tokens;
      if (s % params.box_tokens == 0 && index >= params.s_begin && index < end) {
        const Box box = {found ? page : -1, int(token - slot * page_size), params.head};
        Iterator::Prefetch(params.k_map, box, keys, s, full);
        Iterator::Prefetch(params.v_map, box, values, s, full);
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_PROBE_BOXES_CUH
