// What a lane has of scores and of outputs where a warp has query rows to itself.
#ifndef KVIT_ATTENTION_BLOCK_FRAGMENT_CUH
#define KVIT_ATTENTION_BLOCK_FRAGMENT_CUH

namespace kvit {

/// A lane's part of a [16 rows, 16 columns] block of S, or of a tile of O: [half][row h * 2 + j].
using BlockFragment = float[2][4];

}  // namespace kvit

#endif  // KVIT_ATTENTION_BLOCK_FRAGMENT_CUH
