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
    ForEachHalf<kMean, kInverse>(rows, vec8, 1, [&](int i, float mean, float inverse) {
      x[i] = RoundedProduct(RoundedSum(x[i], -mean), inverse);
    });
  }

  /// The same back.
  template <class Rows>
  KVIT_DEVICE void Undo(const Rows& rows, int vec8, Vec8& x) const {
    ForEachHalf<kMean, kWidth>(
        rows, vec8, 1, [&](int i, float mean, float width) { x[i] = RoundedSum(RoundedProduct(x[i], width), mean); });
  }

  /// A vec8 of a query that meets such keys: x * width of its KV head, which `group` heads of queries share.
  template <class Rows>
  KVIT_DEVICE void ApplyToQuery(const Rows& rows, int vec8, int group, Vec8& x) const {
    ForEachHalf<kWidth, kWidth>(rows, vec8, group,
                                [&](int i, float width, float) { x[i] = RoundedProduct(x[i], width); });
  }

 private:
  enum Numbers { kMean, kWidth, kInverse };

  // change(channel of the vec8, number of A, number of B), four channels at a time: registers are few.
  template <Numbers A, Numbers B, class Rows, class Change>
  KVIT_DEVICE void ForEachHalf(const Rows& rows, int vec8, int group, Change&& change) const {
    KVIT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Words<16> a = Load(rows, vec8, half, A, group), b = A == B ? a : Load(rows, vec8, half, B, group);
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) change(4 * half + i, BitCast<float>(a.word[i]), BitCast<float>(b.word[i]));
    }
  }

  template <class Rows>
  KVIT_DEVICE Words<16> Load(const Rows& rows, int vec8, int half, Numbers which, int group) const {
    const char* address = rows.template InHeads<Vec8>(numbers_ + which * of_each_, vec8, channels_, group);
    return LoadGlobalReadOnly<Words<16>>(address + half * int(sizeof(Words<16>)));
  }

  const float* numbers_;
  int64_t of_each_;
  int channels_;
};

}  // namespace kvit

#endif  // KVIT_TRANSFER_KEY_SMOOTHING_CUH
