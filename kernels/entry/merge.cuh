// Family `merge`: attention results over disjoint keys into the result over all of them.
#ifndef KVIT_ENTRY_MERGE_CUH
#define KVIT_ENTRY_MERGE_CUH

#include <math.h>

#include "abi/fact.h"
#include "abi/params.h"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// One warp per (token, head) row. out = sum of part e^lse over the sum of e^lse, part after part, in f32 and rounded
/// once. A part whose LSE is -inf, or +inf, saw no key, and nothing of it is read into the result.
///
/// In place: a row's values are stored by the lane that has loaded them, and its LSE once all lanes have read those of
/// the parts. So `out` may be a part whose rows lie in the same places, and `lse` the LSE of a part.
template <class Part, class Out>
struct MergeKernel {
  using Params = KvitMergeParams;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = 8;
  static constexpr int kRowsPerWarp = 4;
  static constexpr int kRowsPerCta = kThreads / 32 * kRowsPerWarp;
  static constexpr int kAtOnce = 4;  // parts whose values a lane has under way
  static constexpr KvitFact kFacts[] = {{"rows_per_cta", kRowsPerCta}};
  // Values that a lane moves: 4 bytes of the smaller type.
  static constexpr int kValues = 4 / int(sizeof(Part) < sizeof(Out) ? sizeof(Part) : sizeof(Out));

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const int64_t first = int64_t(BlockIndex()) * kRowsPerCta + WarpIndex() * kRowsPerWarp;
    for (int i = 0; i < kRowsPerWarp; ++i) {
      const int64_t row = first + i, token = row / params.num_heads;
      if (token >= params.num_tokens) return;
      MergeRow(params, token, row - token * params.num_heads);
    }
  }

 private:
  static constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.69314718055994531f;

  /// A lane's values of one part. Rows lie at multiples of 4 bytes, whatever their type.
  template <class T>
  struct Values {
    static constexpr int kWords = kValues * int(sizeof(T)) / 4;
    uint32_t words[kWords];

    KVIT_DEVICE static Values Load(const char* address) {
      Values values;
      KVIT_UNROLL
      for (int i = 0; i < kWords; ++i) values.words[i] = LoadGlobal<uint32_t>(address + i * 4);
      return values;
    }
    KVIT_DEVICE void Store(char* address) const {
      KVIT_UNROLL
      for (int i = 0; i < kWords; ++i) StoreGlobal(address + i * 4, words[i]);
    }
  };
  template <class T>
  using Elements = Array<T, kValues>;

  template <class Matrix>
  KVIT_DEVICE static char* At(const Matrix& matrix, int64_t token, int64_t head) {
    return reinterpret_cast<char*>(matrix.base) + token * matrix.token_stride + head * matrix.head_stride;
  }

  KVIT_DEVICE static const char* RowOf(const Params& params, int part, int64_t token, int64_t head) {
    if (params.is_stacked) return At(params.places[0], token, head) + part * params.part_stride;
    return At(params.places[part], token, head);
  }

  // -inf where no key was seen, which some libraries write as +inf.
  KVIT_DEVICE static float LseOf(const Params& params, int part, int64_t token, int64_t head) {
    const char* address = params.is_stacked ? At(params.lses[0], token, head) + part * params.lse_part_stride
                                            : At(params.lses[part], token, head);
    const auto lse = LoadGlobal<float>(address);
    return lse == INFINITY ? -INFINITY : lse;
  }

  KVIT_DEVICE static float Weight(float lse, float top) { return lse == -INFINITY ? 0.0f : Exp2((lse - top) * kLog2e); }

  KVIT_DEVICE static void MergeRow(const Params& params, int64_t token, int64_t head) {
    float top = -INFINITY, sum = 0.0f;
    // The maximum ignores a NaN; the weight of that part is NaN then.
    for (int part = 0; part < params.num_parts; ++part) top = fmaxf(top, LseOf(params, part, token, head));
    for (int part = 0; part < params.num_parts; ++part) sum += Weight(LseOf(params, part, token, head), top);
    for (int channel = LaneIndex() * kValues; channel < params.head_dim; channel += 32 * kValues) {
      MergeValues(params, token, head, channel, top, sum);
    }
    SyncWarp();
    if (LaneIndex() == 0 && params.lse.base != nullptr) {
      StoreGlobal(At(params.lse, token, head), sum == 0.0f ? -INFINITY : top + Log2(sum) * kLn2);
    }
  }

  KVIT_DEVICE static void MergeValues(const Params& params, int64_t token, int64_t head, int channel, float top,
                                      float sum) {
    float merged[kValues] = {};
    for (int first = 0; first < params.num_parts; first += kAtOnce) {
      Values<Part> parts[kAtOnce];
      float weights[kAtOnce];
      KVIT_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        parts[i] = {};
        weights[i] = 0.0f;
        if (first + i >= params.num_parts) continue;
        parts[i] = Values<Part>::Load(RowOf(params, first + i, token, head) + channel * int64_t(sizeof(Part)));
        weights[i] = Weight(LseOf(params, first + i, token, head), top);
      }
      KVIT_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (weights[i] == 0.0f) continue;  // what it weighs may be NaN
        const float weight = weights[i] / sum;
        const auto elements = BitCast<Elements<Part>>(parts[i]);
        KVIT_UNROLL
        for (int j = 0; j < kValues; ++j) merged[j] += weight * ToFloat(elements[j]);
      }
    }
    Elements<Out> out;
    KVIT_UNROLL
    for (int j = 0; j < kValues; ++j) out[j] = FromFloat<Out>(merged[j]);
    BitCast<Values<Out>>(out).Store(At(params.out, token, head) + channel * int64_t(sizeof(Out)));
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_MERGE_CUH
