"""benchmarks/cells.py: names of cells, lengths, bytes, copies, and the grid."""

from dataclasses import replace

import cells
import numpy as np
import pytest
from anchors import CARDS
from cells import FAMILIES, LAYOUTS, Cell, anchors_of, places, select

GRID = select([], LAYOUTS)


@pytest.mark.parametrize(
    "text",
    [
        "1x4096:32/8,NHD",
        "16x4096:32/32,HND",
        "3x7:12/4,int8,d64,p1,HND,lognormal",
        "8x100:8/8,float8_e4m3,NHD,giant",
        "2x2:2/1,int8+int4,p256,NHD",
    ],
)
def test_a_cell_reads_back_what_it_is_called(text):
    assert str(Cell.parse(text)) == text


def test_words_may_come_in_any_order_and_defaults_may_be_left_out():
    assert Cell.parse("64x8192") == Cell(64, 8192, 32, 8, "bfloat16", 128, 64, "NHD", "uniform")
    assert Cell.parse("64x8192,HND,p16,int4,d64") == Cell.parse("64x8192:32/8,int4,d64,p16,HND")
    assert Cell.parse("1x1,int8+int8") == Cell.parse("1x1,int8")


@pytest.mark.parametrize("text", ["64", "x8192", "64x", "0x8192", "64x8192:32", "64x8192:32/0", "-1x4", "64 x 8192"])
def test_what_is_no_cell_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="64x8192"):
        Cell.parse(text)


@pytest.mark.parametrize("word", ["int3", "p0", "d", "nhd", "", "int8+", "int8+int4+int4"])
def test_a_word_that_says_nothing_of_a_cell_is_refused(word):
    with pytest.raises(ValueError, match="'1x1,"):
        Cell.parse(f"1x1,{word}")


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        Cell.parse("1x1:30/8")


@pytest.mark.parametrize(
    ("text", "megabytes"),  # the column "MB" of the figures that the grid was first measured with
    [
        ("1x4096", 17), ("8x4096", 134), ("16x8192", 537), ("64x8192", 2147), ("256x2048", 2147),
        ("16x4096:32/32", 1074), ("8x4096,float8_e4m3", 67), ("64x8192,float8_e4m3", 1074), ("8x4096,int8", 69),
        ("64x8192,int8", 1107), ("1x32768,int4", 36), ("64x8192,int4", 570), ("64x4096,int8,d64", 285),
        ("64x4096,int4,d64", 151),
    ],
)  # fmt: skip
def test_bytes_are_those_of_codes_and_parameters(text, megabytes):
    assert round(Cell.parse(text).kv_bytes / 1e6) == megabytes


def test_a_page_that_is_part_full_is_a_page_and_its_unused_tokens_are_no_bytes():
    assert Cell.parse("1x4096,p100").slots().tolist() == [41]
    assert Cell.parse("1x4096,p100").kv_bytes == Cell.parse("1x4096").kv_bytes


@pytest.mark.parametrize("text", ["64x8192", "16x8192", "7x100", "1x5"])
@pytest.mark.parametrize("lengths", cells.LENGTHS)
def test_lengths_of_any_kind_have_the_tokens_of_the_uniform_batch(text, lengths):
    cell = Cell.parse(f"{text},{lengths}")
    tokens = cell.tokens()
    assert (tokens.dtype, tokens.shape, tokens.sum()) == (np.int32, (cell.batch,), cell.batch * cell.context)
    assert (tokens > 0).all()
    np.testing.assert_array_equal(tokens, cell.tokens())  # in every run


def test_lengths_are_as_ragged_as_their_kind_says():
    uniform, lognormal, giant = (Cell.parse(f"64x8192,{lengths}").tokens() for lengths in cells.LENGTHS)
    assert set(uniform) == {8192}
    assert np.log(lognormal).std() == pytest.approx(1.0, abs=0.3)
    assert giant[0] == 64 * 8192 // 2 and giant[1:].max() - giant[1:].min() <= 1


@pytest.mark.parametrize("cell", GRID, ids=str)
def test_copies_hold_more_than_any_l2_cache_and_no_more_than_needed(cell):
    assert cell.copies * cell.kv_bytes >= cells.ROTATED_BYTES
    assert cell.copies == 1 or (cell.copies - 1) * cell.kv_bytes < cells.ROTATED_BYTES


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_the_grid_has_every_anchor_in_both_layouts_and_each_cell_once():
    assert len(GRID) == len(set(GRID))
    for card in CARDS:
        known = anchors_of(card.name)
        assert len(known) == sum(len(places(text)) for text in card.cells)  # no name says what another says
        assert set(known) <= set(GRID)
        assert {replace(cell, layout=layout) for cell in known for layout in LAYOUTS} <= set(GRID)


def test_each_family_varies_one_thing_at_the_same_bytes():
    for name, field, values in (
        ("pages", "page_size", {1, 8, 16, 64, 256}),
        ("groups", "group", {1, 2, 4, 8, 16}),
        ("ragged", "lengths", set(cells.LENGTHS)),
    ):
        rows = {}
        for cell in FAMILIES[name]:
            rows.setdefault((cell.batch, cell.context, cell.kv), []).append(cell)
        for row in rows.values():
            assert {getattr(cell, field) for cell in row} == values
            assert len({cell.kv_bytes for cell in row}) == 1


def test_cells_are_chosen_by_family_by_pattern_and_by_name():
    assert len(select(["anchors"], ["HND"])) == 24
    assert all("int8" in cell.kv and cell.layout == "NHD" for cell in select(["*int8*"], ["NHD"]))
    assert select(["8x4096,p16", "8x4096,p16"], LAYOUTS) == [
        Cell.parse("8x4096,p16,NHD"),
        Cell.parse("8x4096,p16,HND"),
    ]
    assert select(["5x77,HND"], LAYOUTS) == [Cell.parse("5x77,HND")]  # not on the grid, and of one layout by name
    with pytest.raises(ValueError, match="no cell of the grid matches .*families are anchors, pages"):
        select(["*int3*"], LAYOUTS)


def test_an_anchor_knows_its_best_peer():
    known = anchors_of("NVIDIA H100 80GB HBM3")
    assert known[Cell.parse("8x4096,HND")].best == known[Cell.parse("8x4096,NHD")].best == ("XQA", 52.7)
    assert known[Cell.parse("64x4096,int4,d64")].best is None
    assert Cell.parse("8x4096,p16") not in known


def test_each_card_has_its_own_anchors_and_a_card_that_nobody_measured_none():
    known = anchors_of("NVIDIA H200")
    assert known[Cell.parse("8x4096")].best == ("XQA", 37.9)
    assert [known[Cell.parse(f"64x8192,int4,{layout}")].reach for layout in LAYOUTS] == [140, 128]
    assert Cell.parse("1x32768,int4,NHD") not in known  # measured in HND alone
    assert anchors_of("NVIDIA H20") == {}
