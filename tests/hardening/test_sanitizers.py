"""Hunts with compilers' sanitizers: addresses and undefined behaviour under the tests, data races under other hunts.

kvit is built again for them, which takes some minutes of all cores besides the time of the hunts.
"""

import os
import re
import subprocess
import sys

import pytest

from support import ROOT, sanitized

# Tests that run in a Python with AddressSanitizer, and folders of tests that build programs of their own.
IN_PYTHON = ("tests/kvit/ops", "tests/kvit/cache", "tests/interop", "tests/pyx", "tests/capi")
PROGRAMS = ("tests/kernels",)
# What measures time or memory, or stands in the place of the allocator, says nothing under a sanitizer.
LEFT_OUT = (
    "takes_at_most or leave_nothing or leak or shortage or gives_back or costs or reads_ahead or no_memory "
    "or comes_back or hosts or older"
)
SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|error)")


def run_tests(paths, tree, environment, seconds, *options, launcher=()):
    """(how the tests ended, counts, output), cut off where the time is over.

    tree  folder of the kvit that is tested: `python -m pytest` finds first what lies where it is started
    """
    paths = [str(ROOT / path) for path in paths]
    flags = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    command = [*launcher, sys.executable, "-m", "pytest", *flags, *options, *paths]
    try:
        done = subprocess.run(
            command, cwd=tree, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        return None, {}, (error.stdout or b"").decode(errors="replace")
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    counts = {what: int(number) for number, what in SUMMARY.findall(last)}
    return done.returncode, counts, done.stdout + done.stderr


def place_of_kvit(tree, environment):
    """Where a process that is started in `tree` finds kvit."""
    command = [sys.executable, "-c", "import kvit; print(kvit.__file__)"]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True).stdout


def over_files(hunt, folders, tree, environment, logs, *options):
    """All test files of some folders, in an order that is drawn, until the time is over; at least one."""
    files = sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("test_*.py"))
    files = [file for file in files if "shortage" not in file]
    for i in hunt.generator(0).permutation(len(files)):
        if hunt.counts["files"] and hunt.left() < 10:
            hunt.count("files that there was no time for")
            continue
        status, counts, output = run_tests([files[i]], tree, environment, max(300.0, hunt.left()), *options)
        found = sanitized.reports(logs)
        assert not found, f"{files[i]}\n" + "\n".join(text[:4000] for text in found.values())
        assert status in (None, 0, 5), f"{files[i]}: exit status {status}\n{output[-6000:]}"  # 5: all were left out
        hunt.count("files" if status is not None else "files that were cut off")
        for what, number in counts.items():
            hunt.count(what, number)
        hunt.tell()


def logging_to(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.hunt(share=22)
def test_the_tests_meet_no_wrong_address_and_no_undefined_behaviour(hunt, builds, jobs, tmp_path):
    tree, logs = sanitized.build_all(builds / "address", sanitized.ADDRESS, jobs), logging_to(tmp_path / "logs")
    environment = {
        "PYTHONPATH": str(tree),
        "LD_PRELOAD": sanitized.preloaded(),
        # CPython's own leaks are many: leaks are looked for in programs, and by tests/hardening/test_leaks.py.
        "ASAN_OPTIONS": f"detect_leaks=0:detect_stack_use_after_return=0:log_path={logs}/address",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={logs}/undefined",
    }
    assert place_of_kvit(tree, environment).startswith(str(tree))
    over_files(hunt, IN_PYTHON, tree, environment, logs, "-k", f"not ({LEFT_OUT})")


@pytest.mark.hunt(share=8)
def test_programs_of_the_tests_leak_nothing_and_stay_in_their_memory(hunt, tmp_path):
    tools, logs = sanitized.compilers(tmp_path / "compilers", sanitized.ADDRESS), logging_to(tmp_path / "logs")
    environment = {
        "PATH": os.pathsep.join([str(tools), os.environ["PATH"]]),
        "CXX": str(tools / "g++"),
        "ASAN_OPTIONS": f"detect_leaks=1:detect_stack_use_after_return=0:log_path={logs}/address",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={logs}/undefined",
    }
    over_files(hunt, PROGRAMS, ROOT, environment, logs, "-k", f"not (build or toolchain or sass or {LEFT_OUT})")


@pytest.mark.hunt(share=15)
def test_kernels_have_no_data_race(hunt, builds, jobs, tmp_path):
    """An OS thread for each CUDA thread: what the kernels' own barriers do not order, ThreadSanitizer reports."""
    library = sanitized.build_library(builds / "thread", sanitized.THREAD, jobs)
    logs = logging_to(tmp_path / "logs")
    environment = {
        "KVIT_HARDENING_LIBRARY": str(library),
        "KVIT_HARDENING_SCHEDULER": "threads",
        "LD_PRELOAD": sanitized.runtime("libtsan.so"),
        # Python itself is not looked at: it is not compiled for it.
        "TSAN_OPTIONS": f"report_signal_unsafe=0:detect_deadlocks=0:log_path={logs}/thread",
    }
    hunts = ["tests/hardening/test_races.py"]
    minutes = max(0.5, hunt.left() / 60)
    options = ("--hardening=long", f"--hardening-minutes={minutes}", f"--hardening-seed={hunt.seed}")
    # Without address randomisation: ThreadSanitizer of GCC 12 does not start under the widest one of newer kernels.
    status, _, output = run_tests(hunts, ROOT, environment, 60 * minutes + 900, *options, launcher=("setarch", "-R"))
    found = sanitized.reports(logs)
    assert not found, "\n".join(text[:6000] for text in found.values())
    assert status == 0, output[-6000:]
    for number, what in re.findall(r"(\d+) (rounds|launches)", output):
        hunt.count(what, int(number))
    assert hunt.counts["launches"] > 0, output[-3000:]
