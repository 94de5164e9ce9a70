"""kernels/schedule/row_tiles.cuh: units of each row tile against a plain model of what its rows see."""

import pytest

HEADERS = ["schedule/row_tiles.cuh"]
GROUPS = [1, 3, 4, 5, 12, 16]
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


def tiles_of_row_tile(rows, group, keys, queries, mask, row_tile):
    """Tiles that any row of a row tile sees, and at least the one in which somebody writes its zeros."""
    tokens = {row // group for row in range(row_tile * rows, min((row_tile + 1) * rows, queries * group))}
    most = max(keys - queries + token + 1 if mask == "causal" else keys for token in tokens)
    return max(1, -(-most // TILE))


@pytest.mark.parametrize("mask", ENDS)
@pytest.mark.parametrize("rows", [8, 16])
def test_row_tiles_have_the_tiles_that_their_rows_see(cxx, rows, mask):
    body = BODY.format(
        groups=", ".join(map(str, GROUPS)),
        sequences=", ".join(f"KeyRange{{{keys}, {queries}}}" for keys, queries in SEQUENCES),
        ends=ENDS[mask],
        rows=rows,
        tile=TILE,
    )
    numbers = iter(cxx.numbers(HEADERS, body))
    for group in GROUPS:
        for split in SPLITS:
            for keys, queries in SEQUENCES:
                count = -(-queries * group // rows)
                tiles = [tiles_of_row_tile(rows, group, keys, queries, mask, i) for i in range(count)]
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


def test_a_line_of_many_row_tiles_is_counted_beyond_31_bits(cxx):
    # 2^31 - 1 keys, in tiles of one, for 2000 tokens: more than 2^40 units of one head.
    body = """
      const RowTiles<8, 1> tiles(KeyEnds{2147483647, 0}, 2000, 8, FastDivide(8), 1);
      const int64_t total = tiles.Total();
      const auto place = tiles.Find(total - 1);
      printf("%d %d %d %d", int(total >> 31), int(total & 0x7fffffff), place.row_tile, int(place.before >> 31));
    """
    total = 2000 * (2**31 - 1)
    assert cxx.numbers(HEADERS, body) == [total >> 31, total & 0x7FFFFFFF, 1999, 1999 * (2**31 - 1) >> 31]
