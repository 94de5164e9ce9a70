// Fibers: a CTA's threads take turns on one OS thread, each running until it has to wait. Fast, and always in the same
// order.
#include <cstdio>
#include <new>
#include <thread>

#include "platform/host_cta.hpp"
#include "platform/host_stacks.hpp"

namespace kvit::host {
namespace {

class Fibers final : public Scheduler {
 public:
  void Prepare(Cta& cta) override {
    cta_ = &cta;
    if (count_ != cta.threads.size()) Create(cta.threads.size());
  }

  void Run(Cta& cta) override {
    Prepare(cta);
    Become(&cta.threads[0]);
    stacks_->Enter(0);
    Become(nullptr);
    if (abandoned_) Release();
    abandoned_ = false;
  }

  void Arrive(Thread& thread, Barrier& barrier, const char* operation, void (*last)(void*), void* context) override {
    if (barrier.arrived == 0) barrier.operation = operation;
    if (barrier.operation != operation) {
      thread.Fail(std::string("arrives at ") + operation + " while others wait at " + barrier.operation);
    }
    if (++barrier.arrived == barrier.expected) {
      last(context);
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    thread.waiting = &barrier;
    thread.waiting_generation = barrier.generation;
    Yield(size_t(thread.index));
  }

  void Pause(Thread& thread) override {
    Yield(size_t(thread.index));
    if (cta_->threads.size() == 1 || thread.pauses % 64 == 0) std::this_thread::yield();
  }

 private:
  void Create(size_t count) {
    Release();
    try {
      stacks_ = MakeStacks(count, &RunThreads, this);
    } catch (const std::bad_alloc&) {
      throw Error("no memory for the stacks of " + std::to_string(count) + " fibers, which the host backend runs " +
                  cta_->launch->kernel->symbol + " on");
    }
    count_ = count;
  }

  void Release() {
    stacks_.reset();
    count_ = 0;
  }

  // A fiber lives as long as its stack and runs one thread of one CTA after the other.
  static void RunThreads(void* owner, size_t index) {
    Fibers& fibers = *static_cast<Fibers*>(owner);
    for (;;) {
      Thread& thread = fibers.cta_->threads[index];
      thread.cta->Body(thread);
      thread.done = true;
      fibers.Yield(index);
    }
  }

  bool Ready(const Thread& thread) const {
    return !thread.done && (thread.waiting == nullptr || thread.waiting->generation != thread.waiting_generation);
  }

  // Hands over to the next thread that can run, in a fixed order; back to Run when none can.
  void Yield(size_t from) {
    std::vector<Thread>& threads = cta_->threads;
    const bool failed = threads[from].has_failed;
    for (size_t step = 1; !failed && step <= threads.size(); ++step) {
      const size_t next = from + step < threads.size() ? from + step : from + step - threads.size();
      if (!Ready(threads[next])) continue;
      threads[next].waiting = nullptr;
      if (next == from) return;
      Become(&threads[next]);
      stacks_->Switch(from, next);
      return;
    }
    for (Thread& thread : threads) {
      if (failed || thread.done) continue;
      char text[512];
      std::snprintf(text, sizeof text,
                    "%s: waits for ever at %s (%d of %d threads arrived); CTA %d of %u, thread %d (warp %d, lane %d)",
                    cta_->launch->kernel->symbol, thread.waiting->operation, thread.waiting->arrived,
                    thread.waiting->expected, cta_->block, cta_->launch->grid, thread.index, thread.index / kWarpSize,
                    thread.lane);
      thread.SetError(text);
      break;
    }
    // After an error the other fibers are left where they stand, on stacks that hold nothing to release.
    if (failed || cta_->HasFailed()) abandoned_ = true;
    stacks_->Leave(from);
  }

  Cta* cta_ = nullptr;
  std::unique_ptr<Stacks> stacks_;
  size_t count_ = 0;  // of stacks
  bool abandoned_ = false;
};

}  // namespace

std::unique_ptr<Scheduler> MakeFibers() { return std::make_unique<Fibers>(); }

}  // namespace kvit::host
