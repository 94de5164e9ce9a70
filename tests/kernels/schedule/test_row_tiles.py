"""kernels/schedule/row_tiles.cuh: units of each row tile against a plain model of what its rows see."""

import pytest

HEADERS = ["schedule/row_tiles.cuh"]
GROUPS = [1, 3, 4, 5, 12, 16]
LONG_GROUPS = [1, 3, 8, 16, 32, 64, 100]  # of row tiles of 64 rows: whole tokens a row tile, and parts of one
TILE = 4
# (keys, queries): none, one, several, more queries than keys, the ends of tiles, and long ones.
SEQUENCES = [
    (0, 1),
    (0, 5),
    (1, 1),
    (4, 1),
    (5, 1),
    (3, 3),
    (4, 4),
    (3, 9),
    (1, 40),
    (8, 5),
    (33, 6),
    (100, 37),
    (64, 64),
]
LONG_SEQUENCES = [(300, 300), (301, 150), (5, 9), (64, 16), (200, 1), (0, 2), (3, 40)]
SPLITS = [1, 2, 3]

BODY = """
  for (int group : {{{groups}}}) {{
    for (int split : {{1, 2, 3}}) {{
      for (KeyRange sequence : {{{sequences}}}) {{
        const int length = sequence.begin, new_tokens = sequence.end;
        const KeyEnds ends = {ends};
        const RowTiles<{rows}, {tile}> tiles(ends, new_tokens, group, FastDivide(group), split);
        printf("%d %d ", tiles.Count(), int(tiles.Total()));
        for (int i = 0; i < tiles.Count(); ++i)
          printf("%d %d %d ", tiles.Tiles(i).last, tiles.Units(i), int(tiles.Before(i)));
        for (int unit = 0; unit < tiles.Total(); ++unit)
          printf("%d %d ", tiles.Find(unit).row_tile, int(tiles.Find(unit).before));
      }}
    }}
  }}
"""
ENDS = {"causal": "KeyEnds{length - new_tokens + 1, 1}", "full": "KeyEnds{length, 0}"}


