"""kernels/pipeline/stage_barriers.cuh: a warp fills slots for others, and nobody reads or writes too early."""

import numpy as np
import pytest

STAGES, TILES, CONSUMERS = 3, 20, 2

# Warp 0 writes tile after tile into the ring, the others read all of them, each at its own pace. Every consumer counts
# what it reads wrong, and the producer the tiles that it writes over before all have left them.
RING = """
  struct Ring {{
    StageBarriers<{stages}> barriers;
    uint32_t tiles[{stages}][32];
  }};
  static_assert(sizeof(Ring) <= kSharedBytes);
  auto& ring = *reinterpret_cast<Ring*>(shared);
  if (ThreadIndex() == 0) ring.barriers.Init({consumers});
  SyncThreads();
  const int lane = LaneIndex(), consumer = WarpIndex() - 1;
  int wrong = 0;
  for (int tile = 0; tile < {tiles}; ++tile) {{
    const int stage = tile % {stages};
    const uint32_t round = tile / {stages};
    if (consumer < 0) {{
      {wait_free}
      for (int i = 0; i < {consumers}; ++i) wrong += __atomic_load_n(&left[i], __ATOMIC_RELAXED) <= tile - {stages};
      StoreShared(&ring.tiles[stage][lane], uint32_t(tile * 32 + lane));
      SyncWarp();
      {expect}
    }} else {{
      {wait_full}
      wrong += LoadShared<uint32_t>(&ring.tiles[stage][(lane + tile) % 32]) != uint32_t(tile * 32 + (lane + tile) % 32);
      for (int i = 0; i < (tile * 7 + consumer * 5) % 4; ++i) Pause();
      SyncWarp();
      if (lane == 0) {{
        __atomic_store_n(&left[consumer], tile + 1, __ATOMIC_RELAXED);
        ring.barriers.Release(stage);
      }}
    }}
  }}
  SyncThreads();
  StoreGlobal(params.output + 4 * ThreadIndex(), wrong);
"""
RIGHT = {
    "wait_free": "ring.barriers.WaitFree(stage, round);",
    "expect": "if (lane == 0) ring.barriers.Expect(stage, 0);",
    "wait_full": "ring.barriers.WaitFull(stage, round);",
}
THREADS = 32 * (1 + CONSUMERS)


def run(host_programs, scheduler, sanitize=False, stages=STAGES, **changes):
    body = RING.format(stages=stages, consumers=CONSUMERS, tiles=TILES, **{**RIGHT, **changes})
    return host_programs.run(
        body,
        scheduler=scheduler,
        sanitize=sanitize,
        threads=THREADS,
        output_bytes=4 * THREADS,
        includes=f'#include "pipeline/stage_barriers.cuh"\nint left[{CONSUMERS}];',
    )


@pytest.mark.parametrize("scheduler", ["fibers", "threads"])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_what_is_read_is_what_was_written_and_nobody_overtakes(host_programs, stages, scheduler):
    outcome = run(host_programs, scheduler, stages=stages)
    assert not outcome.error
    assert not np.frombuffer(outcome.output, np.int32).any()


def test_its_barriers_order_all_accesses(host_programs):
    outcome = run(host_programs, "threads", sanitize=True)
    assert not outcome.race and not outcome.error
    assert not np.frombuffer(outcome.output, np.int32).any()


def test_a_consumer_that_does_not_wait_is_seen(host_programs):
    # That the tests above can fail. Without WaitFree they fail too, but the ring's parities no longer fit then, and
    # warps wait for ever, which takes the host minutes to say.
    outcome = run(host_programs, "fibers", wait_full="")
    assert not outcome.error
    assert np.frombuffer(outcome.output, np.int32).any()
