// What an emulated thread may do: checked memory, copies that land at the wait, barriers and warp exchanges.
#include "platform/host_cta.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace kvit::host {

[[gnu::tls_model("initial-exec")]] thread_local Thread* self = nullptr;

[[gnu::noinline]] void Become(Thread* thread) { self = thread; }

namespace {

std::string Hex(const void* p) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", p);
  return text;
}

bool Inside(const KvitSpan& span, const void* p, int bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(span.base), at = reinterpret_cast<uintptr_t>(p);
  return at >= begin && bytes <= span.bytes && at - begin <= uintptr_t(span.bytes - bytes);
}

void Land(const PendingCopy& copy) {
  std::memset(copy.shared, 0, size_t(copy.bytes));
  if (copy.valid_bytes != 0) std::memcpy(copy.shared, copy.global, size_t(copy.valid_bytes));
}

}  // namespace

std::string Thread::Where() const {
  char text[96];
  std::snprintf(text, sizeof text, "CTA %d of %u, thread %d (warp %d, lane %d)", cta->block, cta->launch->grid, index,
                index / kWarpSize, lane);
  return text;
}

void Thread::Fail(const std::string& what) const {
  throw Error(std::string(cta->launch->kernel->symbol) + ": " + what + "; " + Where());
}

namespace {

void CheckAligned(const void* p, int bytes, const char* operation) {
  if (reinterpret_cast<uintptr_t>(p) % unsigned(bytes) != 0) {
    self->Fail(std::string(operation) + " of " + std::to_string(bytes) + " bytes at " + Hex(p) + " is misaligned");
  }
}

// Returns which span it is.
int Check(const void* p, int bytes, bool write, const char* operation, bool is_synced, int alignment = 0) {
  CheckAligned(p, alignment != 0 ? alignment : bytes, operation);
  const KvitHostLaunch& launch = *self->cta->launch;
  bool is_inside = false;
  for (int i = 0; i < launch.num_spans; ++i) {
    const KvitSpan& span = launch.spans[i];
    if (!Inside(span, p, bytes) || (write && !span.writable)) continue;
    if (is_synced || span.pre_dependency) return i;
    is_inside = true;
  }
  self->Fail(std::string(operation) + " of " + std::to_string(bytes) + " bytes at " + Hex(p) +
             (is_inside ? " comes before this launch's turn" : " is outside the memory of this launch"));
}

}  // namespace

void CheckGlobal(const void* p, int bytes, bool write, const char* operation) {
  Check(p, bytes, write, operation, self->is_synced || !self->cta->overlaps);
}

void CheckPreDependency(const void* p, int bytes, const char* operation, bool is_write) {
  Check(p, bytes, is_write, operation, true);
}

OldValue Guess(const int32_t* p) {
  const KvitHostLaunch& launch = *self->cta->launch;
  const int span = Check(p, sizeof(*p), false, "speculative load", true);
  const auto offset = uint64_t(reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(launch.spans[span].base));
  // SplitMix64 (Steele and others, 2014): every bit of what is told apart reaches the three that are asked for.
  uint64_t mixed = (uint64_t(launch.seed) << 32 | uint32_t(self->cta->block)) * 0x9E3779B97F4A7C15;
  for (const uint64_t part : {uint64_t(span), offset}) {
    mixed += part + 0x9E3779B97F4A7C15;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
    mixed ^= mixed >> 31;
  }
  constexpr OldValue kValues[] = {OldValue::kInverse, OldValue::kInverse, OldValue::kLess, OldValue::kMore};
  return mixed >> 63 != 0 ? OldValue::kNow : kValues[mixed >> 61];
}

void CheckShared(const void* p, int bytes, const char* operation) {
  const Cta& cta = *self->cta;
  const ptrdiff_t offset = static_cast<const char*>(p) - cta.shared;
  if (offset < 0 || offset + bytes > cta.shared_bytes) {
    self->Fail(std::string(operation) + " of " + std::to_string(bytes) + " bytes at shared offset " +
               std::to_string(offset) + " is outside the CTA's " + std::to_string(cta.shared_bytes) + " bytes");
  }
  if (offset % bytes != 0) {
    self->Fail(std::string(operation) + " of " + std::to_string(bytes) + " bytes at shared offset " +
               std::to_string(offset) + " is misaligned");
  }
}

