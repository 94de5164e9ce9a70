// The host backend's entry points: the table of kernels, and a launch that runs the CTAs of a grid on a few OS threads.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

#include "platform/host_cta.hpp"

namespace kvit::host {
namespace {

std::vector<const KvitHostKernel*>& Kernels() {
  static std::vector<const KvitHostKernel*> kernels;
  return kernels;
}

// What kvit_host_error gives: the words of this thread, or some that need no memory. This data is in the C library's
// own block of a thread. Other thread-local data is allocated when a thread first looks at it, and the C library aborts
// the process where it cannot be. The block has some hundred bytes to spare for all libraries that are loaded late, and
// a library that asks for more does not load: so the words themselves lie elsewhere.
[[gnu::tls_model("initial-exec")]] thread_local const char* last_error = "";
[[gnu::tls_model("initial-exec")]] thread_local char* own_words = nullptr;

constexpr size_t kWordsBytes = 2048;

// Gives the words of a thread back when it ends.
class WordsOfThreads {
 public:
  WordsOfThreads() : has_key_(pthread_key_create(&key_, Forget) == 0) {}

  // Whether the thread keeps `words` from now on.
  bool Keep(char* words) const { return has_key_ && pthread_setspecific(key_, words) == 0; }

 private:
  static void Forget(void* words) {
    last_error = "";
    own_words = nullptr;
    std::free(words);
  }

  pthread_key_t key_;
  bool has_key_;
};

const WordsOfThreads words_of_threads;

// Whether this thread can fail in words. What they and the C++ library's exceptions need in a thread is allocated here,
// if there is memory to spare: the exceptions' would abort the process later.
bool CanFail() {
  if (own_words != nullptr) return true;
  static std::mutex one_at_a_time;  // or another thread takes what this one found
  std::lock_guard lock(one_at_a_time);
  void* const spare = std::malloc(1 << 16);
  std::free(spare);
  auto* const words = static_cast<char*>(std::malloc(kWordsBytes));
  if (words == nullptr || std::uncaught_exceptions() < 0 || !words_of_threads.Keep(words)) {
    std::free(words);
    return false;
  }
  own_words = words;
  return true;
}

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
  void Give(std::unique_ptr<Arena> arena) noexcept {
    std::lock_guard lock(mutex_);
    try {
      idle_.push_back(std::move(arena));
    } catch (const std::exception&) {
      // No memory for the list: the next launch makes another arena.
    }
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
  std::atomic<bool> failed = false;     // a CTA has, or a worker among its CTAs
  std::atomic<bool> has_begun = false;  // a worker has all that it needs
  std::mutex mutex;
  uint32_t failed_block = UINT32_MAX;  // of the error that is reported
  std::string error;
  bool has_no_memory = false;  // for that error

  // CTAs are dealt out in order; the error reported is that of the lowest block, whoever ran it. A worker takes all
  // that it needs before it runs the first CTA. One that cannot have it leaves its share to the others: a launch that
  // lacks memory is whole, or has not begun.
  void Work() noexcept {
    uint32_t block = launch.grid;
    bool is_ready = false;
    try {
      Worker worker(launch, failed);
      has_begun = is_ready = true;
      RunCtas(*worker.arena, block);
      IdleArenas().Give(std::move(worker.arena));
    } catch (const std::exception& e) {
      if (is_ready) Stop();
      Note(std::min(block, launch.grid), e.what());
    }
  }

  bool IsDone() const { return has_begun && !failed; }

 private:
  struct Worker {
    Worker(const KvitHostLaunch& launch, const std::atomic<bool>& failed) : arena(IdleArenas().Take()) {
      if (launch.scheduler == KVIT_HOST_THREADS) threads = MakeThreads();
      arena->cta.scheduler = threads ? threads.get() : arena->fibers.get();
      arena->cta.launch_failed = &failed;
      arena->cta.Prepare(launch);
      arena->cta.scheduler->Prepare(arena->cta);
    }

    std::unique_ptr<Arena> arena;
    std::unique_ptr<Scheduler> threads;
  };

  // No CTA is begun any more.
  void Stop() noexcept {
    failed = true;
    next = launch.grid;
  }

  void Note(uint32_t block, const char* what) noexcept {
    std::lock_guard lock(mutex);
    if (block >= failed_block) return;
    failed_block = block;
    has_no_memory = false;
    try {
      error = what;
    } catch (const std::exception&) {
      error.clear();
      has_no_memory = true;
    }
  }

  // `block` is the one that runs, or that would have been next.
  void RunCtas(Arena& arena, uint32_t& block) {
    for (block = next++; block < launch.grid; block = next++) {
      arena.cta.Start(int(block));
      arena.cta.scheduler->Run(arena.cta);
      if (!arena.cta.HasFailed()) continue;
      Stop();
      Note(block, arena.cta.FirstError().c_str());
    }
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
  last_error = kNoMemory;
  if (!CanFail()) return 1;
  Grid grid(*launch);
  const uint32_t cores = std::max(1u, std::thread::hardware_concurrency());
  const uint32_t workers = std::min(launch->workers > 0 ? uint32_t(launch->workers) : cores, launch->grid);
  std::vector<std::thread> others;
  try {
    others.reserve(workers);
    const auto work = [&grid] {
      if (CanFail()) grid.Work();  // else the others do its share
    };
    for (uint32_t i = 1; i < workers; ++i) others.emplace_back(work);
  } catch (const std::exception&) {
    // No memory or no thread for another worker: those that are there do all the work.
  }
  grid.Work();
  for (std::thread& other : others) other.join();
  if (grid.IsDone()) return 0;
  if (!grid.has_no_memory) {
    std::snprintf(own_words, kWordsBytes, "%s", grid.error.c_str());
    last_error = own_words;
  }
  return 1;
}

const char* kvit_host_error(void) { return kvit::host::last_error; }

}  // extern "C"
#pragma GCC visibility pop
