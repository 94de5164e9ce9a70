// Barriers that count bytes, and the boxes that bring them.
#include "platform/host_tensor.hpp"

#include <cstring>
#include <string>

#include "platform/host_cta.hpp"

namespace kvit::host {
namespace {

// What a barrier's 8 bytes of shared memory hold. Guarded by the CTA's mutex of boxes, like the list of them.
struct BarrierState {
  int32_t bytes;  // still to come, of the phase under way
  uint8_t arrivals, pending;
  uint16_t phase;
};
static_assert(sizeof(BarrierState) == sizeof(uint64_t), "a barrier has 8 bytes");

BarrierState& StateOf(uint64_t* barrier) {
  CheckShared(barrier, sizeof(*barrier), "barrier");
  return *reinterpret_cast<BarrierState*>(barrier);
}

void Complete(BarrierState& state) {
  if (state.pending != 0 || state.bytes != 0) return;
  ++state.phase;
  state.pending = state.arrivals;
}

static_assert(sizeof(KvitHostTensorMap) <= sizeof(KvitTensorMap), "a tensor map has 128 bytes");

KvitHostTensorMap MapOf(const KvitTensorMap& map) {
  KvitHostTensorMap host;
  std::memcpy(&host, map.bytes, sizeof(host));
  if (host.magic != KVIT_HOST_TENSOR_MAP) self->Fail("the tensor map was not made for the host");
  return host;
}

bool Holds(const KvitHostTensorMap& map, const TmaCoordinates& at) {
  const int place[] = {at.byte, at.token, at.chunk, at.head, at.page};
  for (int axis = 0; axis < 5; ++axis) {
    if (place[axis] < 0 || place[axis] >= map.extents[axis]) return false;
  }
  return true;
}

// Hopper swizzles 16-byte vectors by address, as the mode of the map's span says.
ptrdiff_t Swizzled(ptrdiff_t offset, int span) { return offset ^ ((offset >> 7) & (span / 16 - 1)) << 4; }

void Land(const Cta& cta, const PendingBox& box) {
  const KvitHostTensorMap map = MapOf(*box.map);
  for (int row = 0; row < map.box_tokens; ++row) {
    TmaCoordinates at = box.at;
    at.token += row;
    const char* source = static_cast<const char*>(map.base) + at.token * map.strides[0] + at.chunk * map.strides[1] +
                         at.head * map.strides[2] + at.page * map.strides[3] + at.byte;
    for (int vector = 0; vector < map.box_bytes; vector += 16) {
      char* target = cta.shared + Swizzled(box.offset + row * map.box_bytes + vector, map.box_bytes);
      if (Holds(map, at)) {
        std::memcpy(target, source + vector, 16);
      } else {
        std::memset(target, 0, 16);
      }
    }
  }
}

}  // namespace

void InitBarrier(uint64_t* barrier, int arrivals) { StateOf(barrier) = {0, uint8_t(arrivals), uint8_t(arrivals), 0}; }

void ArriveExpecting(uint64_t* barrier, int bytes) {
  std::lock_guard lock(self->cta->boxes_mutex);
  BarrierState& state = StateOf(barrier);
  if (state.pending == 0) self->Fail("arrives at a barrier that expects nobody");
  state.bytes += bytes;
  --state.pending;
  Complete(state);
}

void IssueBox(void* shared, const KvitTensorMap& map, const TmaCoordinates& at, uint64_t* barrier) {
  const KvitHostTensorMap host = MapOf(map);
  Cta& cta = *self->cta;
  const int bytes = host.box_bytes * host.box_tokens;
  CheckShared(shared, 128, "tensor copy to shared memory");
  CheckShared(static_cast<char*>(shared) + bytes - 16, 16, "tensor copy to shared memory");
  if (Holds(host, at)) {
    for (int row = 0; row < host.box_tokens && at.token + row < host.extents[1]; ++row) {
      const char* source = static_cast<const char*>(host.base) + (at.token + row) * host.strides[0] +
                           at.chunk * host.strides[1] + at.head * host.strides[2] + at.page * host.strides[3];
      for (int vector = 0; vector < host.box_bytes; vector += 16) {
        CheckGlobal(source + vector, 16, false, "tensor copy from global memory");
      }
    }
  }
  std::lock_guard lock(cta.boxes_mutex);
  std::memset(shared, kPoison, size_t(bytes));
  cta.boxes.push_back({&map, at, static_cast<char*>(shared) - cta.shared, bytes, barrier});
}

void WaitBarrier(uint64_t* barrier, uint32_t parity) {
  Cta& cta = *self->cta;
  for (;;) {
    {
      std::lock_guard lock(cta.boxes_mutex);
      BarrierState& state = StateOf(barrier);
      // Nothing lands before all its bytes are expected: a phase ends as a whole.
      if (state.phase % 2 == parity && state.pending == 0) {
        for (size_t i = 0; i < cta.boxes.size();) {
          if (cta.boxes[i].barrier != barrier) {
            ++i;
            continue;
          }
          Land(cta, cta.boxes[i]);
          state.bytes -= cta.boxes[i].bytes;
          cta.boxes.erase(cta.boxes.begin() + ptrdiff_t(i));
        }
        Complete(state);
      }
      if (state.phase % 2 != parity) return;
    }
    Pause("a barrier in shared memory");
  }
}

}  // namespace kvit::host
