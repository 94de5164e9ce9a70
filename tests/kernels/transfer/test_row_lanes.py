"""kernels/transfer/row_lanes.cuh: every vec8 of a row is in one lane, and the two channels of a rotary pair are too."""

import pytest

HEADERS = ["transfer/row_lanes.cuh"]


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_every_octet_has_one_lane_and_rotary_pairs_meet_in_it(cxx, head_dim):
    lanes = head_dim // 16
    body = f"""
      using Lanes = RowLanes<{head_dim}>;
      for (int rotary = 0; rotary <= Lanes::kLanesPerRow; ++rotary) {{
        for (int lane = 0; lane < Lanes::kLanesPerRow; ++lane) {{
          const Vec8Pair vec8s = Lanes::Vec8s(lane, rotary);
          printf("%d %d ", vec8s.first, vec8s.second);
        }}
      }}
    """
    numbers = iter(cxx.numbers(HEADERS, body))
    for rotary in range(lanes + 1):
        vec8s = [(next(numbers), next(numbers)) for _ in range(lanes)]
        assert sorted(vec8 for pair in vec8s for vec8 in pair) == list(range(2 * lanes))
        for lane, (first, second) in enumerate(vec8s):
            # Channels i and i + rotary_dim / 2 turn together: vec8s rotary_dim / 16 apart, below rotary_dim.
            assert (second - first == rotary and second < 2 * rotary) == (lane < rotary) or rotary == 0
        for column in (0, 1):  # neighbours of neighbours, but where the rotary part ends
            steps = [b[column] - a[column] for a, b in zip(vec8s, vec8s[1:], strict=False)]
            assert all(step == 1 for lane, step in enumerate(steps, 1) if lane != rotary)


def test_rows_of_a_warp_follow_each_other(cxx):
    body = """
      printf("%d %d ", RowLanes<64>::kRowsPerWarp, RowLanes<256>::kRowsPerWarp);
      for (int lane = 0; lane < 32; ++lane) printf("%d %d ", RowLanes<128>::Row(lane), RowLanes<128>::LaneOfRow(lane));
    """
    expected = [8, 2] + [number for lane in range(32) for number in (lane // 8, lane % 8)]
    assert cxx.numbers(HEADERS, body) == expected
