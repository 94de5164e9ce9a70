// Rotary position embedding, the same bits on every machine: phases are integers, every float32 operation is rounded
// by itself. kvit.reference.rope is the definition.
#ifndef KVIT_TRANSFER_ROTATION_CUH
#define KVIT_TRANSFER_ROTATION_CUH

#include <stdint.h>

#include "abi/params.h"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

struct RotaryAngle {
  float cosine, sine;
};

/// Cosine and sine of phase / 2^32 turns, to within 1.3e-7.
KVIT_DEVICE RotaryAngle AngleOf(uint32_t phase) {
  const uint32_t quarter = (phase + 0x20000000u) >> 30;  // the nearest; what is left is at most an eighth of a turn
  const float x = RoundedProduct(float(int32_t(phase - (quarter << 30))), 0x1.921fb6p-30f);  // radians
  const float z = RoundedProduct(x, x);
  // Least greatest errors over an eighth of a turn, of sin(x) = x + x^3 (...) and cos(x) = 1 - x^2 / 2 + x^4 (...).
  float sine = RoundedSum(RoundedProduct(z, -0x1.98da66p-13f), 0x1.1105b4p-7f);
  sine = RoundedSum(RoundedProduct(z, sine), -0x1.555540p-3f);
  sine = RoundedSum(x, RoundedProduct(RoundedProduct(x, z), sine));
  float cosine = RoundedSum(RoundedProduct(z, 0x1.9a025ap-16f), -0x1.6c0c8cp-10f);
  cosine = RoundedSum(RoundedProduct(z, cosine), 0x1.55554ap-5f);
  cosine = RoundedSum(RoundedSum(1.0f, RoundedProduct(z, -0.5f)), RoundedProduct(RoundedProduct(z, z), cosine));
  const bool is_odd = quarter & 1;
  const uint32_t c = BitCast<uint32_t>(is_odd ? sine : cosine), s = BitCast<uint32_t>(is_odd ? cosine : sine);
  return {BitCast<float>(c ^ ((quarter + 1) & 2) << 30), BitCast<float>(s ^ (quarter & 2) << 30)};
}

/// (a, b) rotated: the coordinates of a pair of channels.
KVIT_DEVICE void RotatePair(float& a, float& b, const RotaryAngle& angle) {
  const float x = a, y = b;
  a = RoundedSum(RoundedProduct(x, angle.cosine), -RoundedProduct(y, angle.sine));
  b = RoundedSum(RoundedProduct(y, angle.cosine), RoundedProduct(x, angle.sine));
}

/// Whether the halves of the channels that turn end within vec8s, as those of 20 and 24 do. Then at most 32 turn.
KVIT_HD bool EndsWithinVec8(const KvitRope& rope) { return rope.rotary_dim % 16 != 0; }
/// Of how many vec8s each half is, for RowLanes: a lane has one of either, unless halves end within vec8s.
KVIT_HD int HalfVec8s(const KvitRope& rope) { return EndsWithinVec8(rope) ? 0 : rope.rotary_dim / 16; }

/// Where a token is on one axis, as in text.
struct OneAxis {
  using Position = int32_t;
  /// What makes pairs differ, of the two pairs of a chunk: nothing.
  struct Pairs {};

  KVIT_DEVICE Pairs Load(int) const { return {}; }
  static KVIT_DEVICE int32_t Of(Position position, Pairs, int) { return position; }
};

/// Where a token is on three: time, height and width, of which each pair has its own.
struct ThreeAxes {
  struct Position {
    int32_t axis[3];
    KVIT_DEVICE bool operator==(const Position& other) const {
      return axis[0] == other.axis[0] && axis[1] == other.axis[1] && axis[2] == other.axis[2];
    }
  };
  using Pairs = uint16_t;  // the axis of either pair, in a byte

  const uint8_t* axes;  // [rotary_dim / 2] of each pair; null: time

  KVIT_DEVICE Pairs Load(int chunk) const {
    return axes == nullptr ? Pairs(0) : LoadGlobalReadOnly<Pairs>(axes + 2 * chunk);
  }
  static KVIT_DEVICE int32_t Of(const Position& position, Pairs pairs, int pair) {
    const int axis = pairs >> 8 * pair & 0xff;
    return axis == 0 ? position.axis[0] : axis == 1 ? position.axis[1] : position.axis[2];
  }
};

/// The angles of all pairs at one position, made once by a warp's lanes together, in shared memory of that warp.
template <int HeadDim, class Axes = OneAxis>
class RotaryAngles {
 public:
  using Position = typename Axes::Position;
  static constexpr int kBytes = HeadDim / 2 * int(sizeof(RotaryAngle));

  static constexpr int kChunks = CeilDiv(HeadDim / 4, 32);  // of a lane: two pairs, and 16 bytes, each

  /// How far a lane's pairs rotate from one position to the next, and on which axes.
  struct Steps {
    Array<Words<16>, kChunks> step;
    Array<typename Axes::Pairs, kChunks> pairs;
  };

  KVIT_DEVICE RotaryAngles(const KvitRope& rope, char* shared, const Axes& axes = {})
      : rope_(rope), shared_(shared), axes_(axes) {}

