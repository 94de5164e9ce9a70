// A part of a head's attention over some of its keys, and how it stands in the workspace until somebody joins it.
#ifndef KVIT_ATTENTION_PARTIAL_CUH
#define KVIT_ATTENTION_PARTIAL_CUH

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
  float max = -INFINITY, sum = 0.0f;
  Array<float, kVector> output = {};
};

/// A Partial as it stands in the workspace. A word of zero has not been written yet: parts need no flags, no fences and
/// no order, and whoever joins them waits for the words themselves. Numbers are stored with their bits inverted, so
/// that none is zero but one NaN, which is stored as another.
struct PartialWords {
  Words<8> stats = {{Word(-INFINITY), ~0u}};  // (max, sum), by default of what saw no key
  Words<16> output = {{~0u, ~0u, ~0u, ~0u}};

  KVIT_DEVICE bool AreThere() const {
    return (stats.word[0] != 0u) & (stats.word[1] != 0u) & (output.word[0] != 0u) & (output.word[1] != 0u) &
           (output.word[2] != 0u) & (output.word[3] != 0u);
  }
  KVIT_DEVICE Partial Get() const {
    return {Number(stats.word[0]),
            Number(stats.word[1]),
            {Number(output.word[0]), Number(output.word[1]), Number(output.word[2]), Number(output.word[3])}};
  }

  static KVIT_DEVICE uint32_t Word(float x) { return ~BitCast<uint32_t>(x == x ? x : NAN); }
  static KVIT_DEVICE float Number(uint32_t word) { return BitCast<float>(~word); }
};

/// Parts that CTAs leave for each other in the workspace, `Parts` of each; all zero before a launch and after it.
///
///   outputs   [cta, part, row, channel] f32
///   stats     [cta, part, row, (max, sum)] f32
template <int HeadDim, int Rows, int Parts>
class Partials {
 public:
  static constexpr int kStats = 2;
  static constexpr int kFloats = HeadDim + kStats;  // of a row

  KVIT_DEVICE explicit Partials(float* base) : outputs_(base), stats_(base + Index(GridSize(), 0, 0) * HeadDim) {}

  KVIT_DEVICE PartialWords Load(int cta, int part, int row, int vector) const {
    PartialWords words;
    words.stats = LoadStrong<8>(Stats(cta, part, row));
    words.output = LoadStrong<16>(Output(cta, part, row, vector));
    return words;
  }

  /// The threads of all vectors of a row call; the first writes what they share.
  KVIT_DEVICE void Store(int cta, int part, int row, int vector, const Partial& partial) const {
    Put(cta, part, row, vector,
        {{PartialWords::Word(partial.output[0]), PartialWords::Word(partial.output[1]),
          PartialWords::Word(partial.output[2]), PartialWords::Word(partial.output[3])}},
        {{PartialWords::Word(partial.max), PartialWords::Word(partial.sum)}});
  }

  /// Takes a part back that nobody will read again. The threads of all vectors of a row call.
  KVIT_DEVICE void Clear(int cta, int part, int row, int vector) const { Put(cta, part, row, vector, {}, {}); }

 private:
  static KVIT_DEVICE int64_t Index(int cta, int part, int row) { return (int64_t(cta) * Parts + part) * Rows + row; }
  KVIT_DEVICE float* Output(int cta, int part, int row, int vector) const {
    return outputs_ + Index(cta, part, row) * HeadDim + vector * Partial::kVector;
  }
  KVIT_DEVICE float* Stats(int cta, int part, int row) const { return stats_ + Index(cta, part, row) * kStats; }

  KVIT_DEVICE void Put(int cta, int part, int row, int vector, const Words<16>& output, const Words<8>& stats) const {
    StoreStrong(Output(cta, part, row, vector), output);
    if (vector == 0) StoreStrong(Stats(cta, part, row), stats);
  }

  float* outputs_;
  float* stats_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_PARTIAL_CUH
