"""kvit._cli.display: tables, sizes, and bars that keep quiet where nobody watches."""

import io
import sys

import pytest

from kvit._cli import display


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_line_up_on_the_right():
    assert display.table(("name", "n"), [("a", 5), ("long one", 123)]).splitlines() == [
        "name        n",
        "a           5",
        "long one  123",
    ]


def test_a_table_without_rows_is_its_header():
    assert display.table(("name", "n"), [], indent="  ") == "  name  n"


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2 << 30, "2.0 GiB")]
)
def test_a_size_has_the_largest_unit_that_leaves_one_of_it(num_bytes, text):
    assert display.size(num_bytes) == text


def test_no_bar_is_drawn_where_stderr_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    with display.progress("job") as step:
        step(0.5, "half")
    assert stderr.getvalue() == ""


def test_without_rich_a_plain_bar_shows_how_far_it_is_and_is_wiped_at_the_end(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setitem(sys.modules, "rich.console", None)  # makes importing it fail
    with display.progress("job") as step:
        step(0.5, "half of it")
    drawn, wiped = terminal.getvalue().split("\r")[1:3]
    assert drawn.startswith("job [###############...............]  50% half of it")
    assert wiped.strip() == ""


def test_with_rich_the_bar_is_rich_s(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with display.progress("job") as step:
        step(0.5, "half of it")
    assert "half of it" in terminal.getvalue()
