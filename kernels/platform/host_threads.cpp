// OS threads: one for each CUDA thread, so that ThreadSanitizer can see what the kernel's own barriers order.
#include <atomic>
#include <chrono>
#include <thread>

#include "platform/host_cta.hpp"

namespace kvit::host {
namespace {

constexpr std::chrono::seconds kPatience{20};  // a barrier that takes longer is taken for one that never opens

class Threads final : public Scheduler {
 public:
  void Run(Cta& cta) override {
    stopped_ = false;
    gate_ = kShut;
    std::vector<std::thread> threads;
    try {
      threads.reserve(cta.threads.size());
      for (Thread& thread : cta.threads) threads.emplace_back([this, &cta, &thread] { RunThread(cta, thread); });
    } catch (const std::exception& e) {
      Open(kGivenUp);
      for (std::thread& thread : threads) thread.join();
      throw Error("no " + std::to_string(cta.threads.size()) + " OS threads for a CTA of " +
                  cta.launch->kernel->symbol + ": " + e.what());
    }
    Open(kOpen);
    for (std::thread& thread : threads) thread.join();
  }

  void Arrive(Thread& thread, Barrier& barrier, const char* operation, void (*last)(void*), void* context) override {
    std::unique_lock lock(barrier.mutex);
    if (barrier.arrived == 0) barrier.operation = operation;
    if (barrier.operation != operation) {
      thread.Fail(std::string("arrives at ") + operation + " while others wait at " + barrier.operation);
    }
    if (++barrier.arrived == barrier.expected) {
      last(context);
      barrier.arrived = 0;
      ++barrier.generation;
      barrier.released.notify_all();
      return;
    }
    const uint64_t generation = barrier.generation;
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (barrier.generation == generation) {
      barrier.released.wait_for(lock, std::chrono::milliseconds(20));
      if (barrier.generation != generation) break;
      if (stopped_) thread.Fail(std::string("stopped at ") + operation + " after another thread's error");
      if (std::chrono::steady_clock::now() > deadline) {
        stopped_ = true;
        thread.Fail(std::string("waits for ever at ") + operation);
      }
    }
  }

  void Pause(Thread& thread) override {
    if (stopped_) thread.Fail("stopped after another thread's error");
    std::this_thread::yield();
  }

 private:
  enum Gate { kShut, kOpen, kGivenUp };

  void RunThread(Cta& cta, Thread& thread) {
    gate_.wait(kShut);
    if (gate_ == kGivenUp) return;
    Become(&thread);
    cta.Body(thread);
    if (thread.has_failed) stopped_ = true;
    thread.done = true;
  }

  void Open(Gate gate) {
    gate_ = gate;
    gate_.notify_all();
  }

  std::atomic<bool> stopped_ = false;
  std::atomic<Gate> gate_ = kShut;  // open once all threads of the CTA are there
};

}  // namespace

std::unique_ptr<Scheduler> MakeThreads() { return std::make_unique<Threads>(); }

}  // namespace kvit::host
