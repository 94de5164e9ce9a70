"""kernels/transfer/rotation.cuh: the bits of kvit.reference's rotation, at every position."""

import numpy as np
import pytest

from kvit import reference
from kvit.reference.rope import default_frequencies
from support.host_program import ALL_MEMORY

POSITIONS = [0, 1, 2, 17, 1000, 4095, 131071, 10**6, 2**24 + 1, 2**31 - 1, -1, -(2**31)]

ANGLES = """
  for (int i = ThreadIndex(); i < int(std::size(phases)); i += kThreads) {{
    const RotaryAngle angle = AngleOf(LoadGlobal<uint32_t>(phases + i));
    StoreGlobal(params.output + 8 * i, Array<float, 2>{{angle.cosine, angle.sine}});
  }}
"""


def test_angles_have_the_bits_of_the_reference(host_programs, rng):
    # All eighths of a turn, where sine and cosine change places and signs, and what lies beside them.
    eighths = (np.arange(8, dtype=np.int64) << 29)[:, None] + np.arange(-3, 4)
    phases = np.concatenate([(eighths.ravel() % 2**32).astype(np.uint32), rng.integers(0, 2**32, 2000, np.uint32)])
    outcome = host_programs.run(
        ANGLES.format(),
        output_bytes=8 * len(phases),
        includes=f"""#include <iterator>
            #include "transfer/rotation.cuh"
            const uint32_t phases[] = {{{", ".join(f"{phase}u" for phase in phases)}}};""",
        spans=f"{ALL_MEMORY}, {{phases, sizeof phases, 0, 0}}",
    )
    assert not outcome.error
    cosine, sine = reference.cosine_and_sine(phases)
    found = np.frombuffer(outcome.output, np.uint32).reshape(-1, 2)
    np.testing.assert_array_equal(found, np.stack([cosine, sine], axis=1).view(np.uint32))
    turns = phases / 2.0**32 * 2 * np.pi
    assert np.abs(cosine - np.cos(turns)).max() < 1.3e-7 and np.abs(sine - np.sin(turns)).max() < 1.3e-7


# One row of all positions, by the lanes that RowLanes deals its rotary part to. The second half moves on step by step.
ROTATE = """
  const KvitRope rope = {{steps, nullptr, {factor}f, {rotary_dim}, {interleaved}, 0}};
  RotaryAngles<{head_dim}> angles(rope, shared);
  const auto steps_of_lane = angles.LoadSteps();
  for (int i = 0; i < {count}; ++i) {{
    const int position = LoadGlobal<int32_t>(positions + i);
    if (i % 2 == 0) {{
      SyncWarp();
      angles.MoveTo(position, steps_of_lane);
    }} else {{
      angles.MoveTo(position);
      angles.MoveTo(position);  // it is there already
    }}
    const int lane = LaneIndex();
    if (lane < {rotary_dim} / 16) {{
      const float* const row = rows + i * {rotary_dim};
      const int at[] = {{lane, {rotary_dim} / 16 + lane}};
      Vec8 parts[2];
      for (int part = 0; part < 2; ++part)
        for (int c = 0; c < 8; ++c) parts[part][c] = LoadGlobal<float>(row + at[part] * 8 + c);
      angles.Apply(lane, parts[0], parts[1]);
      for (int part = 0; part < 2; ++part)
        for (int c = 0; c < 8; ++c) {{
          StoreGlobal(params.output + 4 * (i * {rotary_dim} + at[part] * 8 + c), parts[part][c]);
        }}
    }}
  }}
"""


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (64, 16), (128, 128), (128, 96), (256, 256), (256, 80)])
def test_rows_turn_to_the_bits_of_the_reference(host_programs, rng, head_dim, rotary_dim, interleaved):
    factor = 1.25 if rotary_dim == head_dim else 1.0
    rotation = reference.Rotation.of(default_frequencies(10000.0, rotary_dim), interleaved, factor)
    rows = rng.standard_normal((len(POSITIONS), 1, rotary_dim)).astype(np.float32)
    outcome = host_programs.run(
        ROTATE.format(
            factor=factor,
            rotary_dim=rotary_dim,
            interleaved=int(interleaved),
            head_dim=head_dim,
            count=len(POSITIONS),
        ),
        output_bytes=4 * rows.size,
        includes=f"""#include "transfer/rotation.cuh"
            alignas(16) const uint64_t steps[] = {{{", ".join(f"{step}ull" for step in rotation.steps)}}};
            const int32_t positions[] = {{{", ".join(map(str, POSITIONS)).replace("-2147483648", "INT32_MIN")}}};
            const float rows[] = {{{", ".join(float(x).hex() + "f" for x in rows.ravel())}}};""",
        spans=f"{ALL_MEMORY}, {{steps, sizeof steps, 0, 0}}, {{positions, sizeof positions, 0, 0}}, "
        "{rows, sizeof rows, 0, 0}",
    )
    assert not outcome.error
    found = np.frombuffer(outcome.output, np.uint32).reshape(rows.shape)
    np.testing.assert_array_equal(found, reference.rotate(rows, POSITIONS, rotation).view(np.uint32))
