"""kernels/iterator/base.cuh: the part of an iterator that no probe calls."""

import numpy as np

from kvit.iterators import GmemIterator, kv_layout, kv_thread_map

# Four warps, 4-bit codes, 32 tokens: two of the warps have none and must write nothing.
CLEAR_ONE_SLOT = """
  using Layout = KvLayout<Uint4, 64, 32>;
  Sm80GmemIterator<Uint4, KvThreadMap<Uint4, 64, 32, 4>, Layout, 0> iterator;  // of this thread
  iterator.SetSmem(PointTo<Uint4>(shared));
  iterator.ClearSmem(1);
  SyncThreads();
  for (int i = ThreadIndex(); i < kSharedBytes; i += kThreads) {
    StoreGlobal(params.output + i, LoadShared<uint8_t>(shared + i));
  }
"""


def test_clear_smem_zeroes_its_ring_slot_and_nothing_else(host_programs):
    iterator = GmemIterator(kv_thread_map(4, 64, 32, 4), kv_layout(4, 64, 32), 4)
    outcome = host_programs.run(
        CLEAR_ONE_SLOT,
        threads=128,
        shared_bytes=3 * iterator.tile_bytes,
        output_bytes=3 * iterator.tile_bytes,
        includes='#include "iterator/sm80.cuh"\n#include "layout/kv_layout.cuh"',
    )
    assert not outcome.error
    slots = np.frombuffer(outcome.output, np.uint8).reshape(3, -1)
    assert (slots[1] == 0).all()
    assert (slots[[0, 2]] == 0xFF).all()  # as the backend poisons them
