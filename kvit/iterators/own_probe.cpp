// The program of kvit.iterators.probe_own: one tile, by a thread map into a layout of the caller's, with the iterators
// of the kernels. g++ makes it for the host backend, nvcc for a GPU.
//
//   program INPUT OUTPUT GPU    INPUT   rows of the tile, kOwnRowBytes apart
//                               OUTPUT  int32 threads, elements of a tile, bytes of the image, bytes of a fragment;
//                                       shared memory after the copy, 0xFF before; fragments of all threads
//                               GPU     ordinal; without meaning on the host
#include <stdint.h>

#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "abi/probe_params.h"
#include "cache/linear_iterator.cuh"
#include "core/types.h"
#include "iterator/sm70.cuh"
#include "iterator/sm80.cuh"
#include "layout/kv_layout.cuh"
#include "layout/smem_layout.cuh"
#include "platform/platform.cuh"

// Made for this program: OwnElement, OwnMap, OwnLayout, OwnIterator, kOwnTokens, kOwnRowBytes, kOwnStages.
#include "own_types.h"

namespace kvit {

struct OwnProbe {
  using Params = KvitProbeParams;
  using Iterator = OwnIterator<OwnElement, OwnMap, OwnLayout, 0>;
  static constexpr bool kThroughRegisters =
      std::is_same_v<Iterator, Sm70GmemIterator<OwnElement, OwnMap, OwnLayout, 0>>;
  static constexpr int kThreads = OwnMap::kWarpCount * 32;
  static constexpr int kImageBytes = int(BytesOf<OwnElement>(OwnLayout::kSize * kOwnStages));
  static constexpr int kSharedBytes = CeilDiv(kImageBytes, 16) * 16;
  static constexpr int kAccessBytes = int(sizeof(typename Iterator::AccessType));
  static constexpr int kFragmentBytes = Iterator::kIterCount * kAccessBytes;
  static constexpr int kMinCtas = 1;
  static constexpr KvitFact kFacts[] = {{"fragment_bytes", kFragmentBytes}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    for (int i = ThreadIndex(); i < kSharedBytes / 4; i += kThreads) StoreShared(shared + i * 4, ~uint32_t(0));
    SyncThreads();
    LinearIterator<1u, OwnMap> tiles(params.cache, params.table);
    tiles.SetSequence(0, 0);
    tiles.SetTile(0);
    Iterator iterator;
    iterator.SetSmem(PointTo<OwnElement>(shared));
    typename Iterator::Fragment fragment;
    Copy(tiles, iterator, shared, fragment);
    uint8_t* dump = params.fragments + int64_t(ThreadIndex()) * kFragmentBytes;
    for (int i = 0; i < Iterator::kIterCount; ++i) {
      StoreGlobal(dump + i * kAccessBytes, fragment[i / OwnMap::kIterC][i % OwnMap::kIterC]);
    }
    for (int i = ThreadIndex(); i < kSharedBytes / 4; i += kThreads) {
      StoreGlobal(params.shared_image + i * 4, LoadShared<uint32_t>(shared + i * 4));
    }
  }

 private:
  // Through registers, or asynchronously: then the fragment is what the thread finds at its own coordinates.
  template <class Tiles, class Loader>
  KVIT_DEVICE static void Copy(const Tiles& tiles, const Loader& loader, char* shared,
                               typename Loader::Fragment& fragment) {
    if constexpr (kThroughRegisters) {
      loader.template Load<false>(tiles, fragment, kOwnTokens);
      loader.Save(fragment, kOwnStages - 1);
      SyncThreads();
    } else {
      loader.Prefetch(tiles, kOwnTokens, kOwnStages - 1);
      CopyAsyncCommit();
      CopyAsyncWait<0>();
      SyncThreads();
      const BaseSmemIterator<OwnElement, OwnLayout> reader(PointTo<OwnElement>(shared));
      for (int i = 0; i < OwnMap::kIterS; ++i) {
        for (int j = 0; j < OwnMap::kIterC; ++j) {
          const Coord at = loader.At(i, j);
          fragment[i][j] = typename Loader::AccessType{};
          if (OwnMap::Covers(at)) {
            fragment[i][j] = reader.template Load<OwnMap::kAccessC>(at.s, at.c, kOwnStages - 1);
          }
        }
      }
    }
  }
};

}  // namespace kvit

KVIT_KERNEL(own_probe, kvit::OwnProbe)

