// A shared-memory pointer coupled with a layout: tile coordinates in, vectors out.
#ifndef KVIT_LAYOUT_SMEM_ACCESSOR_CUH
#define KVIT_LAYOUT_SMEM_ACCESSOR_CUH

#include "core/array.cuh"
#include "core/macros.h"
#include "core/sub_byte.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Reads and writes a tile of T that lies in shared memory as Layout says. `offset` is in elements, as in
/// Layout::Index.
template <class T, class Layout>
class SmemAccessor {
 public:
  SmemAccessor() = default;
  KVIT_HD explicit SmemAccessor(PointerTo<T> smem) : smem_(smem) {}

  KVIT_HD PointerTo<T> pointer() const { return smem_; }

  /// The byte that holds element (s, c).
  KVIT_HD char* Address(int s, int c, int offset = 0) const { return AddressOf(smem_, Layout::Index(s, c, offset)); }

  /// N channels from (s, c) on; c is a multiple of N.
  template <int N>
  KVIT_DEVICE Array<T, N> Load(int s, int c, int offset = 0) const {
    static_assert(Layout::KeepsRuns(N), "this layout splits or misaligns a vector of N elements");
    return LoadShared<Array<T, N>>(Address(s, c, offset));
  }

  template <int N>
  KVIT_DEVICE void Store(int s, int c, const Array<T, N>& value, int offset = 0) const {
    static_assert(Layout::KeepsRuns(N), "this layout splits or misaligns a vector of N elements");
    StoreShared(Address(s, c, offset), value);
  }

 private:
  PointerTo<T> smem_{};
};

}  // namespace kvit

#endif  // KVIT_LAYOUT_SMEM_ACCESSOR_CUH
