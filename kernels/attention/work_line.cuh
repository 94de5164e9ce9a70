// The line of work: every tile of every head of every sequence, one after the other, cut evenly over the grid
// (stream-K).
#ifndef KVIT_ATTENTION_WORK_LINE_CUH
#define KVIT_ATTENTION_WORK_LINE_CUH

#include <stdint.h>

#include "abi/params.h"
#include "cache/fault.cuh"
#include "cache/sequence_view.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// What a sequence asks for: `row_tiles` groups of query rows for each KV head, each over `tiles` tiles of keys.
struct SequenceWork {
  int length;       // keys
  int new_tokens;   // queries: the last `new_tokens` tokens of the sequence
  int first_token;  // of its queries, among all queries of the call
  int row_tiles;
  int tiles;  // at least 1, so that an empty sequence has somebody to write its zeros
  KvitFault fault;

  KVIT_DEVICE int64_t Units(int num_heads) const { return int64_t(row_tiles) * num_heads * tiles; }
};

/// A run of tiles [first, last) of one head, computed by one CTA in one go.
struct Piece {
  int sequence, head, row_tile;
  int first, last;
  int64_t head_begin;  // of the head's tile 0 on the line
  SequenceWork work;

  KVIT_DEVICE bool Begins() const { return first == 0; }
  KVIT_DEVICE bool Ends() const { return last == work.tiles; }
};

/// A CTA's share of the line.
struct Share {
  int64_t total;       // tiles on the line
  int64_t begin, end;  // [begin, end) are this CTA's
  int ctas;            // that have a share: never more than there are tiles
  int sequence;        // in which `begin` lies
  int64_t sequence_begin;

  /// The CTA whose share holds tile `unit`.
  KVIT_DEVICE int Owner(int64_t unit) const { return int(((unit + 1) * ctas + total - 1) / total) - 1; }
};

template <int Rows, int TileTokens, int Threads>
class WorkLine {
 public:
  static constexpr int kWarps = Threads / 32;
  struct Shared {
    int64_t warp_units[kWarps];
    int64_t sequence_begin;
    int sequence;
  };

  KVIT_DEVICE explicit WorkLine(const KvitDecodeParams& params)
      : params_(params), group_(params.num_query_heads / params.cache.num_kv_heads) {}

  KVIT_DEVICE int group() const { return group_; }

  KVIT_DEVICE SequenceWork View(int sequence) const {
    const SequenceView view = ViewSequence(params_.table, params_.cache.page_size, sequence);
    const KvitTokens& tokens = params_.tokens;
    SequenceWork work = {view.length, tokens.each, sequence * tokens.each, 0, 0, view.fault};
    if (tokens.indptr != nullptr) {
      const int begin = LoadGlobalReadOnly<int32_t>(tokens.indptr + sequence);
      const int end = LoadGlobalReadOnly<int32_t>(tokens.indptr + sequence + 1);
      const bool good = begin >= 0 && begin <= end && end <= tokens.total;
      if (!good) work.fault = {KVIT_FAULT_INDPTR, sequence, sequence, begin};
      work.first_token = begin;
      work.new_tokens = good ? end - begin : 0;
    }
    work.row_tiles = (work.new_tokens * group_ + Rows - 1) / Rows;
    work.tiles = Max(1, (work.length + TileTokens - 1) / TileTokens);
    return work;
  }

