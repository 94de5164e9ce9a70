// A part of a head's attention over some of its keys, and how it stands in the workspace until somebody joins it.
#ifndef KVIT_SCHEDULE_PARTIAL_CUH
#define KVIT_SCHEDULE_PARTIAL_CUH

#include <math.h>
#include <stdint.h>

#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// The weight of a part whose maximum is `part_max` in a whole whose maximum is `max`; 0 for parts that saw no key.
KVIT_DEVICE float MergeWeight(float part_max, float max) { return part_max == -INFINITY ? 0.0f : Exp2(part_max - max); }

/// Four neighbouring outputs of a row, not yet divided by the sum, with the row's maximum, in log2 units, and sum.
struct Partial {
  static constexpr int kVector = 4;
  // From here on a row's maximum means nothing, in either direction: two neighbouring floats are 32 apart, so that what
  // is relative to one of them may be 2^16 times too large or too small, which no weight in f16 bears.
  static constexpr float kMost = 0x1p28f;
  float max = -INFINITY, sum = 0.0f;
  Array<float, kVector> output = {};

  /// Adds a part whose weight is MergeWeight(part.max, max).
  KVIT_DEVICE void Add(const Partial& part, float weight) {
    sum += part.sum * weight;  // NaN stays NaN, whatever its weight
    KVIT_UNROLL
    for (int i = 0; i < kVector; ++i) output[i] += part.output[i] * weight;
  }
};

/// A number as it stands in the workspace. A word of zero has not been written yet: parts need no flags, no fences and
/// no order, and whoever joins them waits for the words themselves. So 0 is stored as -0.
KVIT_DEVICE uint32_t PartWord(float x) { return BitCast<uint32_t>(x == 0.0f ? -0.0f : x); }

template <int Bytes>
KVIT_DEVICE bool AreThere(const Words<Bytes>& words) {
  bool all = true;
  KVIT_UNROLL
  for (int i = 0; i < Bytes / 4; ++i) all = all & (words.word[i] != 0u);
  return all;
}

/// What stands before the parts of all CTAs: the counter that CTAs take their tickets from, alone in its lines.
inline constexpr int kWorkspaceHeadBytes = 256;
KVIT_HD uint32_t* TicketCounter(void* workspace) { return static_cast<uint32_t*>(workspace); }
KVIT_HD float* PartialsOf(void* workspace) {
  return reinterpret_cast<float*>(static_cast<char*>(workspace) + kWorkspaceHeadBytes);
}

/// Parts that CTAs leave for each other in the workspace, `Parts` of each; all zero before a launch and after it.
///
///   outputs   [cta, part, row, channel] f32
///   stats     [cta, part, row, (max, sum)] f32
template <int HeadDim, int Rows, int Parts>
class Partials {
 public:
  static constexpr int kStats = 2;
  static constexpr int kFloats = HeadDim + kStats;  // of a row
  static constexpr int kCtaBytes = Parts * Rows * kFloats * int(sizeof(float));

  /// Where a vector of a row lies, and what all vectors of the row share.
  struct Place {
    float *output, *stats;

    /// The same vector, so many rows behind. Rows are counted over parts and CTAs, as they lie.
    KVIT_DEVICE Place Behind(int rows) const {
      return {output + int64_t(rows) * HeadDim, stats + int64_t(rows) * kStats};
    }
    /// Vector `vector` of the row, where this is its first.
    KVIT_DEVICE Place Vector(int vector) const { return {output + vector * Partial::kVector, stats}; }
    KVIT_DEVICE Words<16> LoadOutput() const { return LoadStrong<16>(output); }
    KVIT_DEVICE Words<8> LoadStats() const { return LoadStrong<8>(stats); }
    /// Takes back what nobody will read again.
    KVIT_DEVICE void ClearOutput() const { StoreStrong(output, Words<16>{}); }
    KVIT_DEVICE void ClearStats() const { StoreStrong(stats, Words<8>{}); }

    /// The threads of all vectors of a row call; one of them stores what they share.
    KVIT_DEVICE void Store(const Partial& partial, bool stores_stats) const {
      StoreStrong(output, Words<16>{{PartWord(partial.output[0]), PartWord(partial.output[1]),
                                     PartWord(partial.output[2]), PartWord(partial.output[3])}});
      if (stores_stats) StoreStrong(stats, Words<8>{{PartWord(partial.max), PartWord(partial.sum)}});
    }
  };

  KVIT_DEVICE explicit Partials(float* base) : outputs_(base), stats_(base + int64_t(GridSize()) * kRows * HeadDim) {}

  static constexpr int kRows = Parts * Rows;  // of a CTA

  KVIT_DEVICE Place At(int cta, int part, int row, int vector) const {
    const int64_t index = int64_t(cta) * kRows + part * Rows + row;
    return {outputs_ + index * HeadDim + vector * Partial::kVector, stats_ + index * kStats};
  }

 private:
  float *outputs_, *stats_;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_PARTIAL_CUH
