// A CTA's number in the order in which CTAs start.
#ifndef KVIT_SCHEDULE_TICKET_CUH
#define KVIT_SCHEDULE_TICKET_CUH

#include <stdint.h>

#include "platform/platform.cuh"
#include "schedule/partial.cuh"

namespace kvit {

/// CUDA does not promise that CTAs start in the order of their places in the grid. Whoever waits for others waits for
/// lower tickets alone: they run already. The counter counts to the size of the grid and begins again, so that every
/// launch finds it where the one before found it.
///
/// It is asked for at once, before the grid dependency, and shared when it is needed: its way to memory and back then
/// lies behind other loads. All threads must have shared it before any says GridDependencyLaunch: the next launch takes
/// tickets from the same counter.
class Ticket {
 public:
  KVIT_DEVICE explicit Ticket(void* workspace) {
    if (ThreadIndex() == 0) ticket_ = int(AtomicIncrement(TicketCounter(workspace), uint32_t(GridSize() - 1)));
  }

  /// The ticket, in all threads, which call together, once. `shared` is for this alone.
  KVIT_DEVICE int Share(int& shared) const {
    if (ThreadIndex() == 0) StoreShared(&shared, ticket_);
    SyncThreads();
    return LoadShared<int>(&shared);
  }

 private:
  int ticket_ = 0;  // of thread 0 alone
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_TICKET_CUH
