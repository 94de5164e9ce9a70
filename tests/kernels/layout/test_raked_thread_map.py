"""kernels/layout/raked_thread_map.cuh against its model."""

from collections import Counter

import pytest

from kvit.errors import LayoutError
from kvit.iterators import Coord, RakedThreadMap

HEADERS = ["layout/raked_thread_map.cuh"]
MAPS = [
    RakedThreadMap(128, 64, 8, 4),
    RakedThreadMap(192, 64, 8, 4),  # three accesses along the row
    RakedThreadMap(256, 32, 8, 4),  # one row per warp access
    RakedThreadMap(64, 32, 32, 4),  # int4: the last two warps have no tokens
    RakedThreadMap(2, 64, 2, 4, 2),  # parameters: odd lanes reach past the pair
    RakedThreadMap(2, 64, 2, 1, 1),  # parameters of one warp: two rounds
    RakedThreadMap(256, 64, 8, 8, 8, 2),  # two warps along the row share their tokens
    RakedThreadMap(96, 40, 8, 4),  # tokens that are no multiple of the bands
]
CONSTANTS = {
    "kWarpThreadC": "warp_thread_c",
    "kWarpThreadS": "warp_thread_s",
    "kIterC": "iter_c",
    "kIterS": "iter_s",
    "kDeltaC": "delta_c",
    "kDeltaS": "delta_s",
    "kFootprintC": "footprint_c",
    "kFootprintS": "footprint_s",
    "kWarpS": "warp_s",
    "kPartialC": "partial_c",
    "kPartialS": "partial_s",
}


@pytest.mark.parametrize("thread_map", MAPS, ids=str)
def test_cpp_and_model_agree_on_every_constant_and_thread(cxx, thread_map):
    constants = " ".join(f'printf("%d ", int(Map::{name}));' for name in CONSTANTS)
    body = f"""
      using Map = {thread_map};
      {constants}
      for (int warp = 0; warp < Map::kWarpCount; ++warp) {{
        for (int lane = 0; lane < 32; ++lane) {{
          const Coord at = Map::Offset(warp, lane);
          printf("%d %d %d ", at.s, at.c, Map::Covers(at));
        }}
      }}
    """
    expected = [int(getattr(thread_map, name)) for name in CONSTANTS.values()]
    for warp in range(thread_map.warp_count):
        for lane in range(32):
            at = thread_map.offset(warp, lane)
            expected += [at.s, at.c, thread_map.covers(at)]
    assert cxx.numbers(HEADERS, body) == expected


@pytest.mark.parametrize("thread_map", MAPS, ids=str)
def test_every_part_of_the_tile_is_moved_exactly_once(thread_map):
    moved = Counter(
        access.at
        for warp in range(thread_map.warp_count)
        for lane in range(32)
        for access in thread_map.accesses(warp, lane)
    )
    tile = [Coord(s, c) for s in range(thread_map.dim_s) for c in range(0, thread_map.dim_c, thread_map.access_c)]
    assert moved == Counter(tile)


@pytest.mark.parametrize("thread_map", MAPS, ids=str)
def test_a_warp_moves_only_tokens_of_its_own_band(thread_map):
    for warp in range(thread_map.warp_count):
        first = warp // thread_map.warp_c * thread_map.footprint_s
        for lane in range(32):
            for access in thread_map.accesses(warp, lane):
                assert first <= access.at.s < first + thread_map.footprint_s


# The seed's table of standard maps: 64 tokens (32 at 576 channels in 16 bits), four warps, 16-byte accesses.
@pytest.mark.parametrize(
    ("head_dim", "bits", "tokens", "lanes_c", "iter_c", "iter_s"),
    [
        (128, 16, 64, 16, 1, 8),
        (128, 8, 64, 8, 1, 4),
        (128, 4, 64, 4, 1, 2),
        (64, 16, 64, 8, 1, 4),
        (64, 4, 64, 2, 1, 1),
        (256, 16, 64, 32, 1, 16),
        (192, 16, 64, 8, 3, 4),
        (576, 16, 32, 8, 9, 2),
    ],
)
def test_the_standard_maps_are_those_of_the_seed(head_dim, bits, tokens, lanes_c, iter_c, iter_s):
    thread_map = RakedThreadMap(head_dim, tokens, 128 // bits, 4)
    assert (thread_map.warp_thread_c, thread_map.iter_c, thread_map.iter_s) == (lanes_c, iter_c, iter_s)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((100, 64, 8, 4), "a row must be a whole number of accesses"),
        ((512, 64, 8, 4), "the lanes of a row must divide the 32 lanes of a warp"),
        ((96, 64, 8, 4, 8), "only a map with one access along a row may reach past its end"),
        ((64, 64, 8, 4, 8, 3), "the warps of a row must divide the warps of the CTA"),
        ((64, 0, 8, 4), "a thread map has positive sizes"),
    ],
)
def test_maps_that_would_miss_something_are_refused(cxx, numbers, sentence):
    kind = f"RakedThreadMap<{', '.join(map(str, numbers))}>"
    assert sentence in cxx.refusal(HEADERS, f"template struct {kind};")
    with pytest.raises(LayoutError):
        RakedThreadMap(*numbers)
