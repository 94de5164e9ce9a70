// Stacks by the fibers of Windows: what goes to one must be a fiber itself, so an OS thread becomes one for as long as
// it is needed.
#ifdef _WIN32
#include <windows.h>

#include <new>
#include <vector>

#include "platform/host_stacks.hpp"

namespace kvit::host {
namespace {

// Of a stack, what has memory from the start; Windows takes the rest, up to kStackBytes, when it is touched.
constexpr size_t kCommittedBytes = 8 * 1024;

class WindowsStacks final : public Stacks {
 public:
  WindowsStacks(size_t count, Body body, void* owner) : fibers_(count), body_(body), owner_(owner) {
    for (size_t i = 0; i < count; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.stacks = this;
      fiber.index = i;
      fiber.handle = CreateFiberEx(kCommittedBytes, kStackBytes, FIBER_FLAG_FLOAT_SWITCH, &Begin, &fiber);
      if (fiber.handle == nullptr) {
        Release();
        throw std::bad_alloc();
      }
    }
  }

  ~WindowsStacks() override { Release(); }

  void Enter(size_t to) override {
    const bool was_fiber = IsThreadAFiber();
    main_ = was_fiber ? GetCurrentFiber() : ConvertThreadToFiberEx(nullptr, FIBER_FLAG_FLOAT_SWITCH);
    if (main_ == nullptr) throw std::bad_alloc();
    SwitchToFiber(fibers_[to].handle);
    if (!was_fiber) ConvertFiberToThread();
  }

  void Switch(size_t, size_t to) override { SwitchToFiber(fibers_[to].handle); }

  void Leave(size_t) override { SwitchToFiber(main_); }

 private:
  struct Fiber {
    void* handle = nullptr;
    WindowsStacks* stacks;
    size_t index;
  };

  static void CALLBACK Begin(void* argument) {
    const Fiber& fiber = *static_cast<Fiber*>(argument);
    fiber.stacks->body_(fiber.stacks->owner_, fiber.index);
  }

  void Release() {
    for (Fiber& fiber : fibers_) {
      if (fiber.handle != nullptr) DeleteFiber(fiber.handle);
    }
  }

  std::vector<Fiber> fibers_;
  Body body_;
  void* owner_;
  void* main_ = nullptr;
};

}  // namespace

std::unique_ptr<Stacks> MakeStacks(size_t count, Stacks::Body body, void* owner) {
  return std::make_unique<WindowsStacks>(count, body, owner);
}

}  // namespace kvit::host
#endif  // _WIN32
