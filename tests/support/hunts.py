"""Hunts: tests that look for faults as long as they are given, from a seed that is told, and count what they did.

    @pytest.mark.hunt(share=10, short=200)       a test of tests/hardening; without `short` it runs in long runs alone
    def test_x(hunt):
        for rng in hunt.rounds():                200 rounds, or in a long run its share of the time
            hunt.count("right")

A round has a generator of its own, which depends on the seed, the test and the round alone. The report of a failure
says how to run that round again.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

_PROGRESS_SECONDS = 20


def add_options(parser: pytest.Parser) -> None:
    """The options of hunts."""
    group = parser.getgroup("hardening", "hunts for faults (tests/hardening)")
    group.addoption(
        "--hardening", choices=["short", "long"], default="short",
        help="short: a few seconds of each hunt, as every run does; long: all hunts, for --hardening-minutes",
    )  # fmt: skip
    group.addoption(
        "--hardening-minutes", type=float, default=60, metavar="N",
        help="what the hunts that are chosen take together in a long run (60): they share it",
    )  # fmt: skip
    group.addoption(
        "--hardening-seed", type=int, metavar="N",
        help="of all that hunts draw; 0 in a short run if absent, a new one, which is told, in a long one",
    )  # fmt: skip
    group.addoption(
        "--hardening-folder", metavar="PATH",
        help="where sanitized builds lie, and are built upon by the next run; a temporary folder if absent",
    )  # fmt: skip
    group.addoption("--hardening-round", type=int, metavar="N", help="run this round of the chosen hunts alone")


class Hunt:
    """One test's time, rounds and counts. `seconds` is None in a short run."""

    def __init__(self, item: pytest.Item, short: int | None, seconds: float | None):
        self.seed: int = item.config.option.hardening_seed
        self.seconds = seconds
        self.round = -1
        self.counts: Counter[str] = Counter()
        self._item, self._short = item, short
        self._begun = self._told = time.monotonic()

    @property
    def is_long(self) -> bool:
        return self.seconds is not None

    def left(self) -> float:
        """Seconds of its share that are left; none in a short run."""
        return 0.0 if self.seconds is None else self._begun + self.seconds - time.monotonic()

    def rounds(self, at_least: int = 0) -> Iterator[np.random.Generator]:
        """A generator of each round: as many rounds as a short run has, or as the share of a long one lets begin.

        at_least  rounds of a long run, however long they take
        """
        only = self._item.config.option.hardening_round
        self.round = -1 if only is None else only - 1
        while True:
            self.round += 1
            if only is not None:
                is_over = self.round > only
            elif self.is_long:
                is_over = self.left() <= 0 and self.round >= at_least
            else:
                is_over = self.round >= (self._short or 1)
            if is_over:
                return
            self.counts["rounds"] += 1
            self.tell()
            yield self.generator(self.round)

    def generator(self, number: int) -> np.random.Generator:
        """The random numbers of one round."""
        return np.random.default_rng([self.seed, zlib.crc32(self._item.nodeid.encode()), number])

    def count(self, what: str, times: int = 1) -> None:
        """One more of these, for the summary."""
        self.counts[what] += times

    def tell(self) -> None:
        """Show how far it is, now and then, though pytest captures what tests print."""
        now = time.monotonic()
        if not self.is_long or now - self._told < _PROGRESS_SECONDS:
            return
        self._told = now
        capture = self._item.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{self._item.nodeid}: {now - self._begun:.0f} of {self.seconds:.0f} s, {self}", file=sys.stderr)
            sys.stderr.flush()

    def __str__(self) -> str:
        return ", ".join(f"{number} {what}" for what, number in self.counts.items()) or "nothing counted"


_HUNT = pytest.StashKey[Hunt]()


class Hunts:
    """The pytest plugin: chooses the hunts, shares the time, and adds up what they counted."""

    def __init__(self, config: pytest.Config, will_skip_gpu: Any):
        self._is_long = config.option.hardening == "long"
        self._minutes = config.option.hardening_minutes
        self._will_skip_gpu = will_skip_gpu
        self._total = 0.0
        if config.option.hardening_seed is None:  # workers of pytest-xdist are told the same
            config.option.hardening_seed = int.from_bytes(os.urandom(4), "little") if self._is_long else 0

    def pytest_report_header(self, config: pytest.Config) -> str:
        seed = config.option.hardening_seed
        if not self._is_long:
            return f"hardening: short, seed {seed}"
        return f"hardening: long, {self._minutes:g} minutes, seed {seed} (--hardening-seed={seed})"

    @pytest.hookimpl(trylast=True)  # after -m and -k
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept, left_out = [], []
        for item in items:
            mark = item.get_closest_marker("hunt")
            is_long_alone = mark is not None and "short" not in mark.kwargs
            (left_out if is_long_alone and not self._is_long else kept).append(item)
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = kept
        self._total = sum(self._share(item) for item in items)

    def _share(self, item: pytest.Item) -> float:
        mark = item.get_closest_marker("hunt")
        if mark is None or (item.get_closest_marker("gpu") and self._will_skip_gpu()):
            return 0.0
        return float(mark.kwargs["share"])

    @pytest.fixture
    def hunt(self, request: pytest.FixtureRequest) -> Hunt:
        """The time, the random numbers and the counts of this test."""
        item = request.node
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        seconds = 60 * self._minutes * workers * self._share(item) / self._total if self._is_long else None
        found = item.stash[_HUNT] = Hunt(item, item.get_closest_marker("hunt").kwargs.get("short"), seconds)
        return found

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Iterator[None]:
        report = (yield).get_result()
        hunt = item.stash.get(_HUNT, None)
        if hunt is None or report.when != "call":
            return
        report.user_properties.append(("hunt", dict(hunt.counts)))
        if report.failed and hunt.round >= 0:
            again = f"pytest '{item.nodeid}' --hardening-seed={hunt.seed} --hardening-round={hunt.round}"
            report.sections.append(("the same round again", again + (" --hardening=long" if hunt.is_long else "")))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        counted = [
            (report.nodeid.partition("tests/hardening/")[2] or report.nodeid, dict(report.user_properties)["hunt"])
            for reports in terminalreporter.stats.values()
            for report in reports
            if any(name == "hunt" for name, _ in getattr(report, "user_properties", ()))
        ]
        if not counted:
            return
        seed = terminalreporter.config.option.hardening_seed
        terminalreporter.section(f"hardening, seed {seed}")
        for name, counts in sorted(counted):
            terminalreporter.line(f"{name}: " + ", ".join(f"{number} {what}" for what, number in counts.items()))
