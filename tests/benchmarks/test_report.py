"""benchmarks/report.py: the printed table, cliffs with their limits, and what the summary counts."""

import pytest
import report
from cells import Ceiling, Cell, anchors_of
from report import Result

CEILING = Ceiling(gbps=3000.0, num_bytes=2 << 30, kernel="kvit_read__x8", grid=264)


KNOWN = anchors_of("NVIDIA H100 80GB HBM3")


def result(text, us, ahead_us=None, **peers):
    cell = Cell.parse(text)
    return Result(cell, us, ahead_us or us, "kvit_decode__bf16_b16_d128_h8_tma_plain", peers, KNOWN.get(cell))


def test_rates_are_bytes_of_k_and_v_over_time():
    found = result("64x8192", 700.0)
    assert found.gbps == pytest.approx(2147.483648e6 / 700e-6 / 1e9)
    as_json = found.as_json(CEILING)
    assert as_json["of_ceiling"] == pytest.approx(found.gbps / 3000, abs=1e-4)
    assert (as_json["batch"], as_json["context"], as_json["us"], as_json["reach_us"]) == (64, 8192, 700.0, 700)
    assert as_json["known_peers"]["TurboMind"] == 702.5


def test_the_table_has_a_row_for_each_cell_and_a_column_for_each_peer_with_times():
    rows = [result("64x8192", 700.0, 690.0, a=710.5, b="missing"), result("1x4096,p16", 9.0, a="refused", b="missing")]
    header, first, second = report.table(rows, CEILING).splitlines()
    assert "a us" in header and "b us" not in header
    words = ["64x8192:32/8,NHD", "2147", "700.0", "690.0", "3068", "102.3%", "700", "702.5", "TurboMind", "710.5"]
    assert first.split() == words
    assert second.split() == ["1x4096:32/8,p16,NHD", "16.78", "9.0", "9.0", "1864", "62.1%", "-"]


def test_a_cell_above_its_number_is_marked_unless_reading_ahead_is_not():
    for ahead_us, marks in ((700.1, 1), (699.9, 0)):
        _, row = report.table([result("64x8192", 700.2, ahead_us)], CEILING).splitlines()
        assert row.count("700 !") == marks


def test_why_a_peer_has_no_time_is_told_once():
    rows = [result("64x8192", 700.0, a=710.5, b="missing"), result("1x4096", 9.0, a="refused", b="missing")]
    assert report.complaints(rows) == ["b: missing", "a: refused (1x4096:32/8,NHD)"]
    many = [result(f"{batch}x64", 1.0, a="refused") for batch in range(1, 7)] + [result("9x64", 1.0, a=1.0)]
    assert report.complaints(many)[0].endswith("3x64:32/8,NHD and 3 more)")


@pytest.mark.parametrize(
    ("text", "beside", "limit"),
    [
        ("8x4096,p1", "8x4096", 1.25),
        ("8x4096,p8", "8x4096", 1.1),
        ("8x4096,giant", "8x4096", 1.1),
        ("8x4096:8/8", "8x4096:32/8", 1.05),
        ("8x4096:128/8", "8x4096:32/8", 1.1),
    ],
)
def test_a_cliff_is_a_cell_that_takes_longer_than_its_limit_beside_another_of_the_same_bytes(text, beside, limit):
    for us, is_over in ((100 * limit, False), (100 * limit + 0.2, True)):
        (found,) = report.cliffs([result(beside, 100.0), result(text, us)])
        assert (found.cell, found.beside) == (Cell.parse(text), Cell.parse(beside))
        assert (found.ratio, found.limit, found.is_over) == (pytest.approx(us / 100), limit, is_over)


def test_groups_are_compared_with_the_fastest_of_them_and_layouts_not_at_all():
    rows = [result("8x64:8/8", 110.0), result("8x64:16/8", 100.0), result("8x64:128/8", 90.0), result("8x64,HND", 1.0)]
    found = {str(it.cell): it.ratio for it in report.cliffs(rows)}
    assert found == {"8x64:8/8,NHD": pytest.approx(1.1), "8x64:128/8,NHD": pytest.approx(0.9)}


def test_the_summary_counts_cells_at_their_number_and_ahead_of_peers():
    rows = [
        result("64x8192", 701.0, 699.0, a=700.0, b=900.0),  # above its 700, ahead of TurboMind's 702.5, behind `a`
        result("64x4096,int4,d64", 55.0),  # at its number; no peer reads it
        result("64x8192,p1", 900.0),
    ]
    said = "\n".join(report.summary(rows))
    assert "at or under what kvit must reach: 1 of 2, 2 reading ahead" in said
    assert "no slower than the best known peer: 1 of 1, 1 reading ahead" in said
    assert "no slower than the best peer of this run: 0 of 1, 1 reading ahead" in said
    assert "1 of 1 over" in said and "pages of 64  1.284  1.25   over" in said
    assert said.endswith("a peer of this run was faster on: no cell")  # a call that reads ahead is not behind `a`


def test_the_last_line_names_the_cells_on_which_a_peer_was_faster():
    rows = [result("64x8192", 710.0, 705.0, a=700.0, b=900.0), result("1x4096", 9.0, a=9.1), result("8x64", 3.0)]
    *_, last = report.summary(rows)
    assert last.strip() == "a peer of this run was faster on: 64x8192:32/8,NHD (700.0 us)"


def test_nothing_to_compare_is_no_summary():
    assert list(report.summary([result("5x77", 3.0)])) == []
