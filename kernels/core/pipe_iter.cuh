// The ring of pipeline stages: which slot is read now, and which is free to be filled.
#ifndef KVIT_CORE_PIPE_ITER_CUH
#define KVIT_CORE_PIPE_ITER_CUH

#include "core/macros.h"

namespace kvit {

/// Walks a ring of Stages slots. The slot just read becomes the slot to write:
///
///   Stages = 3   step    0  1  2  3
///                read    0  1  2  0
///                write   2  0  1  2
template <int Stages>
class PipeIter {
 public:
  static_assert(Stages > 0, "a pipeline has at least one stage");

  constexpr KVIT_HD int read() const { return read_; }
  constexpr KVIT_HD int write() const { return write_; }

  constexpr KVIT_HD PipeIter& operator++() {
    write_ = read_;
    read_ = read_ + 1 == Stages ? 0 : read_ + 1;
    return *this;
  }

 private:
  int read_ = 0;
  int write_ = Stages - 1;
};

}  // namespace kvit

#endif  // KVIT_CORE_PIPE_ITER_CUH
