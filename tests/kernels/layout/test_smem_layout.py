"""kernels/layout/smem_layout.cuh against its model."""

import numpy as np
import pytest

from kvit.errors import LayoutError
from kvit.iterators import IDENTITY, SmemLayout, Swizzle

HEADERS = ["layout/smem_layout.cuh"]
LAYOUTS = [
    SmemLayout(64, 128, 16, 64, Swizzle(3, 3, 3)),  # several atoms both ways
    SmemLayout(64, 192, 32, 64, Swizzle(3, 5, 3)),  # a number of atoms that is no power of two
    SmemLayout(48, 96, 16, 96, Swizzle(2, 4, 3)),  # an atom that is no power of two
    SmemLayout(64, 2, 64, 2),  # parameters
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_cpp_and_model_agree_on_every_element(cxx, layout):
    kind = str(layout)
    body = f"""
      using Layout = {kind};
      printf("%d ", Layout::kSize);
      for (int s = 0; s < Layout::kS; ++s) {{
        for (int c = 0; c < Layout::kC; ++c) printf("%d ", Layout::Index(s, c, 7 * Layout::kSize));
      }}
      for (int n = 1; n <= 64; n *= 2) printf("%d ", Layout::KeepsRuns(n));
    """
    s, c = np.indices((layout.s, layout.c))
    expected = layout.index(s, c, 7 * layout.size).ravel().tolist()
    runs = [layout.keeps_runs(1 << i) for i in range(7)]
    assert cxx.numbers(HEADERS, body) == [layout.size, *expected, *runs]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_element_has_a_place_of_its_own(layout):
    s, c = np.indices((layout.s, layout.c))
    assert sorted(layout.index(s, c).ravel()) == list(range(layout.size))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_runs_that_are_kept_are_aligned_and_in_order(layout):
    run = next(n for n in (64, 32, 16, 8, 4, 2, 1) if layout.keeps_runs(n))
    for s in range(layout.s):
        for c in range(0, layout.c, run):
            places = layout.index(np.full(run, s), np.arange(c, c + run))
            assert places[0] % run == 0
            assert (np.diff(places) == 1).all()


@pytest.mark.parametrize(
    ("sizes", "swizzle", "sentence"),
    [
        ((64, 64, 48, 64), IDENTITY, "a tile must be a whole number of atoms"),
        ((64, 64, 16, 48), IDENTITY, "a tile must be a whole number of atoms"),
        ((64, 8, 4, 8), Swizzle(3, 3, 3), "the swizzle must permute the atom"),  # 32 elements, blocks of 64
        ((64, 96, 1, 96), Swizzle(3, 3, 3), "the swizzle must permute the atom"),
        ((64, 0, 1, 1), IDENTITY, "a layout has positive sizes"),
    ],
)
def test_layouts_that_would_overlap_are_refused(cxx, sizes, swizzle, sentence):
    kind = "SmemLayout<{}, {}, {}, {}, Swizzle<{}, {}, {}>>".format(*sizes, swizzle.bits, swizzle.base, swizzle.shift)
    assert sentence in cxx.refusal(HEADERS, f"template struct {kind};")
    with pytest.raises(LayoutError):
        SmemLayout(*sizes, swizzle)
