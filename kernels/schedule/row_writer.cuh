// Writes finished rows of attention: outputs in the type of the call, and their log-sum-exp.
#ifndef KVIT_SCHEDULE_ROW_WRITER_CUH
#define KVIT_SCHEDULE_ROW_WRITER_CUH

#include <math.h>

#include "abi/params.h"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/partial.cuh"

namespace kvit {

/// Score says whether rows have sinks, as attention/score.cuh has it.
template <class T, class Dims, class Score>
class RowWriter {
 public:
  static constexpr int kVector = Partial::kVector;

  /// Where a row is written.
  struct Place {
    char* row;
    char* lse;  // null where nobody wants it
    int head;   // query head
  };

  KVIT_DEVICE explicit RowWriter(const KvitDecodeParams& params) : params_(params) {}

  /// Of query row `index` of a KV head of a sequence, whose first query token is `first_token` of the call.
  template <class Scheduler>
  KVIT_DEVICE Place PlaceOf(const Scheduler& scheduler, int first_token, int kv_head, int index) const {
    const int group = scheduler.group(), token_of_sequence = scheduler.TokenOf(index);
    const int64_t token = first_token + token_of_sequence;
    const int64_t head = int64_t(kv_head) * group + (index - token_of_sequence * group);
    const KvitRows& out = params_.out;
    const KvitLse& lse = params_.lse;
    char* const of_lse = reinterpret_cast<char*>(lse.base) + token * lse.token_stride + head * lse.head_stride;
    return {static_cast<char*>(out.base) + token * out.token_stride + head * out.head_stride,
            lse.base == nullptr ? nullptr : of_lse, int(head)};
  }

  KVIT_DEVICE void Write(const Place& place, int vector, const Partial& part) const {
    if constexpr (Score::kHasSinks) {
      Store(place, vector, Score(params_).WithSink(place.head, part));
    } else {
      Store(place, vector, part);
    }
  }

 private:
  // A step of Newton's method after a guess: a division proper is long, and has a slow path to jump to.
  static KVIT_DEVICE float Inverse(float x) {
    const float guess = Reciprocal(x);
    return fmaf(guess, fmaf(-x, guess, 1.0f), guess);
  }
  KVIT_DEVICE void Store(const Place& place, int vector, const Partial& part) const {
    const bool is_beyond = fabsf(part.max) >= Partial::kMost && part.max != -INFINITY;
    const float sum = is_beyond ? NAN : part.sum;
    const float scale = sum == 0.0f ? 0.0f : Inverse(sum);  // no key seen: zeros
    float x[kVector];
    KVIT_UNROLL
    for (int i = 0; i < kVector; ++i) x[i] = fmaf(part.output[i], scale, 0.0f);  // 0, where a part held -0
    if (RowWidth<Dims::kValue, Dims::kAreMost>{params_.cache.v_dim}.Has(vector * kVector)) {
      StoreGlobal(place.row + vector * kVector * int64_t(sizeof(T)),
                  Array<uint32_t, 2>{Pack2<T>(x[0], x[1]), Pack2<T>(x[2], x[3])});
    }
    if (vector != 0 || place.lse == nullptr) return;
    constexpr float kLn2 = 0.69314718055994531f;
    StoreGlobal(place.lse, sum == 0.0f ? -INFINITY : (part.max + Log2(sum)) * kLn2);
  }

  const KvitDecodeParams& params_;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_ROW_WRITER_CUH