namespace {

using kvit::OwnProbe;
constexpr size_t kRows = size_t(kvit::kOwnTokens) * kvit::kOwnRowBytes;
constexpr size_t kFragments = size_t(OwnProbe::kThreads) * OwnProbe::kFragmentBytes;

// Where the kernel reads and writes.
struct Memory {
  char* rows;
  int32_t* length;
  uint8_t *image, *fragments;
  KvitFault* fault;
};

KvitProbeParams ParamsOf(const Memory& memory) {
  KvitProbeParams params = {};
  params.cache.pool[0].base = memory.rows;
  params.cache.pool[0].token_stride = kvit::kOwnRowBytes;
  params.table.lengths = memory.length;
  params.table.num_sequences = 1;
  params.table.row_stride = params.table.max_pages = kvit::kOwnTokens;
  params.shared_image = memory.image;
  params.fragments = memory.fragments;
  params.fault = memory.fault;
  return params;
}

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

#ifdef __CUDACC__

void Check(cudaError_t error) {
  if (error != cudaSuccess) Fail(cudaGetErrorString(error));
}

template <class T>
T* Allocate(size_t bytes) {
  T* found = nullptr;
  Check(cudaMalloc(&found, bytes));
  return found;
}

void Launch(int gpu, const std::vector<char>& rows, int32_t length, std::vector<uint8_t>& image,
            std::vector<uint8_t>& fragments) {
  Check(cudaSetDevice(gpu));
  const Memory memory = {Allocate<char>(rows.size()), Allocate<int32_t>(sizeof length), Allocate<uint8_t>(image.size()),
                         Allocate<uint8_t>(fragments.size()), Allocate<KvitFault>(sizeof(KvitFault))};
  Check(cudaMemcpy(memory.rows, rows.data(), rows.size(), cudaMemcpyHostToDevice));
  Check(cudaMemcpy(memory.length, &length, sizeof length, cudaMemcpyHostToDevice));
  Check(cudaFuncSetAttribute(own_probe, cudaFuncAttributeMaxDynamicSharedMemorySize, OwnProbe::kSharedBytes));
  own_probe<<<1, OwnProbe::kThreads, OwnProbe::kSharedBytes>>>(ParamsOf(memory));
  Check(cudaGetLastError());
  Check(cudaDeviceSynchronize());
  Check(cudaMemcpy(image.data(), memory.image, image.size(), cudaMemcpyDeviceToHost));
  Check(cudaMemcpy(fragments.data(), memory.fragments, fragments.size(), cudaMemcpyDeviceToHost));
}

#else

void Launch(int /*gpu*/, const std::vector<char>& rows, int32_t length, std::vector<uint8_t>& image,
            std::vector<uint8_t>& fragments) {
  KvitFault fault = {};
  char* aligned = static_cast<char*>(std::aligned_alloc(256, (rows.size() + 255) / 256 * 256));
  if (aligned == nullptr) Fail("no memory for the rows");
  std::copy(rows.begin(), rows.end(), aligned);
  const KvitProbeParams params = ParamsOf({aligned, &length, image.data(), fragments.data(), &fault});
  const KvitSpan spans[] = {{aligned, int64_t(rows.size()), 0, 0},
                            {&length, sizeof length, 0, 0},
                            {image.data(), int64_t(image.size()), 1, 0},
                            {fragments.data(), int64_t(fragments.size()), 1, 0},
                            {&fault, sizeof fault, 1, 0}};
  const KvitHostKernel* const* kernels;
  kvit_host_kernels(&kernels);
  const KvitHostLaunch launch = {kernels[0], &params, spans, 1, int(std::size(spans)), KVIT_HOST_FIBERS, 1, 0};
  if (kvit_host_launch(&launch) != 0) Fail(kvit_host_error());
  std::free(aligned);
}

#endif

}  // namespace

int main(int count, char** argv) {
  if (count != 4) Fail("give INPUT, OUTPUT and the ordinal of a GPU");
  std::vector<char> rows(kRows);
  std::vector<uint8_t> image(OwnProbe::kSharedBytes), fragments(kFragments);
  std::FILE* input = std::fopen(argv[1], "rb");
  if (input == nullptr || std::fread(rows.data(), 1, kRows, input) != kRows) Fail("the rows cannot be read");
  std::fclose(input);
  Launch(std::atoi(argv[3]), rows, kvit::kOwnTokens, image, fragments);
  const int32_t sizes[] = {OwnProbe::kThreads, kvit::OwnLayout::kSize, OwnProbe::kImageBytes, OwnProbe::kFragmentBytes};
  std::FILE* output = std::fopen(argv[2], "wb");
  if (output == nullptr || std::fwrite(sizes, sizeof sizes, 1, output) != 1 ||
      std::fwrite(image.data(), 1, OwnProbe::kImageBytes, output) != size_t(OwnProbe::kImageBytes) ||
      std::fwrite(fragments.data(), 1, kFragments, output) != kFragments || std::fclose(output) != 0) {
    Fail("the result cannot be written");
  }
  return 0;
}
