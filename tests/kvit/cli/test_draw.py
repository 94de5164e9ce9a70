"""`kvit draw`: what it prints is what the objects say of themselves, and files hold the pictures of them."""

from xml.etree import ElementTree

import pytest

from kvit.__main__ import main
from kvit.iterators import IDENTITY, RakedThreadMap, SmemLayout, Swizzle, kv_layout, kv_thread_map, layout_svg, report


def test_a_map_is_printed(capsys):
    assert main(["draw", "map", "--channels", "64", "--tokens", "32", "--warps", "2", "--rows", "4"]) == 0
    assert capsys.readouterr().out == RakedThreadMap(64, 32, 8, 2).draw(4) + "\n"


def test_a_map_of_other_lanes_and_accesses(capsys):
    assert main(["draw", "map", "--bits", "8", "--access", "4", "--lanes", "8"]) == 0
    assert capsys.readouterr().out.startswith(str(RakedThreadMap(128, 64, 4, 4, 8)))


@pytest.mark.parametrize(
    ("words", "layout"),
    [
        ([], kv_layout(16, 128, 64)),
        (["--atom", "8", "64", "--swizzle", "3", "3", "3"], SmemLayout(64, 128, 8, 64, Swizzle(3, 3, 3))),
        (["--atom", "64", "128"], SmemLayout(64, 128, 64, 128, IDENTITY)),
    ],
)
def test_a_layout_is_printed_with_what_it_costs(capsys, tmp_path, words, layout):
    assert main(["draw", "layout", *words]) == 0
    text = capsys.readouterr().out
    assert text.startswith(layout.draw(16)) and text.endswith(f"{report(layout, kv_thread_map(16, 128, 64, 4), 16)}\n")
    path = tmp_path / "layout.svg"
    assert main(["draw", "layout", *words, "--svg", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == layout_svg(layout, 16, 16)
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_pages_are_those_of_a_pool(capsys, tmp_path):
    assert main(["draw", "pages", "20", "7", "--page-size", "16", "--forks", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["sequence 0", "20 tokens"],
        ["sequence 1", "7 tokens"],
        ["sequence 2", "20 tokens"],
    ]
    pages = [line.rpartition("pages ")[2] for line in lines]
    assert pages[0] == pages[2] and len(set(pages[0].strip("[]").split(", "))) == 2 and pages[1] != pages[0]
    path = tmp_path / "pages.svg"
    assert main(["draw", "pages", "20", "7", "--pages", "40", "--svg", str(path)]) == 0
    assert "40 pages of 16 tokens" in ElementTree.parse(path).getroot().find("{*}text").text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["map", "--lanes", "3"], "3 lanes along a row do not divide the 32 of a warp"),
        (["layout", "--atom", "7", "64"], "is no whole number of atoms of 7 x 64"),
        (["pages", "100", "--pages", "2"], "free"),
        (["pages", "5", "-1"], "lengths and forks must be 0 at least"),
        (["map", "--rows", "0", "--svg", "x.svg"], "rows is 0; draw 1 at least"),
    ],
)
def test_what_cannot_be_drawn_is_told(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    if "-1" in words:
        words = [words[0], "5", "--", "-1"]
    assert main(["draw", *words]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
