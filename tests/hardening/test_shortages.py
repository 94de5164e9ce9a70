"""Hunts for what a failed allocation leaves behind: any request for memory, threads or stacks fails, once or for good.

Each operation runs in a process of its own (tests/support/shortages.py), so that an abort is seen, and named.
"""

import json
import os
import subprocess
import sys

import pytest

from support import ROOT
from support.shortages import CACHE_CALLS, PLAIN_CALLS

SUPPORT = ROOT / "tests" / "support"
KINDS = ("memory", "threads", "pages")
BROKEN_CYTHON = ("_cython_3_3_0", "_cython_3_3_1")


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library whose allocations fail."""
    import kvit._native.tensor  # noqa: F401

    if any(name in sys.modules for name in BROKEN_CYTHON):
        pytest.skip("kvit was built by Cython 3.3, which frees an item twice where a list cannot grow")
    library = tmp_path_factory.mktemp("shortage") / "shortage.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", str(SUPPORT / "shortage.c"), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def run(shim, *arguments):
    """The counts of one run. Fails with the point at which the process ended, if it did not end well."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "PYTHONMALLOC": "malloc",  # so that Python's objects are asked for one by one, where allocations may fail
        "PYTHONFAULTHANDLER": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, str(SUPPORT / "shortages.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    *points, last = done.stdout.splitlines() or [""]
    where = f"{arguments}, after point {last}: exit status {done.returncode}"
    assert done.returncode == 0, f"{where}\n{done.stderr[-4000:]}"
    return json.loads(last)


@pytest.mark.hunt(share=12, short=1)
def test_a_failed_allocation_changes_nothing_and_ends_nothing(hunt, shim):
    calls = [
        (name, kind, how, workers)
        for name in (*CACHE_CALLS, *PLAIN_CALLS)
        for kind in KINDS
        for how in ("once", "lasting")
        for workers in (1, 3)
    ]
    if not hunt.is_long:
        calls = [(name, "memory", "once", 3) for name in ("append", "new_attention", "gather_rows", "graph")]
        calls.append(("defragment", "pages", "once", 3))  # in place: a launch that is broken off loses pages
    for i, (name, kind, how, workers) in enumerate(calls):
        seconds = max(0.5, hunt.left() / (len(calls) - i)) if hunt.is_long else 0.5
        counts = run(shim, name, kind, how, workers, 0, seconds)
        for what, number in counts.items():
            hunt.count(what, number)
        hunt.count("operations")
        hunt.tell()
    assert hunt.counts["points"] > 0
