// Family `prefill`: attention of many new tokens per sequence, prompts and chunks, over its paged cache, in one launch.
#ifndef KVIT_ENTRY_PREFILL_CUH
#define KVIT_ENTRY_PREFILL_CUH

#include "entry/prefill_tma.cuh"
#include "entry/prefill_warps.cuh"
#include "pipeline/kv_pipe.cuh"

namespace kvit {

namespace detail {

template <class T, class KeyCodec, class ValueCodec, class Dims, int Rows, class Copies, class Variant>
struct PrefillOf {
  using Type = PrefillWarpsKernel<T, KeyCodec, ValueCodec, Dims, Rows, Copies, Variant>;
};

template <class T, class KeyCodec, class ValueCodec, class Dims, class Variant>
struct PrefillOf<T, KeyCodec, ValueCodec, Dims, 128, TmaCopies, Variant> {
  using Type = PrefillTmaKernel<T, KeyCodec, ValueCodec, Dims, Variant>;
};

}  // namespace detail

/// The kernel for a way to copy K and V.
template <class T, class KeyCodec, class ValueCodec, class Dims, int Rows, class Copies, class Variant>
using PrefillKernel = typename detail::PrefillOf<T, KeyCodec, ValueCodec, Dims, Rows, Copies, Variant>::Type;

}  // namespace kvit

#endif  // KVIT_ENTRY_PREFILL_CUH
