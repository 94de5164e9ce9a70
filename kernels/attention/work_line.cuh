// The lines of work: every unit of every head of every sequence, one after the other, cut evenly over the grid. A unit
// is a tile (stream-K), or a split: tiles that are computed together whatever the batch.
//
// There are params.strands such lines, the strands: strand l has the heads and the CTAs whose numbers leave l when
// divided by that. Neighbouring CTAs then read neighbouring heads of the same tokens, at much the same time.
//
//   2 strands, 4 heads   0   sequence 0 head 0, head 2, sequence 1 head 0, ...   cut over CTAs 0, 2, 4, ...
//                        1   sequence 0 head 1, head 3, sequence 1 head 1, ...   cut over CTAs 1, 3, 5, ...
#ifndef KVIT_ATTENTION_WORK_LINE_CUH
#define KVIT_ATTENTION_WORK_LINE_CUH

#include <stdint.h>

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "cache/sequence_view.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// A head has at most 2^kSplitLevels splits.
inline constexpr int kSplitLevels = 10;

/// What a sequence asks for: `row_tiles` groups of query rows for each KV head, each over `tiles` tiles of keys.
struct SequenceWork {
  int length;       // keys
  int new_tokens;   // queries: the last `new_tokens` tokens of the sequence
  int first_token;  // of its queries, among all queries of the call
  int row_tiles;
  int tiles;      // at least 1, so that an empty sequence has somebody to write its zeros
  int64_t pages;  // where its page ids begin in the table
  bool is_bad;    // the table describes it wrongly: its outputs are NaN
};

/// A run of tiles [first, last) of one head, computed by one CTA in one go.
struct Piece {
  int sequence, head, row_tile;
  int first, last;
  int64_t head_begin;  // of the head's unit 0 on the line
  SequenceWork work;

  KVIT_DEVICE bool Begins() const { return first == 0; }
  KVIT_DEVICE bool Ends() const { return last == work.tiles; }
};

/// a / b for b >= 1, by a short division wherever a allows it: nearly always.
KVIT_DEVICE int64_t Divide(int64_t a, int b) { return a >> 32 == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b; }

/// A CTA's share of its line, whose CTAs are counted from 0: the first total % ctas have a unit more than the others.
struct Share {
  int cta;             // this one
  int strands;         // of the launch
  int64_t total;       // units on the line
  int64_t begin, end;  // [begin, end) are this CTA's
  int64_t least;       // units of every CTA
  int longer;          // CTAs with one more
  int ctas;            // that have a share: never more than there are units
  int sequence;        // in which `begin` lies
  int64_t sequence_begin;
  SequenceWork work;  // of that sequence

  /// Its number in the grid.
  KVIT_DEVICE int BlockOf(int other) const { return BlockIndex() + (other - cta) * strands; }
  KVIT_DEVICE int64_t BeginOf(int cta) const { return least * cta + Min(cta, longer); }
  /// The CTA whose share holds `unit`.
  KVIT_DEVICE int Owner(int64_t unit) const {
    const int64_t in_longer = (least + 1) * longer;
    return unit < in_longer ? int(Divide(unit, int(least + 1))) : longer + int(Divide(unit - in_longer, int(least)));
  }
};

template <int Rows, int TileTokens, int Threads>
class WorkLine {
 public:
  static constexpr int kWarps = Threads / 32;
  static constexpr int kTileTokens = TileTokens;
  struct Shared {
    int64_t warp_units[kWarps];
    int64_t sequence_begin;
    int sequence;
  };

  KVIT_DEVICE explicit WorkLine(const KvitDecodeParams& params)
      : params_(params),
        by_group_(params.group),
        group_(params.num_query_heads / params.cache.num_kv_heads),
        heads_(params.cache.num_kv_heads / params.strands) {}

  KVIT_DEVICE int strands() const { return params_.strands; }

