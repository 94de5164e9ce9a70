"""kernels/schedule/split_tree.cuh, partial.cuh: the same bits however a head's splits are cut over CTAs."""

import numpy as np
import pytest

from support.host_program import ALL_MEMORY

HEAD_DIM, ROWS = 8, 4
LEVELS = 10

# A line of heads, each of so many splits, cut over the grid. A split's part is made up from its place alone. Each
# head's rows end as (max, sum, outputs); behind all of them stands how many words of the workspace are not zero, but
# for those that CTAs hold for themselves.
LINE = """
  using Tree = SplitTree<{head_dim}, {rows}, 10>;
  int total = 0;
  for (const int splits : heads) total += splits;
  const CtaRange range = CtaRange::Cut(total, BlockIndex(), GridSize(), 1);
  const Tree tree(range, workspace);
  const int row = ThreadIndex() / 2 % {rows}, vector = ThreadIndex() % 2;
  const bool is_mine = ThreadIndex() < {rows} * 2;
  auto* const output = reinterpret_cast<float*>(params.output);
  const auto write = [&](int head, const Partial& whole) {{
    float* const out = output + (head * {rows} + row) * ({head_dim} + 2);
    if (vector == 0) StoreGlobal(out, Float2{{whole.max, whole.sum}});
    for (int i = 0; i < 4; ++i) StoreGlobal(out + 2 + vector * 4 + i, whole.output[i]);
  }};
  int head_begin = 0, joined = -1, joined_begin = 0;
  for (int head = 0; head < int(std::size(heads)) && !range.IsEmpty(); head_begin += heads[head++]) {{
    const SplitRun run = SplitRun::Of(range, head_begin, heads[head]);
    const int first = Max(0, int(range.begin) - head_begin), last = Min(heads[head], int(range.end) - head_begin);
    for (int split = first; split < last; ++split) {{
      SyncThreads();
      Partial part = LeafOf(head, split, row, vector);
      if (is_mine && tree.Add(run, split, row, vector, part)) write(head, part);
    }}
    if (first < last && last == heads[head] && run.begin > 0) {{
      joined = head;
      joined_begin = head_begin;
    }}
  }}
  if (joined >= 0) {{
    const SplitRun run = SplitRun::Of(range, joined_begin, heads[joined]);
    const Partial whole = tree.Join(run, range.Owner(joined_begin), row, vector, is_mine);
    if (is_mine) write(joined, whole);
  }}
  SyncThreads();
  if (ThreadIndex() == 0 && AtomicAdd(&ended, 1u) == uint32_t(GridSize() - 1)) {{
    int left = 0;
    for (int i = 0; i < kLeftWords; ++i) left += LoadGlobal<uint32_t>(workspace + i) != 0;
    StoreGlobal(output + std::size(heads) * {rows} * ({head_dim} + 2), left);
  }}
"""

# Workspaces begin with zeros where parts are left, and with any bytes where they are held.
INCLUDES = """
#include <iterator>
#include "schedule/split_tree.cuh"
const int heads[] = {{{heads}}};
constexpr int kLeftWords = {grid} * 2 * {levels} * {rows} * ({head_dim} + 2), kAllWords = kLeftWords / 2 * 3;
alignas(16) float workspace[kAllWords];
[[maybe_unused]] const void* const poison =
    std::memset(workspace + kLeftWords, 0xFF, (kAllWords - kLeftWords) * sizeof(float));
uint32_t ended;

namespace kvit {{
inline uint32_t Hash(uint32_t a, uint32_t b, uint32_t c) {{
  uint32_t x = a * 0x9E3779B1u ^ b * 0x85EBCA77u ^ c * 0xC2B2AE3Du;
  x = (x ^ x >> 15) * 0x2C1B3C6Du;
  return x ^ x >> 12;
}}
inline Partial LeafOf(int head, int split, int row, int vector) {{
  Partial part;
  const uint32_t of_row = Hash(head, split, row);
  if (of_row % 5 == 0) return part;  // it saw no key
  part.max = float(of_row % 4001) / 100.0f - 20.0f;
  part.sum = 1.0f + float(of_row % 1000) / 7.0f;
  for (int i = 0; i < 4; ++i) part.output[i] = float(int(Hash(of_row, vector, i) % 2001) - 1000) / 3.0f;
  if (of_row % 7 == 0) part.output[1] = 0.0f;
  return part;
}}
}}  // namespace kvit
"""


def join(host_programs, heads, grid, scheduler="fibers"):
    """[head, row, (max, sum, outputs)] of a line of heads."""
    shape = {"head_dim": HEAD_DIM, "rows": ROWS}
    words = len(heads) * ROWS * (HEAD_DIM + 2) + 1
    outcome = host_programs.run(
        LINE.format(**shape),
        scheduler=scheduler,
        grid=grid,
        output_bytes=words * 4,
        includes=INCLUDES.format(heads=", ".join(map(str, heads)), grid=grid, levels=LEVELS, **shape),
        spans=f"{ALL_MEMORY}, {{workspace, sizeof workspace, 1, 0}}, {{&ended, sizeof ended, 1, 0}}",
    )
    assert not outcome.error
    assert np.frombuffer(outcome.output[-4:], np.int32)[0] == 0, "parts are left in the workspace"
    return np.frombuffer(outcome.output[:-4], np.float32).reshape(len(heads), ROWS, HEAD_DIM + 2)