def tiles_of_row_tile(rows, tile, group, keys, queries, mask, row_tile):
    """Tiles that any row of a row tile sees, and at least the one in which somebody writes its zeros."""
    tokens = {row // group for row in range(row_tile * rows, min((row_tile + 1) * rows, queries * group))}
    most = max(keys - queries + token + 1 if mask == "causal" else keys for token in tokens)
    return max(1, -(-most // tile))


@pytest.mark.parametrize("mask", ENDS)
@pytest.mark.parametrize(
    ("rows", "tile", "groups", "sequences"),
    [
        (8, TILE, GROUPS, SEQUENCES),
        (16, TILE, GROUPS, SEQUENCES),
        (64, 64, LONG_GROUPS, LONG_SEQUENCES),  # as many tokens a tile as rows, half of them, and another part
        (64, 32, LONG_GROUPS, LONG_SEQUENCES),
        (64, TILE, LONG_GROUPS, LONG_SEQUENCES),
    ],
)
def test_row_tiles_have_the_tiles_that_their_rows_see(cxx, rows, tile, groups, sequences, mask):
    body = BODY.format(
        groups=", ".join(map(str, groups)),
        sequences=", ".join(f"KeyRange{{{keys}, {queries}}}" for keys, queries in sequences),
        ends=ENDS[mask],
        rows=rows,
        tile=tile,
    )
    numbers = iter(cxx.numbers(HEADERS, body))
    for group in groups:
        for split in SPLITS:
            for keys, queries in sequences:
                count = -(-queries * group // rows)
                tiles = [tiles_of_row_tile(rows, tile, group, keys, queries, mask, i) for i in range(count)]
                units = [-(-each // split) for each in tiles]
                before = [sum(units[:i]) for i in range(count)]
                where = f"group {group}, split {split}, {keys} keys, {queries} queries"
                assert [next(numbers), next(numbers)] == [count, sum(units)], where
                for i in range(count):
                    assert [next(numbers) for _ in range(3)] == [tiles[i], units[i], before[i]], where
                owners = [(i, before[i]) for i in range(count) for _ in range(units[i])]
                assert [(next(numbers), next(numbers)) for _ in owners] == owners, where
    assert next(numbers, None) is None


def test_the_drawing_in_the_header_is_right(cxx):
    body = """
      const RowTiles<8, 4> tiles(KeyEnds{4, 1}, 6, 4, FastDivide(4), 1);
      for (int i = 0; i < tiles.Count(); ++i) printf("%d %d ", tiles.Units(i), int(tiles.Before(i)));
    """
    assert cxx.numbers(HEADERS, body) == [2, 0, 2, 2, 3, 4]


@pytest.mark.parametrize("rows", [8, 64])  # counted one by one, and in closed form
def test_a_line_of_many_row_tiles_is_counted_beyond_31_bits(cxx, rows):
    # 2^31 - 1 keys, in tiles of one, for 2000 tokens: more than 2^40 units of one head.
    body = f"""
      const RowTiles<{rows}, 1> tiles(KeyEnds{{2147483647, 0}}, 2000, {rows}, FastDivide({rows}), 1);
      const int64_t total = tiles.Total();
      const auto place = tiles.Find(total - 1);
      printf("%d %d %d %d", int(total >> 31), int(total & 0x7fffffff), place.row_tile, int(place.before >> 31));
    """
    total = 2000 * (2**31 - 1)
    assert cxx.numbers(HEADERS, body) == [total >> 31, total & 0x7FFFFFFF, 1999, 1999 * (2**31 - 1) >> 31]


@pytest.mark.parametrize("ratio", [1, 2])
def test_even_sums_are_the_sums_that_they_stand_for(cxx, ratio):
    # Groups of one, even and odd; row tiles of the longest prompts, four to a unit more.
    groups, firsts = [1, 2, 3, 4, 7, 8, 128], [0, 5, 1000]
    body = f"""
      for (int group : {{{", ".join(map(str, groups))}}}) {{
        for (uint32_t first : {{0u, 5u, 1000u}}) {{
          const EvenSums<{ratio}> sums(first, group, FastDivide(group));
          printf("%d ", int(EvenSums<{ratio}>::AreClosed(group)));
          for (int i = 0; i < 40; ++i) printf("%d ", EvenSums<{ratio}>::AreClosed(group) ? int(sums.Before(i)) : 0);
          printf("%d ", EvenSums<{ratio}>::AreClosed(group) ? int(sums.Guess(sums.Before(35), 0) + 0.5f) : 35);
        }}
      }}
      const EvenSums<{ratio}> longest(0, 4 * {ratio}, FastDivide(4 * {ratio}));
      printf("%d %d", int(longest.Before(67108864) >> 31), int(longest.Before(67108864) & 0x7fffffff));
    """
    numbers = iter(cxx.numbers(["schedule/even_sums.cuh"], body))
    for group in groups:
        for first in firsts:
            is_closed = group == 1 or group % ratio == 0
            assert next(numbers) == is_closed
            units = [1 + (first + i * ratio) // group for i in range(40)]
            expected = [sum(units[:i]) if is_closed else 0 for i in range(40)]
            assert [next(numbers) for _ in range(40)] == expected, (group, first)
            assert abs(next(numbers) - 35) <= 1 + group // 2, (group, first)
    total = sum(4 * (i + 1) for i in range(2**24))
    assert [next(numbers), next(numbers)] == [total >> 31, total & 0x7FFFFFFF]


def test_the_drawing_of_even_sums_is_right(cxx):
    body = """
      const EvenSums<1> sums(4, 3, FastDivide(3));
      for (int i = 0; i < 5; ++i) printf("%d ", int(sums.Before(i)));
    """
    assert cxx.numbers(["schedule/even_sums.cuh"], body) == [0, 2, 4, 7, 10]
