// The host backend's entry points: the table of kernels, and a launch that runs the CTAs of a grid on a few OS threads.
#include <algorithm>
#include <atomic>
#include <thread>

#include "platform/host_cta.hpp"

namespace kvit::host {
namespace {

std::vector<const KvitHostKernel*>& Kernels() {
  static std::vector<const KvitHostKernel*> kernels;
  return kernels;
}

thread_local std::string last_error;

// A CTA and its fibers, kept between launches: stacks are costly to make.
struct Arena {
  Cta cta;
  std::unique_ptr<Scheduler> fibers = MakeFibers();
};

class Arenas {
 public:
  std::unique_ptr<Arena> Take() {
    std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<Arena>();
    std::unique_ptr<Arena> arena = std::move(idle_.back());
    idle_.pop_back();
    return arena;
  }
  void Give(std::unique_ptr<Arena> arena) {
    std::lock_guard lock(mutex_);
    idle_.push_back(std::move(arena));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> idle_;
};

Arenas& IdleArenas() {
  static Arenas& arenas = *new Arenas;  // never destroyed: a daemon thread may run kernels while the process exits
  return arenas;
}

struct Grid {
  explicit Grid(const KvitHostLaunch& grid_launch) : launch(grid_launch) {}

  const KvitHostLaunch& launch;
  std::atomic<uint32_t> next = 0;
  std::atomic<bool> failed = false;
  std::mutex mutex;
  uint32_t failed_block = UINT32_MAX;
  std::string error;

  // CTAs are dealt out in order; the error reported is that of the lowest block, whoever ran it.
  void Work() {
    std::unique_ptr<Arena> arena = IdleArenas().Take();
    std::unique_ptr<Scheduler> threads;
    if (launch.scheduler == KVIT_HOST_THREADS) threads = MakeThreads();
    arena->cta.scheduler = threads ? threads.get() : arena->fibers.get();
    arena->cta.launch_failed = &failed;
    arena->cta.Prepare(launch);
    for (uint32_t block = next++; block < launch.grid; block = next++) {
      arena->cta.Start(int(block));
      arena->cta.scheduler->Run(arena->cta);
      const std::string found = arena->cta.FirstError();
      if (found.empty()) continue;
      failed = true;
      std::lock_guard lock(mutex);
      if (block < failed_block) {
        failed_block = block;
        error = found;
      }
      next = launch.grid;
    }
    IdleArenas().Give(std::move(arena));
  }
};

}  // namespace

Registration::Registration(const KvitHostKernel* kernel) { Kernels().push_back(kernel); }

}  // namespace kvit::host

#pragma GCC visibility push(default)
extern "C" {

int32_t kvit_host_kernels(const KvitHostKernel* const** kernels) {
  *kernels = kvit::host::Kernels().data();
  return int32_t(kvit::host::Kernels().size());
}

int32_t kvit_host_launch(const KvitHostLaunch* launch) {
  using namespace kvit::host;
  try {
    Grid grid(*launch);
    const uint32_t cores = std::max(1u, std::thread::hardware_concurrency());
    const uint32_t workers = std::min(launch->workers > 0 ? uint32_t(launch->workers) : cores, launch->grid);
    std::vector<std::thread> others;
    for (uint32_t i = 1; i < workers; ++i) others.emplace_back([&grid] { grid.Work(); });
    grid.Work();
    for (std::thread& other : others) other.join();
    last_error = grid.error;
  } catch (const std::exception& e) {
    last_error = e.what();
  }
  return last_error.empty() ? 0 : 1;
}

const char* kvit_host_error(void) { return kvit::host::last_error.c_str(); }

}  // extern "C"
#pragma GCC visibility pop
