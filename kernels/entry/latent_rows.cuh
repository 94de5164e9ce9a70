// Family `latent_rows`: attention over latent rows (MLA) in 8 bits, as engines store them, for every GPU with matrix
// instructions on bfloat16.
#ifndef KVIT_ENTRY_LATENT_ROWS_CUH
#define KVIT_ENTRY_LATENT_ROWS_CUH

#include "attention/variant.cuh"
#include "entry/decode.cuh"
#include "pipeline/latent_rows_pipe.cuh"
#include "quant/latent_codec.cuh"

namespace kvit {

/// The general decode kernel. Two CTAs of two warps, so that rings and outputs of two fit an SM of 164 KB.
template <class T, LatentCodec Codec, int Rows, class Variant>
using LatentRowsKernel =
    DecodeKernel<T, Plain, Plain, typename Codec::Dims, Rows, LatentCopies<Codec>, Variant, TileShape<2, 16, 1, 2>>;

}  // namespace kvit

#endif  // KVIT_ENTRY_LATENT_ROWS_CUH
