// Family `read`: streams memory once and adds it up: the rate that no kernel which reads as much can beat.
#ifndef KVIT_ENTRY_READ_CUH
#define KVIT_ENTRY_READ_CUH

#include "abi/fact.h"
#include "abi/probe_params.h"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Each thread has Loads 16-byte loads under way; CTAs take turns at blocks of kThreads * Loads * 16 bytes. The sum
/// depends on every word, so no compiler can leave a load out, and a caller can tell that nothing was missed or read
/// twice.
template <int Loads>
struct ReadKernel {
  using Params = KvitReadParams;
  using Vector = Words<16>;
  static constexpr int kThreads = 512;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kSharedBytes = kWarps * int(sizeof(uint32_t));
  static constexpr int kMinCtas = 2;
  static constexpr KvitFact kFacts[] = {{"loads", Loads}, {"block_bytes", kThreads * Loads * int(sizeof(Vector))}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    constexpr int64_t kBlock = int64_t(kThreads) * Loads;
    const int64_t vectors = params.bytes / int64_t(sizeof(Vector));
    uint32_t sum = 0;
    for (int64_t block = BlockIndex() * kBlock; block < vectors; block += GridSize() * kBlock) {
      sum += ReadBlock(static_cast<const Vector*>(params.base), block + ThreadIndex(), vectors);
    }
    for (int mask = 16; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
    auto* of_warp = reinterpret_cast<uint32_t*>(shared);
    if (LaneIndex() == 0) StoreShared(of_warp + WarpIndex(), sum);
    SyncThreads();
    if (ThreadIndex() != 0) return;
    uint32_t total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += LoadShared<uint32_t>(of_warp + warp);
    AtomicAdd(params.sum, total);
  }

 private:
  KVIT_DEVICE static uint32_t ReadBlock(const Vector* base, int64_t first, int64_t vectors) {
    Vector loaded[Loads];
    KVIT_UNROLL
    for (int i = 0; i < Loads; ++i) {
      const int64_t at = first + i * kThreads;
      loaded[i] = at < vectors ? LoadGlobalReadOnly<Vector>(base + at) : Vector{};
    }
    uint32_t sum = 0;
    KVIT_UNROLL
    for (int i = 0; i < Loads; ++i) {
      for (const uint32_t word : loaded[i].word) sum += word;
    }
    return sum;
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_READ_CUH
