"""benchmarks/cells.py: names of cells, bytes, copies, and the printed table."""

import cells
import pytest
from cells import GRID, Ceiling, Cell, Result, Setting

CEILING = Ceiling(gbps=3000.0, num_bytes=2 << 30, kernel="kvit_read__x8", grid=264)


def result(text, us, **peers):
    cell = Cell.parse(text)
    return Result(cell, Setting().kv_bytes(cell), us, "kvit_decode__bf16_b16_d128_h8", 1, peers)


@pytest.mark.parametrize("text", ["1x4096:32/8", "16x4096:32/32", "3x7:12/4"])
def test_a_cell_reads_back_what_it_is_called(text):
    assert str(Cell.parse(text)) == text


def test_a_cell_without_heads_has_32_query_heads_on_8():
    assert Cell.parse("64x8192") == Cell(64, 8192, 32, 8)


@pytest.mark.parametrize("text", ["64", "x8192", "64x", "0x8192", "64x8192:32", "64x8192:32/0", "-1x4", "64 x 8192"])
def test_what_is_no_cell_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="64x8192"):
        Cell.parse(text)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        Cell.parse("1x1:30/8")


@pytest.mark.parametrize(
    ("text", "megabytes"),  # the column "MB" of the figures that the grid was first measured with
    [("1x4096", 17), ("8x4096", 134), ("16x8192", 537), ("64x8192", 2147), ("256x2048", 2147), ("16x4096:32/32", 1074)],
)
def test_bytes_are_those_of_keys_and_values(text, megabytes):
    assert round(Setting().kv_bytes(Cell.parse(text)) / 1e6) == megabytes


def test_a_page_that_is_part_full_is_a_page_and_its_unused_tokens_are_no_bytes():
    setting = Setting(page_size=100)
    assert setting.slots(Cell(1, 4096)) == 41
    assert setting.kv_bytes(Cell(1, 4096)) == Setting().kv_bytes(Cell(1, 4096))


@pytest.mark.parametrize("cell", GRID, ids=str)
def test_copies_hold_more_than_any_l2_cache_and_no_more_than_needed(cell):
    setting = Setting()
    copies, num_bytes = setting.copies(cell), setting.kv_bytes(cell)
    assert copies * num_bytes >= cells.ROTATED_BYTES
    assert copies == 1 or (copies - 1) * num_bytes < cells.ROTATED_BYTES


def test_rates_are_bytes_of_k_and_v_over_time():
    found = result("64x8192", 700.0)
    assert found.gbps == pytest.approx(2147.483648e6 / 700e-6 / 1e9)
    as_json = found.as_json(CEILING)
    assert as_json["of_ceiling"] == pytest.approx(found.gbps / 3000, abs=1e-4)
    assert (as_json["batch"], as_json["context"], as_json["us"]) == (64, 8192, 700.0)


def test_the_table_has_a_row_for_each_cell_and_a_column_for_each_peer_with_times():
    rows = [result("64x8192", 700.0, a=710.5, b="missing"), result("1x4096", 9.0, a="refused", b="missing")]
    header, first, second = cells.table(rows, CEILING).splitlines()
    assert "a us" in header and "b us" not in header
    assert first.split() == ["64", "x", "8192", "32/8", "2147", "700.0", "3068", "102.3%", "710.5"]
    assert second.split()[-2:] == ["62.1%", "-"]


def test_why_a_peer_has_no_time_is_told_once():
    rows = [result("64x8192", 700.0, a=710.5, b="missing"), result("1x4096", 9.0, a="refused", b="missing")]
    assert cells.complaints(rows) == ["b: missing", "a: refused (1x4096:32/8)"]