  /// Query heads of a KV head, and where a query row lies: row r of a sequence is token r / group, head r % group.
  KVIT_DEVICE int group() const { return group_; }
  KVIT_DEVICE int TokenOf(int row) const { return int(by_group_(uint32_t(row))); }

  /// Whether heads are cut where params.split_tiles says, and not where shares end.
  KVIT_DEVICE bool IsSplit() const { return params_.split_tiles != 0; }

  /// Tiles of a split of a head of `tiles`: split_tiles, doubled until there are no more splits than the levels of a
  /// tree have room for. Only where IsSplit().
  KVIT_DEVICE int SplitOf(int tiles) const {
    int split = params_.split_tiles;
    while ((tiles - 1) >> kSplitLevels >= split) split *= 2;
    return split;
  }

  /// Units of a head of `tiles`.
  KVIT_DEVICE int HeadUnits(int tiles) const { return IsSplit() ? (tiles - 1) / SplitOf(tiles) + 1 : tiles; }

  /// Where `report` is set, says what is wrong.
  KVIT_DEVICE SequenceWork View(int sequence, bool report = false) const {
    const SequenceView view = ViewSequence(params_.table, params_.cache.page_size, sequence);
    const KvitTokens& tokens = params_.tokens;
    KvitFault fault = view.fault;
    int first_token = sequence * tokens.each, new_tokens = tokens.each;
    if (tokens.indptr != nullptr) {
      const int begin = LoadGlobal<int32_t>(tokens.indptr + sequence);
      const int end = LoadGlobal<int32_t>(tokens.indptr + sequence + 1);
      const bool good = begin >= 0 && begin <= end && end <= tokens.total;
      if (!good) fault = {KVIT_FAULT_INDPTR, sequence, sequence, begin};
      first_token = begin;
      new_tokens = good ? end - begin : 0;
    }
    const bool is_bad = fault.kind != KVIT_FAULT_NONE;
    if (report && is_bad) ReportFault(params_.fault, fault);
    return {view.length,
            new_tokens,
            first_token,
            (new_tokens * group_ + Rows - 1) / Rows,
            Max(1, (view.length + TileTokens - 1) / TileTokens),
            view.begin,
            is_bad};
  }

  /// Finds the calling CTA's share. All threads call.
  KVIT_DEVICE Share Find(Shared& shared) const {
    return params_.table.num_sequences <= 32 ? FindInWarp() : FindInCta(shared);
  }

  /// Keys that query row `row` of a row tile sees are those before this one; 0 or less: none.
  KVIT_DEVICE int KeyLimit(const Piece& piece, int row) const {
    if (!params_.causal || piece.work.new_tokens == 1) return piece.work.length;
    return piece.work.length - piece.work.new_tokens + TokenOf(piece.row_tile * Rows + row) + 1;
  }

  /// Tokens of a piece's sequence that were in the cache before the call's new ones.
  KVIT_DEVICE static int OldTokens(const Piece& piece) { return piece.work.length - piece.work.new_tokens; }

  /// Query rows of a row tile: the last of a sequence may have fewer.
  KVIT_DEVICE int NumRows(const Piece& piece) const {
    return Min(Rows, piece.work.new_tokens * group_ - piece.row_tile * Rows);
  }

  /// End of the tiles of a piece that any of its rows sees: the rest are on the line, but cost nothing.
  KVIT_DEVICE int VisibleEnd(const Piece& piece) const {
    const int limit = Min(KeyLimit(piece, NumRows(piece) - 1), piece.work.length);
    return Min(piece.last, limit <= 0 ? 0 : (limit + TileTokens - 1) / TileTokens);
  }

