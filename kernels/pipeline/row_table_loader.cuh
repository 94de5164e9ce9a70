// Streams the K and V tiles of a CTA's range into rings in shared memory, for kernels whose registers are full: what it
// knows about rows and work tiles is in shared memory.
#ifndef KVIT_PIPELINE_ROW_TABLE_LOADER_CUH
#define KVIT_PIPELINE_ROW_TABLE_LOADER_CUH

#include <stdint.h>

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "cache/page_place.cuh"
#include "cache/pool_set.cuh"
#include "platform/platform.cuh"
#include "schedule/work_iterator.cuh"

namespace kvit {

/// All threads of the CTA load together, and meet once between two tiles. Each looks up one token's row of K or of V
/// for all of them, a tile ahead of the copies, and its page id a tile before that:
///
///   Prefetch of tile n     copies of tile n          from row table n % 2
///                          rows of tile n + 1        into row table (n + 1) % 2
///                          page ids of tile n + 2    on their way to registers
///
///   threads                0 .. Tokens - 1: a row of K each; Tokens .. 2 Tokens - 1: a row of V each; others: none
///
/// Mover copies: CpAsyncMover, or RegisterMover.
template <class Scheduler, class KeyRing, class ValueRing, int Tokens, int Threads, class Mover>
class RowTableLoader {
  static_assert(Threads >= 2 * Tokens, "a thread looks up one row of K or of V");
  static constexpr unsigned kPools = KeyRing::kPools | ValueRing::kPools;
  // Tables are for the pools that there are.
  static constexpr int kTables = kPools == 3u ? 2 : kNumPools;

 public:
  struct Shared {
    int64_t rows[2][kTables][Tokens];               // [table][pool] addresses of rows, 0: none
    typename WorkIterator<Scheduler>::Place place;  // the work tile whose page ids are looked up, and how far that is
    bool is_done;
  };

  /// Source of rows for tile iterators: those of a table.
  struct Rows {
    const int64_t (&table)[kTables][Tokens];
    template <int Pool>
    KVIT_DEVICE const char* OffsetPtr(int s, int byte) const {
      const auto address = LoadShared<int64_t>(&table[Pool][s]);
      return address == 0 ? nullptr : reinterpret_cast<const char*>(address) + byte;
    }
  };

  /// All threads call, and `works` is where the CTA's range begins.
  KVIT_DEVICE RowTableLoader(const KvitDecodeParams& params, const Scheduler& scheduler, const CtaRange& range,
                             const WorkIterator<Scheduler>& works, KeyRing& keys, ValueRing& values, Shared& shared)
      : params_(params), scheduler_(scheduler), range_(range), mover_(params.cache, keys, values), shared_(shared) {
    if (ThreadIndex() == 0) Keep(works);
    Enter();
    FindRows(0);
    Advance();
    SyncThreads();
  }

  /// Whether some of the tokens that the next Prefetch, into ring slot `stage`, copies are the call's own.
  KVIT_DEVICE bool NextIsNew(int stage) const { return is_new_ >> stage & 1u; }

  /// Begins to copy the next tile, if there is one, which is that of stage `stage`; stages take turns, and all threads
  /// have left the one that is copied to.
  KVIT_DEVICE void Prefetch(int stage) {
    if (exists_ >> stage & 1u) {
      mover_.Load(Rows{shared_.rows[stage]}, stage);
    } else {
      mover_.Skip();
    }
    FindRows(1 - stage);
    Advance();
  }

  /// In front of a barrier of all threads, and behind it: then the tile that was copied is there for all.
  KVIT_DEVICE void Await() { mover_.Await(); }
  KVIT_DEVICE void Land() { mover_.Land(); }

  /// Whether this thread could not find a row of the tile in ring slot `stage`.
  KVIT_DEVICE bool Faulted(int stage) const { return has_faulted_ >> stage & 1u; }

 private:
  KVIT_DEVICE uint32_t Token() const { return uint32_t(tile_) * Tokens + uint32_t(ThreadIndex() % Tokens); }
  KVIT_DEVICE bool Holds() const {
    if (ThreadIndex() >= 2 * Tokens || tile_ >= end_ || Token() >= uint32_t(length_)) return false;
    return !Scheduler::kHasBegin || Token() >= uint32_t(first_key_);
  }

