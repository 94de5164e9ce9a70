// What a query sees where a window, chunks, spans or a tree of new tokens decide: the mask of variant `general`.
#ifndef KVIT_ATTENTION_GENERAL_MASK_CUH
#define KVIT_ATTENTION_GENERAL_MASK_CUH

#include <stdint.h>

#include "abi/params.h"
#include "core/bits.h"
#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/row_tiles.cuh"  // and FastDivide
#include "schedule/work_tile.cuh"

namespace kvit {

/// The keys that a query sees: of a range all, or where its sequence's new tokens are a tree, of the new ones those
/// whose bit is set and which the range's begin, a position, is not behind.
///
///   tree   0 - 1 - 3        bits of 3: 0, 1, 3      positions of 0, 1, 3, as 3 sees them: old, old + 1, old + 2
///            \ 2 - 4        bits of 4: 0, 2, 4      positions of 0, 2, 4:                  old, old + 1, old + 2
struct KeySet {
  static constexpr int kNoTree = 0x7fffffff;

  KeyRange range;
  int position;  // of the query
  int tree;      // key of bit 0; kNoTree: no key has a bit
  uint64_t bits[2];

  KVIT_HD uint64_t BitsBelow(int i, int word) const {
    const int count = i - 64 * word;
    return count <= 0 ? 0 : count >= 64 ? bits[word] : bits[word] & ((uint64_t(1) << count) - 1);
  }
  /// Where a key that it sees stands in the sequence.
  KVIT_HD int PositionOf(int key) const {
    if (key < tree) return key;
    return tree + CountBits(BitsBelow(key - tree, 0)) + CountBits(BitsBelow(key - tree, 1));
  }
  KVIT_HD bool Has(int key) const {
    if (key < range.begin || key >= range.end) return false;
    if (key < tree) return true;
    const int i = key - tree;
    return ((i < 64 ? bits[0] : bits[1]) >> (i & 63) & 1) != 0 && PositionOf(key) >= range.begin;
  }
  /// A bit for each of the keys [key, key + 32) that it has.
  KVIT_HD uint32_t Word(int key) const {
    const uint32_t in_range = OnesBelow(range.end - key) & ~OnesBelow(range.begin - key);
    return tree - key >= 32 ? in_range : in_range & TreeWord(key - tree);
  }
  /// Where the first of the keys from `key` on stands that it sees: the others follow it one by one.
  KVIT_HD int PositionFrom(int key) const { return Max(range.begin, PositionOf(key)); }
  /// A range of keys all of which it has.
  KVIT_HD KeyRange Whole() const { return {range.begin, Min(range.end, tree)}; }
  /// Whether keys before `end` have the same positions in another of the same sequence.
  KVIT_HD bool HasPositionsOf(const KeySet& other, int end) const {
    return end <= tree || (bits[0] == other.bits[0] && bits[1] == other.bits[1]);
  }

 private:
  // Bits [i, i + 32) of the tree, those without the first ones that the range's begin is behind; ones below bit 0.
  KVIT_HD uint32_t TreeWord(int i) const {
    uint64_t low = bits[0], high = bits[1];
    KVIT_ROLLED
    for (int behind = range.begin - tree; behind > 0; --behind) {
      high = low == 0 ? high & (high - 1) : high;
      low &= low - 1;
    }
    if (i < 0) return uint32_t(low << -i) | OnesBelow(-i);
    if (i >= 64) return i >= 128 ? 0u : uint32_t(high >> (i - 64));
    return uint32_t(low >> i) | (i > 32 ? uint32_t(high << (64 - i)) : 0u);
  }
};

/// Everything that KvitGeneral says of masks, together: causal or full, a window, chunks, and what a span adds; or of
/// the new tokens a tree. docs/attention.md defines it, and kvit/reference/visible.py.
class GeneralMask {
 public:
  static constexpr bool kHasBegin = true;

  template <class Params>
  KVIT_HD explicit GeneralMask(const Params& params) : general_(params.general), causal_(params.causal) {}

  KVIT_DEVICE KeySet Set(const SequenceWork& work, int token) const {
    const int old = work.OldTokens();
    KeySet set = {{0, work.length}, old + token, KeySet::kNoTree, {0, 0}};
    const bool is_tree = IsTree(work);
    if (is_tree) {
      set.tree = old;
      set.bits[0] = WordOf(work, token, 0);
      set.bits[1] = WordOf(work, token, 1);
      set.position = old + Depth(set.bits[0], set.bits[1]);
    } else {
      set.range.end = EndOf(set.position, work.length);
    }
    set.range.begin = BeginOf(set.position);
    if (general_.spans != nullptr && !is_tree) {
      set.range = WithSpan(set.range, set.position, work.first_token + token, work.length);
    }
    return set;
  }