// The target is poisoned now and filled at the wait: whoever reads in between gets NaN.
void IssueCopy(void* shared, const void* global, int bytes, int valid_bytes) {
  constexpr char kRead[] = "asynchronous copy from global memory";
  CheckShared(shared, bytes, "asynchronous copy to shared memory");
  if (valid_bytes != 0) {
    Check(global, valid_bytes, false, kRead, self->is_synced || !self->cta->overlaps, bytes);
  }
  std::memset(shared, kPoison, size_t(bytes));
  self->copies.push_back({shared, global, bytes, valid_bytes, self->group});
}

void CommitCopies() { ++self->group; }

void WaitCopies(int newest) {
  Thread& thread = *self;
  size_t landed = 0;
  while (landed < thread.copies.size() && thread.copies[landed].group < thread.group - newest) {
    Land(thread.copies[landed++]);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + ptrdiff_t(landed));
}

void IssueProduct(float* outputs, int count, bool accumulates, std::function<void(float*)> compute) {
  std::vector<float> before;
  const bool is_first = std::none_of(self->products.begin(), self->products.end(),
                                     [&](const PendingProduct& product) { return product.outputs == outputs; });
  if (is_first || !accumulates) {
    before.assign(size_t(count), 0.0f);
    if (accumulates) before.assign(outputs, outputs + count);
  }
  std::fill(outputs, outputs + count, std::nanf(""));
  self->products.push_back({outputs, std::move(before), std::move(compute), self->product_group});
}

void LandProducts(int newest) {
  Thread& thread = *self;
  size_t landed = 0;
  while (landed < thread.products.size() && thread.products[landed].group < thread.product_group - newest) {
    const PendingProduct& product = thread.products[landed++];
    std::copy(product.before.begin(), product.before.end(), product.outputs);
    product.compute(product.outputs);
  }
  thread.products.erase(thread.products.begin(), thread.products.begin() + ptrdiff_t(landed));
}

Warp::Mailbox& Exchange(const char* operation, const void* in, size_t bytes, void (*complete)(Warp::Mailbox&)) {
  Thread& thread = *self;
  Warp::Mailbox& mailbox = thread.warp->mailbox[thread.collectives++ % 2];
  if (bytes != 0) std::memcpy(mailbox.in[thread.lane], in, bytes);
  struct Context {
    Warp::Mailbox* mailbox;
    void (*complete)(Warp::Mailbox&);
  } context{&mailbox, complete};
  auto last = [](void* c) {
    auto* context = static_cast<Context*>(c);
    if (context->complete) context->complete(*context->mailbox);
  };
  thread.cta->scheduler->Arrive(thread, thread.warp->barrier, operation, last, &context);
  return mailbox;
}

void Pause(const char* whom) {
  constexpr int kPatience = 20'000'000;
  Thread& thread = *self;
  if (thread.cta->launch_failed->load()) thread.Fail(std::string("stopped waiting for ") + whom + " after an error");
  if (++thread.pauses > kPatience) thread.Fail(std::string("waits for ever for ") + whom);
  thread.cta->scheduler->Pause(thread);
}

void ArriveCta(const char* operation) {
  Thread& thread = *self;
  thread.cta->scheduler->Arrive(thread, thread.cta->poll.barrier, operation, [](void*) {}, nullptr);
}

namespace {

bool Vote(Poll& poll, unsigned& count, bool vote, const char* operation) {
  Thread& thread = *self;
  int& ballot = poll.ballots[count++ % 2];
  if (vote) __atomic_store_n(&ballot, 1, __ATOMIC_RELAXED);
  struct Context {
    Poll* poll;
    int* ballot;
  } context{&poll, &ballot};
  auto close = [](void* c) {
    auto* context = static_cast<Context*>(c);
    context->poll->verdict = __atomic_exchange_n(context->ballot, 0, __ATOMIC_RELAXED) != 0;
  };
  thread.cta->scheduler->Arrive(thread, poll.barrier, operation, close, &context);
  const bool verdict = poll.verdict;
  // Nobody may reach the next vote's count before everybody has read this one's verdict.
  thread.cta->scheduler->Arrive(thread, poll.barrier, operation, [](void*) {}, nullptr);
  return verdict;
}

}  // namespace

