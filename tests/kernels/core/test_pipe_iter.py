"""kernels/core/pipe_iter.cuh: the ring of pipeline stages."""

import pytest

HEADERS = ["core/pipe_iter.cuh"]


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_the_slot_just_read_is_the_next_to_be_written(cxx, stages):
    body = f"""
      PipeIter<{stages}> pipe;
      for (int i = 0; i < 12; ++i, ++pipe) printf("%d %d ", pipe.read(), pipe.write());
    """
    walked = cxx.numbers(HEADERS, body)
    assert walked[0::2] == [step % stages for step in range(12)]
    assert walked[1::2] == [(step - 1) % stages for step in range(12)]


def test_a_ring_without_slots_is_refused(cxx):
    assert "a pipeline has at least one stage" in cxx.refusal(HEADERS, "PipeIter<0> pipe;")