  KVIT_DEVICE Steps LoadSteps() const {
    Steps steps = {};
    KVIT_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (!Has(c)) continue;
      steps.step[c] = LoadGlobalReadOnly<Words<16>>(rope_.steps + 2 * Chunk(c));
      steps.pairs[c] = axes_.Load(Chunk(c));
    }
    return steps;
  }

  /// All lanes of the warp together, with the same position.
  KVIT_DEVICE void MoveTo(Position position, const Steps& steps) {
    if (rope_.rotary_dim == 0) return;
    position_ = position;
    has_angles_ = true;
    KVIT_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (!Has(c)) continue;
      Words<16> angles;
      KVIT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint64_t step = steps.step[c].word[2 * i] | uint64_t(steps.step[c].word[2 * i + 1]) << 32;
        const int32_t tokens = Axes::Of(position, steps.pairs[c], i);
        const RotaryAngle angle = AngleOf(uint32_t(uint64_t(int64_t(tokens)) * step >> 32));
        angles.word[2 * i] = BitCast<uint32_t>(RoundedProduct(angle.cosine, rope_.attention_factor));
        angles.word[2 * i + 1] = BitCast<uint32_t>(RoundedProduct(angle.sine, rope_.attention_factor));
      }
      StoreShared(Address(Chunk(c)), angles);
    }
    SyncWarp();
  }

  /// The same if the angles, where there are any, are not those of that position yet.
  KVIT_DEVICE void MoveTo(Position position) {
    if (rope_.rotary_dim == 0 || (has_angles_ && position == position_)) return;
    SyncWarp();  // all lanes have seen that what they made is wrong
    MoveTo(position, LoadSteps());
  }

  /// Rotates the vec8s `lane` and HalfVec8s + lane of a row, as RowLanes deals them out.
  KVIT_DEVICE void Apply(int lane, Vec8& first, Vec8& second) const {
    if (rope_.is_interleaved) {
      RotateNeighbours(2 * lane, first);
      RotateNeighbours(2 * (rope_.rotary_dim / 16 + lane), second);
      return;
    }
    KVIT_UNROLL
    for (int c = 0; c < 4; ++c) {
      const auto angles = LoadShared<Words<16>>(Address(4 * lane + c));
      RotatePair(first[2 * c], second[2 * c], AngleIn(angles, 0));
      RotatePair(first[2 * c + 1], second[2 * c + 1], AngleIn(angles, 1));
    }
  }

  /// Rotates a row whose halves end within vec8s. What turns lies in the first vec8 of the row's first lanes, and the
  /// other channel of a pair comes from the lane that has it: all lanes of the warp call together.
  ///
  ///   20 channels      vec8 0: pairs 0..7        vec8 1: pairs 8, 9, 0..5      vec8 2: pairs 6..9, and 4 that stay
  KVIT_DEVICE void ApplyAcross(int lane, Vec8& vec8) const {
    const int rotary_dim = rope_.rotary_dim, half = rotary_dim / 2;
    if (rope_.is_interleaved) {
      KVIT_UNROLL
      for (int c = 0; c < 2; ++c) {
        if (2 * lane + c < rotary_dim / 4) RotateChunk(2 * lane + c, vec8, c);
      }
      return;
    }
    const Vec8 own = vec8;
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int channel = 8 * lane + i, row = LaneIndex() - lane;
      // Every lane gives the element that the readers of either direction want: it is the same for all of them.
      const float behind = Shuffle(ElementOf(own, (i + half) & 7), (row + ((channel + half) >> 3)) & 31);
      const float before = Shuffle(ElementOf(own, (i - half) & 7), (row + ((channel - half) >> 3)) & 31);
      if (channel < rotary_dim) {
        const bool is_first = channel < half;
        const int pair = is_first ? channel : channel - half;
        const auto words = LoadShared<Words<8>>(Address(pair / 2) + pair % 2 * int(sizeof(Words<8>)));
        float a = is_first ? own[i] : before, b = is_first ? behind : own[i];
        RotatePair(a, b, {BitCast<float>(words.word[0]), BitCast<float>(words.word[1])});
        vec8[i] = is_first ? a : b;
      }
    }
  }

 private:
  static KVIT_DEVICE float ElementOf(const Vec8& vec8, int index) {
    float found = vec8[0];
    KVIT_UNROLL
    for (int i = 1; i < 8; ++i) found = index == i ? vec8[i] : found;
    return found;
  }

  static KVIT_DEVICE int Chunk(int i) { return i * 32 + LaneIndex(); }
  KVIT_DEVICE bool Has(int i) const { return Chunk(i) < rope_.rotary_dim / 4; }

  // A vec8 of interleaved pairs, whose first chunk is `chunk`.
  KVIT_DEVICE void RotateNeighbours(int chunk, Vec8& vec8) const {
    KVIT_UNROLL
    for (int c = 0; c < 2; ++c) RotateChunk(chunk + c, vec8, c);
  }
  // Half `c` of such a vec8: the pairs of one chunk.
  KVIT_DEVICE void RotateChunk(int chunk, Vec8& vec8, int c) const {
    const auto angles = LoadShared<Words<16>>(Address(chunk));
    RotatePair(vec8[4 * c], vec8[4 * c + 1], AngleIn(angles, 0));
    RotatePair(vec8[4 * c + 2], vec8[4 * c + 3], AngleIn(angles, 1));
  }

  static KVIT_DEVICE RotaryAngle AngleIn(const Words<16>& angles, int i) {
    return {BitCast<float>(angles.word[2 * i]), BitCast<float>(angles.word[2 * i + 1])};
  }

  // Chunks are stored so that eight lanes find theirs in different banks, whether they are two apart or four.
  KVIT_DEVICE char* Address(int chunk) const { return shared_ + (chunk ^ (chunk >> 3 & 3)) * int(sizeof(Words<16>)); }

  const KvitRope& rope_;
  char* shared_;
  Axes axes_;
  Position position_ = {};
  bool has_angles_ = false;
};

}  // namespace kvit

#endif  // KVIT_TRANSFER_ROTATION_CUH
