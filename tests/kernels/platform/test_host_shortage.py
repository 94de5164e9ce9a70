"""The host backend where memory or threads run short: a launch fails with words, or runs with less; nothing aborts."""

import json
import subprocess
import sys

import pytest

from support.host_program import SCHEDULERS, HostPrograms

# Launches a kernel again and again. In round n, request n for a resource is the first to fail: alone, or with all that
# follow. After each round the same launch must succeed. Prints a line for each round that failed, then "done".
SOURCE = r"""
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "abi/params.h"
#include "platform/platform.cuh"

namespace {
constexpr int kNever = 1 << 30;
std::atomic<int> until_failure{kNever};
bool fails_for_ever;
char resource;

bool Fails(char asked) {
  if (asked != resource) return false;
  const int left = until_failure.fetch_sub(1);
  return left == 0 || (left < 0 && fails_for_ever);
}
}  // namespace

void* operator new(std::size_t bytes) {
  void* memory = Fails('m') ? nullptr : std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*body)(void*), void* context) {
  if (Fails('t')) return EAGAIN;
  static const auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return real(thread, how, body, context);
}
extern "C" void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
  if (Fails('s')) return MAP_FAILED;
  return reinterpret_cast<void*>(syscall(SYS_mmap, at, bytes, protection, flags, file, offset));
}

namespace kvit {
struct CaseParams { char *input, *output; };
template <int Threads>
struct Case {
  using Params = CaseParams;
  static constexpr int kThreads = Threads, kSharedBytes = 1024, kMinCtas = 1;
  static constexpr KvitFact kFacts[] = {{"overlaps", 0}};
  static void Run(const Params& params, char* shared) {
    const int thread = ThreadIndex();
    CopyAsync<4>(shared + 4 * thread, params.input + 4 * thread, true);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    SyncThreads();
    const auto received = LoadShared<uint32_t>(shared + 4 * ((thread + 1) % kThreads));
    StoreGlobal(params.output + 4 * (BlockIndex() * kThreads + thread), Shuffle(received, LaneIndex()));
  }
};
}  // namespace kvit

KVIT_KERNEL(case_small, kvit::Case<32>)
KVIT_KERNEL(case_large, kvit::Case<64>)

int main(int, char** argv) {
  constexpr int kGrid = 3, kBytes = 4 * 64;
  alignas(16) static char input[kBytes], output[kGrid * kBytes];
  for (int i = 0; i < kBytes; ++i) input[i] = char(i);
  const kvit::CaseParams params = {input, output};
  const KvitSpan spans[] = {{input, sizeof input, 0, 0}, {output, sizeof output, 1, 0}};
  const KvitHostKernel* const* kernels;
  kvit_host_kernels(&kernels);
  const auto run = [&](int kernel) {
    const KvitHostLaunch launch = {kernels[kernel], &params, spans, kGrid, 2, std::atoi(argv[1]), 3, 0};
    return kvit_host_launch(&launch);
  };
  const auto is_right = [&] {
    for (int i = 0; i < kGrid * kBytes; ++i) {
      if (output[i] != char((i + 4) % kBytes)) return false;
    }
    return true;
  };
  resource = argv[2][0];
  fails_for_ever = argv[2][1] == '*';
  for (int round = 0;; round += 1 + round / 4) {  // every request of the first few, then fewer and fewer
    run(0);  // stacks of another size: the next launch makes its own
    std::memset(output, 0, sizeof output);
    until_failure = round;
    const int status = run(1);
    const bool was_asked = until_failure.exchange(kNever) < 0;
    if (status != 0) {
      std::printf("%s\n", kvit_host_error());
    } else if (!is_right()) {
      std::printf("WRONG\n");
    }
    std::memset(output, 0, sizeof output);
    if (run(1) != 0 || !is_right()) std::printf("NOT WELL AFTERWARDS\n");
    if (!was_asked) break;
  }
  std::printf("done\n");
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("host")).build(SOURCE, [])


@pytest.mark.parametrize("resource", ["m", "m*", "t", "t*", "s", "s*"])  # memory, threads, stacks; * from then on
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_shortage_is_an_error_or_less_speed(program, scheduler, resource):
    done = subprocess.run([program, SCHEDULERS[scheduler], resource], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
    *failures, last = done.stdout.splitlines()
    assert last == "done"
    words = ("bad_alloc", "no memory left", "no memory for the stacks", "OS threads for a CTA", "after another thread")
    assert [line for line in failures if not any(word in line for word in words)] == []
    # Workers that cannot be had, or have no stacks, are done without, as long as one is left; a CTA's threads cannot.
    needs = {"m": True, "t": scheduler == "threads", "s": scheduler == "fibers" and resource == "s*"}[resource[0]]
    assert bool(failures) == needs


def test_kvit_says_that_memory_is_short(tmp_path):
    # With little address space some calls fail, each in Python's words or in kvit's, and later ones are right.
    code = """
import json, resource
import numpy as np
import kvit
from kvit._native import host

host.configure(workers=8)
rng = np.random.default_rng(0)
q, v = rng.standard_normal((2, 64, 8, 64)).astype(np.float16)
lse = np.zeros((64, 8), np.float32)
wanted = kvit.merge_state(q, lse, v, lse)[0].numpy()
cache = kvit.PagedCache(64, 16, 8, 64, dtype="float16", device="host")
sequence = cache.sequence()
cache.append([sequence], q, v)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
errors = []
for room in (0, 1, 3, 6, 12, 24, 64, 256):
    resource.setrlimit(resource.RLIMIT_AS, (size + (room << 20), hard))
    for attempt in range(2):
        try:
            kvit.attention(q, cache, [sequence])
            kvit.merge_state(q, lse, v, lse)
            kvit.Buffer.empty((1 << 30,), "uint8", "host")  # more than any of the rooms has
        except (MemoryError, kvit.DriverError, kvit.HostBackendError) as error:
            errors.append(type(error).__name__)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (kvit.merge_state(q, lse, v, lse)[0].numpy() == wanted).all()
print(json.dumps(errors))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    assert len(json.loads(done.stdout)) == 16
