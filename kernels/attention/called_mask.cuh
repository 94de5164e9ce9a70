// The mask of kernels that ask it in many places: one copy of its code, which is called.
#ifndef KVIT_ATTENTION_CALLED_MASK_CUH
#define KVIT_ATTENTION_CALLED_MASK_CUH

#include "attention/general_mask.cuh"
#include "attention/mask.cuh"
#include "schedule/work_tile.cuh"

#ifdef __CUDACC__
#define KVIT_CALLED __device__ __noinline__  // KVIT_DEVICE, but a function of its own
#else
#define KVIT_CALLED inline
#endif

namespace kvit {

/// What is asked once a tile or less often, and long, is no part of whoever asks: it takes fewer registers of them, and
/// less time to compile. Not for kernels of warp groups: a call would end what the matrix unit has under way.
template <class Mask>
class CalledMask : public Mask {
 public:
  using Mask::Mask;
};

template <>
class CalledMask<GeneralMask> : public GeneralMask {
 public:
  using GeneralMask::GeneralMask;

  KVIT_CALLED KeySet Set(const SequenceWork& work, int token) const { return GeneralMask::Set(work, token); }

  class Keys : public GeneralMask::Keys {
   public:
    KVIT_DEVICE explicit Keys(const GeneralMask::Keys& keys) : GeneralMask::Keys(keys) {}
    KVIT_CALLED KeyRange Union(int from, int to) const { return GeneralMask::Keys::Union(from, to); }
    KVIT_CALLED KeyRange Common(int from, int to) const { return GeneralMask::Keys::Common(from, to); }
  };
  KVIT_DEVICE Keys Of(const SequenceWork& work) const { return Keys(GeneralMask::Of(work)); }
  KVIT_DEVICE KeyRange LastUnion(const SequenceWork& work, int from) const {
    return Of(work).Union(from, work.new_tokens - 1);
  }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_CALLED_MASK_CUH