bool VoteCta(bool vote) { return Vote(self->cta->poll, self->votes, vote, "SyncThreadsOr"); }
bool VoteGroup(bool vote) {
  return Vote(self->cta->groups[self->index / kGroupSize], self->group_votes, vote, "SyncGroupOr");
}

void Thread::SetError(const char* what) noexcept {
  has_failed = true;
  try {
    error = what;
  } catch (const std::exception&) {
    error.clear();
  }
}

void Cta::Prepare(const KvitHostLaunch& new_launch) {
  launch = &new_launch;
  const int num_threads = launch->kernel->threads;
  const int num_warps = num_threads / kWarpSize;
  shared_bytes = launch->kernel->shared_bytes;
  overlaps = false;
  for (int i = 0; i < launch->kernel->num_facts; ++i) {
    const KvitFact& fact = launch->kernel->facts[i];
    overlaps = overlaps || (std::strcmp(fact.name, "overlaps") == 0 && fact.value != 0);
  }
  threads = std::vector<Thread>(size_t(num_threads));
  warps = std::make_unique<Warp[]>(size_t(num_warps));
  groups = std::make_unique<Poll[]>(size_t(num_threads / kGroupSize + 1));
  storage = std::make_unique<char[]>(size_t(shared_bytes) + 1024);
  shared = storage.get() + (1024 - reinterpret_cast<uintptr_t>(storage.get()) % 1024) % 1024;
  for (int i = 0; i < num_threads; ++i) {
    threads[size_t(i)].cta = this;
    threads[size_t(i)].index = i;
    threads[size_t(i)].lane = i % kWarpSize;
    threads[size_t(i)].warp = &warps[size_t(i / kWarpSize)];
  }
}

void Cta::Start(int new_block) {
  block = new_block;
  std::memset(shared, kPoison, size_t(shared_bytes));
  boxes.clear();
  poll.barrier.expected = int(threads.size());
  poll.barrier.arrived = 0;
  for (size_t g = 0; g < threads.size() / kGroupSize; ++g) {
    groups[g].barrier.expected = kGroupSize;
    groups[g].barrier.arrived = 0;
  }
  for (size_t w = 0; w < threads.size() / kWarpSize; ++w) {
    warps[w].barrier.expected = kWarpSize;
    warps[w].barrier.arrived = 0;
  }
  for (Thread& thread : threads) {
    thread.collectives = thread.votes = thread.group_votes = 0;
    thread.is_synced = false;
    thread.copies.clear();
    thread.products.clear();
    thread.group = thread.product_group = 0;
    thread.pauses = 0;
    thread.waiting = nullptr;
    thread.done = false;
    thread.has_failed = false;
    thread.error.clear();
  }
}

void Cta::Body(Thread& thread) {
  try {
    launch->kernel->body(launch->params, shared);
    if (!thread.copies.empty()) thread.Fail("ends with asynchronous copies that nobody waited for");
    if (!thread.products.empty()) thread.Fail("ends with products of a warp group that nobody waited for");
  } catch (const std::exception& e) {
    thread.SetError(e.what());
  }
}

bool Cta::HasFailed() const {
  for (const Thread& thread : threads) {
    if (thread.has_failed) return true;
  }
  return !boxes.empty();
}

std::string Cta::FirstError() const {
  for (const Thread& thread : threads) {
    if (thread.has_failed) return thread.error.empty() ? kNoMemory : thread.error;
  }
  if (!boxes.empty()) {
    return std::string(launch->kernel->symbol) + ": ends with tensor copies that nobody waited for; CTA " +
           std::to_string(block) + " of " + std::to_string(launch->grid);
  }
  return "";
}

}  // namespace kvit::host
