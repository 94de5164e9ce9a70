"""kvit.iterators.svg: pictures are XML with a cell for each thing that they show, in its place and with its words."""

from xml.etree import ElementTree

import pytest

from kvit.errors import ShapeError
from kvit.iterators import RakedThreadMap, SmemLayout, kv_layout, layout_svg, pages_svg, thread_map_svg

NAMES = {"svg": "http://www.w3.org/2000/svg"}


def cells_of(picture):
    """[(column, row, words, colour)] of all cells, as places of a grid."""
    root = ElementTree.fromstring(picture)
    found = []
    for cell in root.iterfind("svg:rect", NAMES):
        column, row = ((float(cell.get(axis)) - 80) / 26 for axis in "xy")
        found.append((column, row, cell.find("svg:title", NAMES).text, cell.get("fill")))
    return found


def test_a_map_has_a_cell_for_every_access():
    threads = RakedThreadMap(64, 32, 8, 2)
    cells = cells_of(thread_map_svg(threads))
    wanted = {
        (access.at.c // 8, access.at.s, f"warp {warp}, lane {lane}: token {access.at.s}")
        for warp in range(2)
        for lane in range(32)
        for access in threads.accesses(warp, lane)
    }
    assert {
        (column, row, words.partition(",")[0] + "," + words.split(",")[1]) for column, row, words, _ in cells
    } == wanted
    assert len(cells) == 32 * 8
    of_warps = {}
    for _, _, words, colour in cells:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        of_warps.setdefault(words.split(",")[0], set()).add(red > blue)
    assert of_warps == {"warp 0": {True}, "warp 1": {False}}  # red, and what lies across from it


def test_rows_that_are_not_drawn_are_told():
    threads = RakedThreadMap(64, 32, 8, 2)
    picture = thread_map_svg(threads, rows=3)
    assert len(cells_of(picture)) == 3 * 8 and "(3 of 32 rows)" in picture
    with pytest.raises(ShapeError, match="rows is 0; draw 1 at least"):
        thread_map_svg(threads, rows=0)


@pytest.mark.parametrize("layout", [kv_layout(16, 128, 32), SmemLayout(8, 64, 8, 64)], ids=str)
def test_a_layout_has_the_banks_of_every_vector(layout):
    picture = layout_svg(layout, 16)
    cells = cells_of(picture)
    assert len(cells) == layout.s * layout.c // 8
    for column, row, words, _ in cells:
        byte = layout.index(int(row), int(column) * 8) * 2
        assert words.startswith(f"token {row:g}, channels {column * 8:g} to ")
        assert words.endswith(f"byte {byte}, banks {byte // 16 % 8 * 4} to {byte // 16 % 8 * 4 + 3}")
    assert ("turns of the worst matrix: 8" in picture) == (layout.c0 == layout.c == 64 and not layout.swizzle.bits)


def test_pages_say_who_has_them_and_what_of_them():
    picture = pages_svg({"a": [0, 3], "b & c": [0, 1]}, 20, {"a": 20, "b & c": 32}, 16)
    words = {text for *_, text, _ in cells_of(picture)}
    assert words == {
        "page 0: a tokens 0 to 15, b & c tokens 0 to 15",
        "page 1: b & c tokens 16 to 31",
        "page 3: a tokens 16 to 19",
        *(f"page {page}: free" for page in (2, *range(4, 20))),
    }
    shared = [(column, colour) for column, row, text, colour in cells_of(picture) if text.startswith("page 0:")]
    assert [column for column, _ in shared] == [0, 0.5, 0] and len({colour for _, colour in shared}) == 3
    assert max(row for _, row, *_ in cells_of(picture)) == 1  # sixteen pages a row
    with pytest.raises(ShapeError, match="a has page 20; the cache has pages 0 to 19"):
        pages_svg({"a": [20]}, 20, {"a": 1}, 16)
