// How the lanes of a warp share rows, so that the two channels of every rotary pair meet in one lane.
#ifndef KVIT_TRANSFER_ROW_LANES_CUH
#define KVIT_TRANSFER_ROW_LANES_CUH

#include "core/macros.h"

namespace kvit {

/// Which two vec8s (8 neighbouring channels) of a row a lane holds.
struct Vec8Pair {
  int first, second;
};

/// Where a vec8 is: which lane of its row holds it, as its first (0) or its second (1).
struct Vec8Place {
  int lane, which;
};

/// A row is moved by HeadDim / 16 neighbouring lanes, two vec8s a lane. With R = rotary_dim / 16, lane l holds
///
///   l < R     vec8s l and R + l: channels half the rotary part apart
///   l >= R    vec8s R + l and HeadDim / 16 + l: of what does not turn
///
///   HeadDim = 64, R = 2:   vec8   0 1 2 3 4 5 6 7
///                          lane    0 1 0 1 2 3 2 3
///
/// Either vec8 of neighbouring lanes lies side by side, so that their accesses make whole sectors.
template <int HeadDim>
struct RowLanes {
  static constexpr int kLanesPerRow = HeadDim / 16;
  static constexpr int kRowsPerWarp = 32 / kLanesPerRow;
  static_assert(HeadDim % 16 == 0 && 32 % kLanesPerRow == 0,
                "a row must be moved by lanes of one warp, two vec8s each");

  static KVIT_HD int Row(int lane) { return lane / kLanesPerRow; }
  static KVIT_HD int LaneOfRow(int lane) { return lane % kLanesPerRow; }

  /// Of lane `lane` of the row, 0 <= rotary_vec8s <= kLanesPerRow.
  static KVIT_HD Vec8Pair Vec8s(int lane, int rotary_vec8s) {
    if (lane < rotary_vec8s) return {lane, rotary_vec8s + lane};
    return {rotary_vec8s + lane, kLanesPerRow + lane};
  }
  /// The inverse.
  static KVIT_HD Vec8Place PlaceOf(int vec8, int rotary_vec8s) {
    const bool turns = vec8 < 2 * rotary_vec8s;
    const int first_lane = turns ? 0 : rotary_vec8s, lanes = turns ? rotary_vec8s : kLanesPerRow - rotary_vec8s;
    const int index = turns ? vec8 : vec8 - 2 * rotary_vec8s;
    return index < lanes ? Vec8Place{first_lane + index, 0} : Vec8Place{first_lane + index - lanes, 1};
  }
};

}  // namespace kvit

#endif  // KVIT_TRANSFER_ROW_LANES_CUH