 private:
  // Each warp for itself, a lane for each sequence. Of one sequence, all lanes know all there is to know.
  KVIT_DEVICE Share FindInWarp() const {
    const int sequences = params_.table.num_sequences, sequence = sequences == 1 ? 0 : LaneIndex();
    SequenceWork work = {};
    if (sequence < sequences) work = View(sequence, BlockIndex() == 0);
    const int64_t units = UnitsOf(work);
    const int64_t through = sequences == 1 ? units : SumUpToLane(units);
    Share share = Cut(Shuffle(through, 31));
    const int64_t before = through - units;
    const uint32_t holders = Ballot(before <= share.begin && share.begin < through);  // none without a share
    const int holder = holders == 0 ? 0 : LowestBit(holders);
    share.sequence = Shuffle(sequence, holder);
    share.sequence_begin = Shuffle(before, holder);
    share.work = {Shuffle(work.length, holder),          Shuffle(work.new_tokens, holder),
                  Shuffle(work.first_token, holder),     Shuffle(work.row_tiles, holder),
                  Shuffle(work.tiles, holder),           Shuffle(work.pages, holder),
                  Shuffle(int(work.is_bad), holder) != 0};
    return share;
  }

  // Each thread looks at a run of consecutive sequences, twice: at first for its units alone.
  KVIT_DEVICE Share FindInCta(Shared& shared) const {
    const int num_sequences = params_.table.num_sequences;
    const int run = (num_sequences + Threads - 1) / Threads;
    const int from = Min(ThreadIndex() * run, num_sequences), to = Min(from + run, num_sequences);
    Share share = {};
    int64_t before = 0;  // units before `sequence`
    int sequence = from;
    for (bool is_cut = false;; is_cut = true) {
      for (sequence = from; sequence < to; ++sequence) {
        const int64_t units = UnitsOf(View(sequence, BlockIndex() == 0 && !is_cut));
        if (is_cut && share.begin < before + units) break;
        before += units;
      }
      if (is_cut) break;
      const int64_t units = before;
      before = SumUpToLane(units);
      if (LaneIndex() == 31) StoreShared(&shared.warp_units[WarpIndex()], before);
      SyncThreads();
      int64_t total = 0;
      before -= units;
      KVIT_UNROLL
      for (int warp = 0; warp < kWarps; ++warp) {
        const auto warp_units = LoadShared<int64_t>(&shared.warp_units[warp]);
        if (warp < WarpIndex()) before += warp_units;
        total += warp_units;
      }
      share = Cut(total);
      if (share.cta >= share.ctas) return share;  // the whole CTA leaves together
    }
    if (sequence < to && before <= share.begin) {  // exactly one thread
      StoreShared(&shared.sequence, sequence);
      StoreShared(&shared.sequence_begin, before);
    }
    SyncThreads();
    share.sequence = LoadShared<int>(&shared.sequence);
    share.sequence_begin = LoadShared<int64_t>(&shared.sequence_begin);
    share.work = View(share.sequence);
    return share;
  }

  KVIT_DEVICE int64_t UnitsOf(const SequenceWork& work) const {
    return work.row_tiles == 0 ? 0 : int64_t(work.row_tiles) * heads_ * HeadUnits(work.tiles);
  }

  static KVIT_DEVICE int64_t SumUpToLane(int64_t x) {
    KVIT_UNROLL
    for (int delta = 1; delta < 32; delta *= 2) {
      const int64_t lower = ShuffleUp(x, delta);
      if (LaneIndex() >= delta) x += lower;
    }
    return x;
  }

  KVIT_DEVICE Share Cut(int64_t total) const {
    Share share = {};
    const int ctas = GridSize() / strands();
    share.cta = BlockIndex() / strands();
    share.strands = strands();
    share.total = total;
    share.ctas = int64_t(ctas) < total ? ctas : int(total);
    if (share.ctas == 0) return share;
    share.least = Divide(total, share.ctas);
    share.longer = int(total - share.least * share.ctas);
    share.begin = share.BeginOf(share.cta);
    share.end = share.BeginOf(share.cta + 1);
    return share;
  }

  const KvitDecodeParams& params_;
  FastDivide by_group_;
  int group_, heads_;  // heads_: KV heads of a line
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_WORK_LINE_CUH
