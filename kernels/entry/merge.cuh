// Family `merge`: two attention results over disjoint keys into the result over all of them.
#ifndef KVIT_ENTRY_MERGE_CUH
#define KVIT_ENTRY_MERGE_CUH

#include <math.h>

#include "abi/fact.h"
#include "abi/params.h"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// One warp per (token, head) row. out = (a e^lse_a + b e^lse_b) / (e^lse_a + e^lse_b); a part whose LSE is -inf saw no
/// key, and nothing of it is read into the result.
template <class T>
struct MergeKernel {
  using Params = KvitMergeParams;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = 8;
  static constexpr int kRowsPerWarp = 4;
  static constexpr int kRowsPerCta = kThreads / 32 * kRowsPerWarp;
  static constexpr KvitFact kFacts[] = {{"rows_per_cta", kRowsPerCta}};
  static constexpr int kWord = 4 / int(sizeof(T));  // values in the 4 bytes that a lane moves
  using Word = Array<T, kWord>;

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const int64_t first = int64_t(BlockIndex()) * kRowsPerCta + WarpIndex() * kRowsPerWarp;
    for (int i = 0; i < kRowsPerWarp; ++i) {
      const int64_t row = first + i, token = row / params.num_heads;
      if (token >= params.num_tokens) return;
      MergeRow(params, token, row - token * params.num_heads);
    }
  }

 private:
  template <class Matrix>
  KVIT_DEVICE static char* At(const Matrix& matrix, int64_t token, int64_t head) {
    return reinterpret_cast<char*>(matrix.base) + token * matrix.token_stride + head * matrix.head_stride;
  }

  KVIT_DEVICE static void MergeRow(const Params& params, int64_t token, int64_t head) {
    constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.69314718055994531f;
    const auto lse_a = LoadGlobal<float>(At(params.lse_a, token, head));
    const auto lse_b = LoadGlobal<float>(At(params.lse_b, token, head));
    const float top = fmaxf(lse_a, lse_b);  // ignores a NaN; the weight of that part is then NaN
    float weight_a = lse_a == -INFINITY ? 0.0f : Exp2((lse_a - top) * kLog2e);
    float weight_b = lse_b == -INFINITY ? 0.0f : Exp2((lse_b - top) * kLog2e);
    const float sum = weight_a + weight_b;
    if (LaneIndex() == 0 && params.lse.base != nullptr) {
      StoreGlobal(At(params.lse, token, head), sum == 0.0f ? -INFINITY : top + Log2(sum) * kLn2);
    }
    if (sum != 0.0f) {
      weight_a /= sum;
      weight_b /= sum;
    }
    for (int channel = LaneIndex() * kWord; channel < params.head_dim; channel += 32 * kWord) {
      const int64_t byte = channel * int64_t(sizeof(T));
      const auto a = LoadGlobal<Word>(At(params.a, token, head) + byte);
      const auto b = LoadGlobal<Word>(At(params.b, token, head) + byte);
      Word out;
      KVIT_UNROLL
      for (int j = 0; j < kWord; ++j) {
        const float from_a = weight_a == 0.0f ? 0.0f : weight_a * ToFloat(a[j]);
        const float from_b = weight_b == 0.0f ? 0.0f : weight_b * ToFloat(b[j]);
        out[j] = FromFloat<T>(from_a + from_b);
      }
      StoreGlobal(At(params.out, token, head) + byte, out);
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_MERGE_CUH
