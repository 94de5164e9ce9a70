// Stacks of a CTA's fibers, and how one is left for another: the part of the host backend that each system does its own
// way. host_stacks_posix.cpp has ucontext, host_stacks_windows.cpp the fibers of Windows.
#ifndef KVIT_PLATFORM_HOST_STACKS_HPP
#define KVIT_PLATFORM_HOST_STACKS_HPP

#include <cstddef>
#include <memory>

namespace kvit::host {

inline constexpr size_t kStackBytes = 128 * 1024;

/// Stacks that OS threads run on one after the other. What stands on one goes on from where it was left, on whichever
/// OS thread comes next.
class Stacks {
 public:
  /// What stack `index` runs from when it is first gone to. Never returns.
  using Body = void (*)(void* owner, size_t index);

  virtual ~Stacks() = default;

  /// Leaves the OS thread's own stack for `to`. Returns when a stack calls Leave.
  virtual void Enter(size_t to) = 0;
  /// Leaves stack `from`, on which the caller is, for `to`. Returns when somebody goes to `from` again.
  virtual void Switch(size_t from, size_t to) = 0;
  /// Leaves stack `from`, on which the caller is, for the one that Enter was called on.
  virtual void Leave(size_t from) = 0;
};

/// Throws std::bad_alloc. To destroy the stacks gives their memory back and runs nothing of what stands on them.
std::unique_ptr<Stacks> MakeStacks(size_t count, Stacks::Body body, void* owner);

}  // namespace kvit::host

#endif  // KVIT_PLATFORM_HOST_STACKS_HPP
