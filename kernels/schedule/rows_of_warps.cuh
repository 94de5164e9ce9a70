// A work tile's outputs where every warp has rows of its own: they are whole in its registers.
#ifndef KVIT_SCHEDULE_ROWS_OF_WARPS_CUH
#define KVIT_SCHEDULE_ROWS_OF_WARPS_CUH

#include "abi/params.h"
#include "core/array.cuh"
#include "platform/platform.cuh"
#include "schedule/partial.cuh"

namespace kvit {

/// `WarpRows` rows a warp, those of warp 0 first. OfGroups: warps work in warp groups, and others of the CTA elsewhere.
/// SharesRows: all groups have the same rows, and channels of their own of them.
template <int WarpRows, bool OfGroups = false, bool SharesRows = false>
class RowsOfWarps {
 public:
  struct Shared {};

  KVIT_DEVICE RowsOfWarps(Shared&, const KvitCache&) {}

  /// All threads call, once per work tile.
  template <class Attention, class Beside>
  KVIT_DEVICE void Share(Attention& attention, Beside&&) const {
    attention.Finish();
  }

  /// Warps that join the same rows meet.
  static KVIT_DEVICE void SyncRow() {
    if constexpr (OfGroups) {
      SyncGroupOr(false);
    } else {
      SyncThreads();
    }
  }

  /// Calls use(place_of(row), row, vector, part) for the vectors of this thread, of the first `rows` rows.
  template <class Attention, class PlaceOf, class Use>
  KVIT_DEVICE void ForEachPart(const Attention& attention, int rows, PlaceOf&& place_of, Use&& use) const {
    attention.ForEachRow([&](int m, int h) {
      const int row = (SharesRows ? WarpIndex() % 4 : WarpIndex()) * WarpRows + m * 16 + h * 8 + LaneIndex() / 4;
      const auto place = place_of(Min(row, rows - 1));
      attention.ForEachVector(m, h, [&](int vector, const Array<float, 4>& values) {
        Partial part = {attention.Base(m, h), attention.Sum(m, h), values};
        if (row < rows) use(place, row, vector, part);
      });
    });
  }
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_ROWS_OF_WARPS_CUH