  // The row of this thread's token of the tile whose page id is here.
  KVIT_DEVICE void FindRows(int table) {
    const FastDivide page_of(params_.page_size);
    const bool holds = Holds();
    const uint32_t slot = page_of(Token());
    const FoundPage page = holds ? FindPage(params_.cache, page_) : FoundPage{{}, KVIT_FAULT_NONE};
    const bool is_found = holds && page.fault == KVIT_FAULT_NONE;
    const uint32_t token_in_page = Token() - slot * uint32_t(params_.cache.page_size);
    const auto find = [&](int pool) {
      const int64_t row = RowAddress(params_.cache.pool[pool], page.place, token_in_page, uint32_t(head_));
      StoreShared(&shared_.rows[table][pool][ThreadIndex() % Tokens], is_found ? row : int64_t(0));
    };
    if (ThreadIndex() < Tokens) {
      find(0);
      if constexpr (ContainsPool(KeyRing::kPools, 2)) find(2);
    } else if (ThreadIndex() < 2 * Tokens) {
      find(1);
      if constexpr (ContainsPool(ValueRing::kPools, 3)) find(3);
    }
    const bool is_bad = page.fault != KVIT_FAULT_NONE;
    if (is_bad) ReportFault(params_.fault, {page.fault, shared_.place.work.sequence, int32_t(slot), page_});
    Set(has_faulted_, table, is_bad);
    Set(exists_, table, tile_ < end_);
    Set(is_new_, table, (tile_ + 1) * Tokens > old_tokens_);
  }

  // To the next tile, and its page id.
  KVIT_DEVICE void Advance() {
    if (tile_ + 1 < end_) {
      ++tile_;
      ReadPage();
    } else if (tile_ < end_) {
      SyncThreads();  // nobody looks at the place any more
      if (ThreadIndex() == 0) {
        WorkIterator<Scheduler> works(scheduler_, params_.cache.num_kv_heads, range_, shared_.place);
        works.Next();
        Keep(works);
      }
      Enter();
    }
  }

  // Leaves the place of the first work tile from here on that has a tile to see, if there is one. One thread calls.
  KVIT_DEVICE void Keep(WorkIterator<Scheduler> works) {
    while (!works.Done()) {
      const TileRange visible = scheduler_.VisibleTiles(works.work());
      if (visible.first < visible.last) break;
      works.Next();
    }
    shared_.place = works.place();
    shared_.is_done = works.Done();
  }

  KVIT_DEVICE void Enter() {
    SyncThreads();
    tile_ = end_ = 0;
    if (shared_.is_done) return;
    const typename Scheduler::Work& work = shared_.place.work;
    const TileRange visible = scheduler_.VisibleTiles(work);
    tile_ = visible.first;
    end_ = visible.last;
    head_ = work.head;
    length_ = work.of.length;
    if constexpr (Scheduler::kHasBegin) first_key_ = scheduler_.FirstKey(work);
    old_tokens_ = work.of.OldTokens();
    pages_ = params_.table.pages + work.of.pages;
    ReadPage();
  }

  KVIT_DEVICE void ReadPage() {
    const FastDivide page_of(params_.page_size);
    if (Holds()) page_ = LoadGlobal<int32_t>(pages_ + page_of(Token()));
  }

  static KVIT_DEVICE void Set(uint32_t& bits, int bit, bool value) {
    bits = (bits & ~(1u << bit)) | uint32_t(value) << bit;
  }

  const KvitDecodeParams& params_;
  const Scheduler& scheduler_;
  const CtaRange& range_;
  Mover mover_;
  Shared& shared_;
  const int32_t* pages_ = nullptr;
  int tile_ = 0, end_ = 0;  // of the tile whose page id is looked up; tile_ == end_: none
  int head_ = 0, length_ = 0, old_tokens_ = 0;
  int first_key_ = 0;  // no row sees tokens before it, which need not be there
  int32_t page_ = 0;
  uint32_t exists_ = 0, is_new_ = 0, has_faulted_ = 0;  // bit: of a row table, and of the ring slot that it fills
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_ROW_TABLE_LOADER_CUH