def hashed(a, b, c):
    x = (a * 0x9E3779B1 ^ b * 0x85EBCA77 ^ c * 0xC2B2AE3D) & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
    return x ^ x >> 12


def whole(head, splits, row):
    """(log2 of the sum of all, outputs over that sum) of a row, in float64."""
    leaves = []
    for split in range(splits):
        of_row = hashed(head, split, row)
        if of_row % 5:
            outputs = [(hashed(of_row, c // 4, c % 4) % 2001 - 1000) / 3 for c in range(HEAD_DIM)]
            if of_row % 7 == 0:
                outputs[1] = outputs[5] = 0
            leaves.append((of_row % 4001 / 100 - 20, 1 + of_row % 1000 / 7, outputs))
    if not leaves:
        return -np.inf, np.zeros(HEAD_DIM)
    top = max(leaf[0] for leaf in leaves)
    weights = [2 ** (leaf[0] - top) for leaf in leaves]
    total = sum(weight * leaf[1] for weight, leaf in zip(weights, leaves, strict=True))
    outputs = sum(weight * np.array(leaf[2]) for weight, leaf in zip(weights, leaves, strict=True))
    return top + np.log2(total), outputs / total


HEADS = {
    "small": ([1, 2, 3, 4, 5, 6, 7, 8, 9], (2, 5, 12)),
    "mixed": ([1, 31, 64, 100, 2, 65, 127, 1, 33], (3, 7, 31)),
    "full": ([1024, 1000, 513], (4, 130)),
    "one": ([777], (2, 64)),
}


@pytest.mark.parametrize(("heads", "grids"), HEADS.values(), ids=HEADS)
def test_any_cut_gives_the_bits_of_one_cta_that_does_all(host_programs, heads, grids):
    alone = join(host_programs, heads, 1)
    for head, splits in enumerate(heads):
        for row in range(ROWS):
            log_sum, outputs = whole(head, splits, row)
            top, total, *found = alone[head, row].astype(np.float64)
            if np.isneginf(log_sum):
                assert np.isneginf(top) and total == 0 and not any(found)
                continue
            np.testing.assert_allclose(top + np.log2(total), log_sum, rtol=0, atol=1e-5)
            np.testing.assert_allclose(np.array(found) / total, outputs, rtol=0, atol=1e-3)
    for grid in grids:
        several = join(host_programs, heads, grid)
        np.testing.assert_array_equal(several.view(np.uint32), alone.view(np.uint32), err_msg=f"{grid} CTAs")


def test_ctas_that_run_side_by_side_give_them_too(host_programs):
    heads = HEADS["mixed"][0]
    alone = join(host_programs, heads, 1)
    several = join(host_programs, heads, 16, scheduler="threads")
    np.testing.assert_array_equal(several.view(np.uint32), alone.view(np.uint32))


# A row's vectors leave a part in the workspace and find it there; before that nothing is there, a zero neither.
LEAVE_AND_FIND = """
  const Partials<8, 2, 3> parts(workspace);
  const int vector = ThreadIndex() % 2;
  const auto place = parts.At(BlockIndex(), 2, 1, vector);
  int seen = AreThere(place.LoadOutput()) + 2 * AreThere(place.LoadStats());
  SyncThreads();
  Partial part;
  part.max = 0.0f;
  part.sum = -0.0f;
  for (int i = 0; i < 4; ++i) part.output[i] = i == 2 ? 0.0f : float(10 * vector + i + 1);
  if (ThreadIndex() < 2) place.Store(part, vector == 0);
  SyncThreads();
  seen += 4 * AreThere(place.LoadOutput()) + 8 * AreThere(place.LoadStats());
  const auto found = BitCast<Array<float, 4>>(place.LoadOutput());
  for (int i = 0; i < 4; ++i) seen += 16 * (found[i] == part.output[i]);
  SyncThreads();
  if (ThreadIndex() < 2) place.ClearOutput();
  if (ThreadIndex() == 0) place.ClearStats();
  SyncThreads();
  for (const float& word : workspace) seen += 128 * (LoadGlobal<uint32_t>(&word) != 0);
  if (ThreadIndex() < 2) StoreGlobal(params.output + 4 * vector, seen);
"""


def test_a_part_is_there_once_all_its_words_are_and_zeros_are_words(host_programs):
    outcome = host_programs.run(
        LEAVE_AND_FIND,
        output_bytes=8,
        includes='#include "schedule/partial.cuh"\nalignas(16) float workspace[3 * 2 * 10];',
        spans=f"{ALL_MEMORY}, {{workspace, sizeof workspace, 1, 0}}",
    )
    assert not outcome.error
    assert np.frombuffer(outcome.output, np.int32).tolist() == [4 + 8 + 4 * 16] * 2
