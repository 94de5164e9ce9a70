// Softcap, ALiBi, temperature and sinks: the score modifier of variant `general`.
#ifndef KVIT_ATTENTION_GENERAL_SCORE_CUH
#define KVIT_ATTENTION_GENERAL_SCORE_CUH

#include <math.h>

#include "abi/params.h"
#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/partial.cuh"

namespace kvit {

/// Everything that KvitGeneral says of scores. Which of it a launch has is the same in all threads, and is asked of the
/// parameters, so it takes no registers. What it has not costs a branch that all threads take.
class GeneralScore {
 public:
  static constexpr bool kIsIdentity = false;
  static constexpr bool kHasSinks = true;

  template <class Params>
  KVIT_HD explicit GeneralScore(const Params& params) : general_(params.general) {}

  KVIT_DEVICE float Factor(int position) const {
    if (general_.temperature == nullptr) return 1.0f;
    return LoadGlobal<float>(general_.temperature + Max(0, Min(position, general_.positions - 1)));
  }

  KVIT_DEVICE bool Changes() const { return Caps() || HasDistances(); }

  struct Row {
    float slope;   // in log2 units for each position
    int position;  // of the query
  };
  KVIT_DEVICE Row RowOf(int head, int position) const {
    return {general_.alibi == nullptr ? 0.0f : LoadGlobal<float>(general_.alibi + head) * kLog2E, position};
  }

  KVIT_DEVICE float Modify(float score, float scale, const Row& row, int key_position) const {
    float x = score * scale;
    if (Caps()) x = Cap(x);
    if (HasDistances()) x -= Distance(row, key_position);
    return x;
  }
  /// The same in parts, for many scores at once: a score in log2 units is capped, and loses what its distance says.
  KVIT_DEVICE bool Caps() const { return general_.cap_log2 != 0.0f; }
  KVIT_DEVICE bool HasDistances() const { return general_.alibi != nullptr; }
  KVIT_DEVICE float Distance(const Row& row, int key_position) const {
    return row.slope * fabsf(float(row.position - key_position));
  }

  // c tanh(x / c). By an exponent, 1 - 2 / (1 + exp(2 x / c)), which is right at both ends, infinite ones included; and
  // by a polynomial where that would subtract what is nearly equal.
  KVIT_DEVICE float Cap(float x) const {
    const float twice = x * general_.cap_rate, z = twice * 0.34657359f, square = z * z;  // log(2) / 2
    const float series =
        fmaf(fmaf(fmaf(square, 0.021869489f, -0.053968254f), square, 0.13333333f), square, -0.33333333f);
    const float near = fmaf(z * square, series, z), far = 1.0f - 2.0f * Reciprocal(1.0f + Exp2(twice));
    return general_.cap_log2 * (fabsf(z) < 0.25f ? near : far);
  }

  /// The same of a score in the units of the product, where the cap IsLow(): without the polynomial, which would change
  /// less than 1e-4 log2 units then.
  KVIT_DEVICE bool IsLow() const { return general_.cap_log2 <= 256.0f; }
  KVIT_DEVICE float CapLow(float score, float scale) const {
    const float rest = Reciprocal(1.0f + Exp2(score * (scale * general_.cap_rate)));
    return fmaf(-2.0f * general_.cap_log2, rest, general_.cap_log2);
  }

  /// A score of no key: it joins the sum, and nothing joins the output. Where a row has seen no key it is all there is.
  KVIT_DEVICE Partial WithSink(int head, const Partial& part) const {
    if (general_.sinks == nullptr) return part;
    const float sink = LoadGlobal<float>(general_.sinks + head) * kLog2E;
    if (sink == -INFINITY) return part;
    Partial whole;
    whole.max = fmaxf(part.max, sink);
    whole.sum = Exp2(sink - whole.max);
    whole.Add(part, MergeWeight(part.max, whole.max));
    return whole;
  }

 private:
  static constexpr float kLog2E = 1.44269504088896341f;

  const KvitGeneral& general_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GENERAL_SCORE_CUH
