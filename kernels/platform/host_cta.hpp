// An emulated CTA: its threads, warps, barriers and shared memory, and the checks that make it unkind on purpose.
#ifndef KVIT_PLATFORM_HOST_CTA_HPP
#define KVIT_PLATFORM_HOST_CTA_HPP

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "platform/host_api.h"
#include "platform/host_tensor.hpp"

namespace kvit::host {

inline constexpr int kWarpSize = 32;
inline constexpr int kGroupSize = 4 * kWarpSize;  // of a warp group
inline constexpr int kSlotBytes = 64;             // the largest value that a lane can give to a warp collective
inline constexpr unsigned char kPoison = 0xFF;    // NaN in every float type

/// Ends the launch; the text names the thread.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Releases its threads when all of them have arrived. Each has its own lock, so that ThreadSanitizer sees no order
/// between threads that the emulated machine does not order.
struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;
  const char* operation = nullptr;  // what the threads waiting now are in
  std::mutex mutex;
  std::condition_variable released;
};

/// 32 lanes and the mailbox through which they exchange values. Two mailboxes take turns: nobody can write the
/// next-but-one value before everybody has read the last.
struct Warp {
  Barrier barrier;
  struct Mailbox {
    alignas(16) unsigned char in[kWarpSize][kSlotBytes];
    alignas(16) unsigned char out[kWarpSize][16];
  } mailbox[2];
};

/// Threads that vote: all of a CTA, or of a warp group. Two ballots take turns.
struct Poll {
  Barrier barrier;
  int ballots[2] = {0, 0};
  bool verdict = false;
};

/// An asynchronous copy that has been issued and not yet waited for.
struct PendingCopy {
  void* shared;
  const void* global;
  int bytes;
  int valid_bytes;  // the first of them; zeros behind
  int group;
};

/// A box that a tensor copy has been asked for.
struct PendingBox {
  const KvitTensorMap* map;
  TmaCoordinates at;
  ptrdiff_t offset;  // in shared memory
  int bytes;
  uint64_t* barrier;
};

struct Cta;

/// A product of a warp group that has been issued: this thread's outputs of it.
struct PendingProduct {
  float* outputs;
  std::vector<float> before;  // what they held, where it is the first of those under way; they are NaN meanwhile
  std::function<void(float*)> compute;
  int group;
};

/// One CUDA thread.
struct Thread {
  Cta* cta = nullptr;
  Warp* warp = nullptr;
  int index = 0, lane = 0;
  unsigned collectives = 0;  // warp collectives so far: which mailbox is next
  unsigned votes = 0;        // of the CTA so far
  unsigned group_votes = 0;  // of the warp group so far
  bool is_synced = false;    // GridDependencySync has been called
  std::vector<PendingCopy> copies;
  int group = 0;  // of the copies being issued now
  std::vector<PendingProduct> products;
  int product_group = 0;

  // Waiting for a barrier to pass the generation it had on arrival.
  Barrier* waiting = nullptr;
  uint64_t waiting_generation = 0;
  bool done = true;
  int pauses = 0;  // in a row
  bool has_failed = false;
  std::string error;  // why; empty where there was no memory left to say it

  void SetError(const char* what) noexcept;
  std::string Where() const;  // "CTA 3 of 8, thread 37 (warp 1, lane 5)"
  [[noreturn]] void Fail(const std::string& what) const;
};

/// How a CTA's threads take turns.
struct Scheduler {
  virtual ~Scheduler() = default;
  /// Takes what CTAs like `cta` need, before the first runs. Throws Error where there is not enough of it.
  virtual void Prepare(Cta&) {}
  /// Runs `cta`'s body on every thread, to the end or to the first error.
  virtual void Run(Cta& cta) = 0;
  /// The calling thread arrives; `last(context)` runs once, on the last to arrive, before any is released.
  virtual void Arrive(Thread& thread, Barrier& barrier, const char* operation, void (*last)(void*), void* context) = 0;
  /// The calling thread lets others go on.
  virtual void Pause(Thread& thread) = 0;
};

struct Cta {
  const KvitHostLaunch* launch = nullptr;
  const std::atomic<bool>* launch_failed = nullptr;
  Scheduler* scheduler = nullptr;
  int block = 0;
  std::vector<Thread> threads;
  std::unique_ptr<Warp[]> warps;
  std::unique_ptr<Poll[]> groups;  // of four warps each
  Poll poll;                       // of all
  bool overlaps = false;           // its kernel may begin before the launch in front has ended: fact `overlaps`
  std::mutex boxes_mutex;
  std::vector<PendingBox> boxes;
  std::unique_ptr<char[]> storage;
  char* shared = nullptr;  // 1024-byte aligned
  int shared_bytes = 0;

  void Prepare(const KvitHostLaunch& launch);
  void Start(int block);  // poisons shared memory, resets threads
  void Body(Thread& thread);
  bool HasFailed() const;
  std::string FirstError() const;
};

inline constexpr char kNoMemory[] = "no memory left for the host backend to say what went wrong";

std::unique_ptr<Scheduler> MakeFibers();
std::unique_ptr<Scheduler> MakeThreads();

// The calling CUDA thread. In the C library's own block of a thread: it is there as soon as the thread is.
[[gnu::tls_model("initial-exec")]] extern thread_local Thread* self;

/// Makes `thread` the calling CUDA thread. Never inlined: a fiber may go on on another OS thread than it began on, and
/// a compiler that sees `self` around the switch would keep the address that it had on the first.
void Become(Thread* thread);

/// Lane values in, completed values out: what every warp collective is made of.
/// `complete` (may be null) sees all lanes' `in` and fills `out`; it runs once.
Warp::Mailbox& Exchange(const char* operation, const void* in, size_t bytes, void (*complete)(Warp::Mailbox&));

/// Of a kernel that overlaps with the launch in front, memory is for after GridDependencySync, unless its span says any
/// time.
void CheckGlobal(const void* p, int bytes, bool write, const char* operation);
/// The same for what may be done before the grid dependency: speculative loads, fetches to L2, tickets.
void CheckPreDependency(const void* p, int bytes, const char* operation, bool is_write = false);

/// What a speculative load finds. Nothing runs in front of a launch on the host, so what is old has to be made up.
enum class OldValue { kNow, kInverse, kLess, kMore };
/// By the launch's seed, the CTA, and where `p` lies in the memory of the launch: the same for all threads of a CTA.
OldValue Guess(const int32_t* p);
void CheckShared(const void* p, int bytes, const char* operation);
void IssueCopy(void* shared, const void* global, int bytes, int valid_bytes);
void CommitCopies();
/// `compute` adds a product to the outputs, which begin at 0 unless it accumulates. At the wait.
void IssueProduct(float* outputs, int count, bool accumulates, std::function<void(float*)> compute);
/// Computes what is not among the `newest` groups.
void LandProducts(int newest);
void WaitCopies(int newest);
/// Lets others go on, who may bring what the caller looks for again. Fails when they have stopped, or never will.
void Pause(const char* whom);
void ArriveCta(const char* operation);
bool VoteCta(bool vote);
bool VoteGroup(bool vote);

/// Static registration: KVIT_KERNEL makes one of these for each kernel.
struct Registration {
  explicit Registration(const KvitHostKernel* kernel);
};

}  // namespace kvit::host

#endif  // KVIT_PLATFORM_HOST_CTA_HPP