  /// Finds the calling CTA's share. All threads call; each looks at a run of consecutive sequences.
  KVIT_DEVICE Share Find(Shared& shared) const {
    const int num_sequences = params_.table.num_sequences, num_heads = params_.cache.num_kv_heads;
    const int run = (num_sequences + Threads - 1) / Threads;
    const int from = Min(ThreadIndex() * run, num_sequences), to = Min(from + run, num_sequences);
    int64_t units = 0;
    for (int sequence = from; sequence < to; ++sequence) {
      const SequenceWork work = View(sequence);
      units += work.Units(num_heads);
      // Without rows no CTA will come past this sequence again.
      if (work.fault.kind == KVIT_FAULT_INDPTR && BlockIndex() == 0) ReportFault(params_.fault, work.fault);
    }

    int64_t before = units;  // inclusive, then exclusive, sum over the threads up to this one
    for (int delta = 1; delta < 32; delta *= 2) {
      const int64_t lower = ShuffleUp(before, delta);
      if (LaneIndex() >= delta) before += lower;
    }
    if (LaneIndex() == 31) StoreShared(&shared.warp_units[WarpIndex()], before);
    SyncThreads();
    Share share = {};
    before -= units;
    KVIT_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      const auto warp_units = LoadShared<int64_t>(&shared.warp_units[warp]);
      if (warp < WarpIndex()) before += warp_units;
      share.total += warp_units;
    }
    share.ctas = int64_t(GridSize()) < share.total ? GridSize() : int(share.total);
    if (BlockIndex() >= share.ctas) return share;  // the whole CTA leaves together
    share.begin = share.total * BlockIndex() / share.ctas;
    share.end = share.total * (BlockIndex() + 1) / share.ctas;

    if (before <= share.begin && share.begin < before + units) {  // exactly one thread
      int sequence = from;
      for (int64_t next; (next = before + View(sequence).Units(num_heads)) <= share.begin; ++sequence) before = next;
      StoreShared(&shared.sequence, sequence);
      StoreShared(&shared.sequence_begin, before);
    }
    SyncThreads();
    share.sequence = LoadShared<int>(&shared.sequence);
    share.sequence_begin = LoadShared<int64_t>(&shared.sequence_begin);
    return share;
  }

  /// Keys that query row `row` of a row tile sees are those before this one; 0 or less: none.
  KVIT_DEVICE int KeyLimit(const Piece& piece, int row) const {
    if (!params_.causal) return piece.work.length;
    return piece.work.length - piece.work.new_tokens + (piece.row_tile * Rows + row) / group_ + 1;
  }

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
  const KvitDecodeParams& params_;
  int group_;
};

/// Walks a CTA's share, piece by piece.
///
///   unit = ((head * row_tiles) + row_tile) * tiles + tile     within a sequence: row tiles of a head share its keys in
///   L2
template <class Line>
class WorkCursor {
 public:
  KVIT_DEVICE WorkCursor(const Line& line, int num_heads, const Share& share)
      : line_(line), num_heads_(num_heads), position_(share.begin), end_(share.end) {
    piece_.sequence = share.sequence;
    piece_.work = line_.View(share.sequence);
    const int tiles = piece_.work.tiles, row_tiles = piece_.work.row_tiles;
    const int64_t within = share.begin - share.sequence_begin;
    const int head_and_rows = int(within / tiles);
    piece_.head = head_and_rows / row_tiles;
    piece_.row_tile = head_and_rows - piece_.head * row_tiles;
    Begin(int(within - int64_t(head_and_rows) * tiles));
  }

  KVIT_DEVICE bool Done() const { return position_ >= end_; }
  KVIT_DEVICE const Piece& piece() const { return piece_; }

  KVIT_DEVICE void Next() {
    position_ += piece_.last - piece_.first;
    if (Done()) return;
    if (++piece_.row_tile == piece_.work.row_tiles) {
      piece_.row_tile = 0;
      if (++piece_.head == num_heads_) {
        piece_.head = 0;
        do {
          piece_.work = line_.View(++piece_.sequence);
        } while (piece_.work.row_tiles == 0);
      }
    }
    Begin(0);
  }

 private:
  KVIT_DEVICE void Begin(int first) {
    const int64_t left = end_ - position_;
    piece_.first = first;
    piece_.last = left < piece_.work.tiles - first ? first + int(left) : piece_.work.tiles;
    piece_.head_begin = position_ - first;
  }

  const Line& line_;
  int num_heads_;
  int64_t position_, end_;
  Piece piece_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_WORK_LINE_CUH