  /// Where a query stands.
  KVIT_DEVICE int PositionOf(const SequenceWork& work, int token) const {
    const bool is_tree = IsTree(work);
    return work.OldTokens() + (is_tree ? Depth(WordOf(work, token, 0), WordOf(work, token, 1)) : token);
  }

  KVIT_DEVICE KeyRange Visible(const SequenceWork& work, int token) const { return Set(work, token).range; }

  /// What several tokens of a sequence see. Where its new tokens are a tree, nobody looks at it for this: the answer is
  /// that for any tree.
  class Keys {
   public:
    KVIT_DEVICE Keys(const GeneralMask& mask, const SequenceWork& work)
        : mask_(mask), length_(work.length), old_(work.OldTokens()), first_token_(work.first_token) {
      if (mask.IsTree(work)) tree_tokens_ = work.new_tokens;
    }

    /// A range around what any of the tokens [from, to] sees: the least one, but for trees.
    KVIT_DEVICE KeyRange Union(int from, int to) const {
      if (tree_tokens_ > 0) return {mask_.BeginOf(old_), length_};
      KeyRange keys = {mask_.BeginOf(old_ + from), mask_.EndOf(old_ + to, length_)};
      if (mask_.general_.spans != nullptr) {  // those of the tokens between lie between
        keys.begin = mask_.WithSpan(keys, old_ + from, first_token_ + from, length_).begin;
        keys.end = mask_.WithSpan(keys, old_ + to, first_token_ + to, length_).end;
      }
      return keys;
    }
    /// A range that all of them see: the largest one, spans and trees apart.
    KVIT_DEVICE KeyRange Common(int from, int to) const {
      if (tree_tokens_ > 0) return {mask_.BeginOf(old_ + tree_tokens_ - 1), old_};
      return {mask_.BeginOf(old_ + to), mask_.EndOf(old_ + from, length_)};
    }

   private:
    const GeneralMask& mask_;
    int length_, old_, first_token_;
    int tree_tokens_ = 0;  // new tokens, where they are a tree
  };
  KVIT_DEVICE Keys Of(const SequenceWork& work) const { return {*this, work}; }
  KVIT_DEVICE KeyRange LastUnion(const SequenceWork& work, int from) const {
    return Of(work).Union(from, work.new_tokens - 1);
  }

 private:
  KVIT_DEVICE bool IsTree(const SequenceWork& work) const {
    return general_.trees != nullptr && work.new_tokens <= 64 * general_.tree_words && work.OldTokens() >= 0;
  }

  KVIT_DEVICE uint64_t WordOf(const SequenceWork& work, int token, int word) const {
    const int count = work.new_tokens - 64 * word;  // that have a bit in the word: others say nothing
    if (word >= general_.tree_words || count <= 0) return 0;
    const uint64_t* at = general_.trees + int64_t(work.first_token + token) * general_.tree_words + word;
    return LoadGlobal<uint64_t>(at) & (~uint64_t(0) >> Max(64 - count, 0));
  }
  // Of a query in a tree, below the old tokens.
  static KVIT_DEVICE int Depth(uint64_t low, uint64_t high) { return Max(CountBits(low) + CountBits(high) - 1, 0); }

  // What a query at a position sees, trees and spans apart. In a tree no key that it sees is behind it.
  KVIT_DEVICE int BeginOf(int position) const {
    int begin = 0;  // of a position before the sequence too
    if (general_.window_left != 0 && general_.window_left <= position) begin = position - general_.window_left + 1;
    return general_.chunk == 0 ? begin : Max(begin, ChunkOf(position));
  }
  KVIT_DEVICE int EndOf(int position, int length) const {
    int end = causal_ != 0 ? Min(position + 1, length) : length;
    if (general_.window_right != 0 && general_.window_right < end - position) end = position + general_.window_right;
    if (general_.chunk == 0) return end;
    if (position < 0) return 0;
    const int begin = ChunkOf(position);
    return general_.chunk < end - begin ? begin + general_.chunk : end;
  }
  // Where the chunk of a position begins; 0 of one before the sequence.
  KVIT_DEVICE int ChunkOf(int position) const {
    return int(FastDivide(general_.by_chunk)(uint32_t(Max(0, position)))) * general_.chunk;
  }

  // With the span of a query, row `row` of the call, if its position lies there.
  KVIT_DEVICE KeyRange WithSpan(const KeyRange& keys, int position, int row, int length) const {
    const int32_t* at = general_.spans + int64_t(row) * 2;
    const int begin = LoadGlobal<int32_t>(at), end = LoadGlobal<int32_t>(at + 1);
    if (position < Max(0, begin) || position >= end) return keys;
    return {Min(keys.begin, Max(0, begin)), Max(keys.end, Min(end, length))};
  }

  const KvitGeneral& general_;
  const int32_t& causal_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GENERAL_MASK_CUH
