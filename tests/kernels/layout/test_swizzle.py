"""kernels/layout/swizzle.cuh against its model."""

import pytest

from kvit.errors import LayoutError
from kvit.iterators import Swizzle

HEADERS = ["layout/swizzle.cuh"]
# The ones in use, the seed's, none, and one whose source bits overlap those it changes (still a permutation).
SWIZZLES = [Swizzle(3, 3, 3), Swizzle(3, 4, 3), Swizzle(3, 5, 3), Swizzle(2, 5, 3), Swizzle(3, 3, 4), Swizzle(0, 0, 0)]
OVERLAPPING = Swizzle(3, 1, 1)


@pytest.mark.parametrize("swizzle", [*SWIZZLES, OVERLAPPING], ids=str)
def test_cpp_and_model_agree_on_every_offset(cxx, swizzle):
    kind = f"Swizzle<{swizzle.bits}, {swizzle.base}, {swizzle.shift}>"
    body = f"""
      printf("%d %d ", {kind}::kRun, {kind}::kBlock);
      for (int offset = 0; offset < 4096; ++offset) printf("%d ", {kind}::Apply(offset));
    """
    assert cxx.numbers(HEADERS, body) == [swizzle.run, swizzle.block, *map(swizzle, range(4096))]


@pytest.mark.parametrize("swizzle", [*SWIZZLES, OVERLAPPING], ids=str)
def test_every_block_is_permuted_in_itself_and_runs_stay_together(swizzle):
    for first in range(0, 4096, swizzle.block):
        block = range(first, first + swizzle.block)
        assert sorted(map(swizzle, block)) == list(block)
    run = min(swizzle.run, 4096)
    for first in range(0, 4096, run):
        assert [swizzle(first + i) - swizzle(first) for i in range(run)] == list(range(run))


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((3, 3, 0), "must read bits above those it changes"),  # XOR with itself: everything becomes 0
        ((8, 12, 12), "must lie inside a 31-bit offset"),
        ((-1, 3, 3), "must lie inside a 31-bit offset"),
    ],
)
def test_what_is_no_permutation_is_refused(cxx, numbers, sentence):
    kind = "Swizzle<{}, {}, {}>".format(*numbers)
    assert sentence in cxx.refusal(HEADERS, f"template struct {kind};")
    with pytest.raises(LayoutError):
        Swizzle(*numbers)
