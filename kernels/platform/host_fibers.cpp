// Fibers: a CTA's threads take turns on one OS thread, each running until it has to wait. Fast, and always in the same
// order.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <thread>

#include "platform/host_cta.hpp"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace kvit::host {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

// A stack, as AddressSanitizer is told of it: it marks what lies on stacks, and must know which one is in use.
struct Stack {
  const void* bottom = nullptr;
  size_t bytes = 0;
};

#ifdef __SANITIZE_ADDRESS__
void BeginSwitch(const Stack& to) { __sanitizer_start_switch_fiber(nullptr, to.bottom, to.bytes); }
Stack EndSwitch() {
  Stack from;
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.bytes);
  return from;
}
void ForgetMarks(void* stacks, size_t bytes) { __asan_unpoison_memory_region(stacks, bytes); }
#else
void BeginSwitch(const Stack&) {}
Stack EndSwitch() { return {}; }
void ForgetMarks(void*, size_t) {}
#endif

// makecontext gives a fiber its stack; after that _setjmp and _longjmp switch, without the system calls of swapcontext.
class Fibers final : public Scheduler {
 public:
  ~Fibers() override { Release(); }

  void Run(Cta& cta) override {
    cta_ = &cta;
    if (fibers_.size() != cta.threads.size()) Create(cta.threads.size());
    Switch(main_, fibers_[0], 0);
    Become(nullptr);
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
  struct Fiber {
    jmp_buf state;
    ucontext_t first;
    Fibers* owner;
    size_t index;
    bool started;
  };

  void Create(size_t count) {
    Release();
    stacks_bytes_ = count * kStackBytes;
    stacks_ = static_cast<char*>(
        mmap(nullptr, stacks_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks_ == MAP_FAILED) {
      stacks_ = nullptr;
      throw Error("no memory for the stacks of " + std::to_string(count) + " fibers, which the host backend runs " +
                  cta_->launch->kernel->symbol + " on");
    }
    ForgetMarks(stacks_, stacks_bytes_);
    fibers_ = std::vector<Fiber>(count);
    for (size_t i = 0; i < count; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.owner = this;
      fiber.index = i;
      fiber.started = false;
      getcontext(&fiber.first);
      fiber.first.uc_stack.ss_sp = stacks_ + i * kStackBytes;
      // Tops of stacks at different places of a page: at the same place they would evict each other from the cache.
      fiber.first.uc_stack.ss_size = kStackBytes - i * 11 * 64 % 4096;
      fiber.first.uc_link = nullptr;
      const auto address = reinterpret_cast<uintptr_t>(&fiber);
      makecontext(&fiber.first, reinterpret_cast<void (*)()>(&Entry), 2, unsigned(address), unsigned(address >> 32));
    }
  }

  void Release() {
    if (stacks_ != nullptr) munmap(stacks_, stacks_bytes_);
    stacks_ = nullptr;
    fibers_.clear();
  }

  // A fiber lives as long as its stack and runs one thread of one CTA after the other.
  static void Entry(unsigned low, unsigned high) {
    Fiber& fiber = *reinterpret_cast<Fiber*>(uintptr_t(low) | uintptr_t(high) << 32);
    fiber.owner->Arrive();
    for (;;) {
      Thread& thread = fiber.owner->cta_->threads[fiber.index];
      thread.cta->Body(thread);
      thread.done = true;
      fiber.owner->Yield(fiber.index);
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
      Switch(fibers_[from].state, fibers_[next], next);
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
    if (_setjmp(fibers_[from].state) == 0) {
      BeginSwitch(main_stack_);
      _longjmp(main_, 1);
    }
    Arrive();
  }

  // The first thing that a fiber does wherever it goes on: the one that Run has switched to tells of Run's own stack.
  void Arrive() {
    const Stack from = EndSwitch();
    if (!is_main_known_) main_stack_ = from;
    is_main_known_ = true;
  }

  void Switch(jmp_buf& from, Fiber& to, size_t thread) {
    if (_setjmp(from) != 0) {
      if (&from != &main_) {
        Arrive();
        return;
      }
      EndSwitch();
      if (abandoned_) Release();
      abandoned_ = false;
      return;
    }
    if (&from == &main_) is_main_known_ = false;
    Become(&cta_->threads[thread]);
    BeginSwitch({to.first.uc_stack.ss_sp, to.first.uc_stack.ss_size});
    if (to.started) _longjmp(to.state, 1);
    to.started = true;
    setcontext(&to.first);
  }

  Cta* cta_ = nullptr;
  jmp_buf main_;
  std::vector<Fiber> fibers_;
  char* stacks_ = nullptr;
  size_t stacks_bytes_ = 0;
  bool abandoned_ = false;
  Stack main_stack_;
  bool is_main_known_ = false;
};

}  // namespace

std::unique_ptr<Scheduler> MakeFibers() { return std::make_unique<Fibers>(); }

}  // namespace kvit::host
