// Stacks by ucontext, where there is one. makecontext gives a stack its first frame; after that _setjmp and _longjmp
// switch, without the system calls of swapcontext.
#ifndef _WIN32
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <new>
#include <vector>

#include "platform/host_stacks.hpp"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace kvit::host {
namespace {

// A stack, as AddressSanitizer is told of it: it marks what lies on stacks, and must know which one is in use.
struct Place {
  const void* bottom = nullptr;
  size_t bytes = 0;
};

#ifdef __SANITIZE_ADDRESS__
void BeginSwitch(const Place& to) { __sanitizer_start_switch_fiber(nullptr, to.bottom, to.bytes); }
Place EndSwitch() {
  Place from;
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.bytes);
  return from;
}
void ForgetMarks(void* stacks, size_t bytes) { __asan_unpoison_memory_region(stacks, bytes); }
#else
void BeginSwitch(const Place&) {}
Place EndSwitch() { return {}; }
void ForgetMarks(void*, size_t) {}
#endif

class PosixStacks final : public Stacks {
 public:
  PosixStacks(size_t count, Body body, void* owner) : fibers_(count), body_(body), owner_(owner) {
    bytes_ = count * kStackBytes;
    void* const memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    ForgetMarks(memory_, bytes_);
    for (size_t i = 0; i < count; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.stacks = this;
      fiber.index = i;
      getcontext(&fiber.first);
      fiber.first.uc_stack.ss_sp = memory_ + i * kStackBytes;
      // Tops of stacks at different places of a page: at the same place they would evict each other from the cache.
      fiber.first.uc_stack.ss_size = kStackBytes - i * 11 * 64 % 4096;
      fiber.first.uc_link = nullptr;
      const auto address = reinterpret_cast<uintptr_t>(&fiber);
      makecontext(&fiber.first, reinterpret_cast<void (*)()>(&Begin), 2, unsigned(address), unsigned(address >> 32));
    }
  }

  ~PosixStacks() override { munmap(memory_, bytes_); }

  void Enter(size_t to) override {
    is_main_known_ = false;
    if (_setjmp(main_) == 0) GoTo(fibers_[to]);
    EndSwitch();
  }

  void Switch(size_t from, size_t to) override {
    if (_setjmp(fibers_[from].state) == 0) GoTo(fibers_[to]);
    Arrive();
  }

  void Leave(size_t from) override {
    if (_setjmp(fibers_[from].state) == 0) {
      BeginSwitch(main_place_);
      _longjmp(main_, 1);
    }
    Arrive();
  }

 private:
  struct Fiber {
    jmp_buf state;
    ucontext_t first;
    PosixStacks* stacks;
    size_t index;
    bool has_begun = false;
  };

  static void Begin(unsigned low, unsigned high) {
    Fiber& fiber = *reinterpret_cast<Fiber*>(uintptr_t(low) | uintptr_t(high) << 32);
    fiber.stacks->Arrive();
    fiber.stacks->body_(fiber.stacks->owner_, fiber.index);
  }

  [[noreturn]] void GoTo(Fiber& to) {
    BeginSwitch({to.first.uc_stack.ss_sp, to.first.uc_stack.ss_size});
    if (to.has_begun) _longjmp(to.state, 1);
    to.has_begun = true;
    setcontext(&to.first);
    __builtin_unreachable();
  }

  // The first thing that happens on a stack that is gone to: the one that Enter goes to tells of the OS thread's own.
  void Arrive() {
    const Place from = EndSwitch();
    if (!is_main_known_) main_place_ = from;
    is_main_known_ = true;
  }

  std::vector<Fiber> fibers_;
  Body body_;
  void* owner_;
  char* memory_ = nullptr;
  size_t bytes_ = 0;
  jmp_buf main_;
  Place main_place_;
  bool is_main_known_ = false;
};

}  // namespace

std::unique_ptr<Stacks> MakeStacks(size_t count, Stacks::Body body, void* owner) {
  return std::make_unique<PosixStacks>(count, body, owner);
}

}  // namespace kvit::host
#endif  // _WIN32
