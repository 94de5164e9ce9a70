// Keys less a mean, and divided by a width, of each channel: what codes of few bits store better. kvit.reference has
// the definition.
#ifndef KVIT_TRANSFER_KEY_SMOOTHING_CUH
#define KVIT_TRANSFER_KEY_SMOOTHING_CUH

#include "core/array.cuh"
#include "platform/platform.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

/// The numbers of a launch, as KvitTransferParams has them.
class KeySmoothing {
 public:
  KVIT_DEVICE KeySmoothing(const float* numbers, int kv_heads, int channels)
      : numbers_(numbers), of_each_(int64_t(kv_heads) * channels), channels_(channels) {}

  KVIT_DEVICE bool Any() const { return numbers_ != nullptr; }

  /// A vec8 of a key, as it is stored: (x - mean) / width.
  template <class Rows>
  KVIT_DEVICE void Apply(const Rows& rows, int vec8, Vec8& x) const {
    const Vec8 mean = Load(rows, vec8, kMean), inverse = Load(rows, vec8, kInverse);
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = RoundedProduct(RoundedSum(x[i], -mean[i]), inverse[i]);
  }

  /// The same back.
  template <class Rows>
  KVIT_DEVICE void Undo(const Rows& rows, int vec8, Vec8& x) const {
    const Vec8 mean = Load(rows, vec8, kMean), width = Load(rows, vec8, kWidth);
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = RoundedSum(RoundedProduct(x[i], width[i]), mean[i]);
  }

  /// A vec8 of a query that meets such keys: x * width of its KV head, which `group` heads of queries share.
  template <class Rows>
  KVIT_DEVICE void ApplyToQuery(const Rows& rows, int vec8, int group, Vec8& x) const {
    const Vec8 width = Load(rows, vec8, kWidth, group);
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = RoundedProduct(x[i], width[i]);
  }

 private:
  enum Numbers { kMean, kWidth, kInverse };

  template <class Rows>
  KVIT_DEVICE Vec8 Load(const Rows& rows, int vec8, Numbers which, int group = 1) const {
    const char* address = rows.template InHeads<Vec8>(numbers_ + which * of_each_, vec8, channels_, group);
    Vec8 found;
    KVIT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const auto words = LoadGlobalReadOnly<Words<16>>(address + half * int(sizeof(Words<16>)));
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) found[4 * half + i] = BitCast<float>(words.word[i]);
    }
    return found;
  }

  const float* numbers_;
  int64_t of_each_;
  int channels_;
};

}  // namespace kvit

#endif  // KVIT_TRANSFER_KEY_SMOOTHING_CUH
