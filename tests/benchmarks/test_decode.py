"""benchmarks/decode.py and inputs.py: what is timed is proven first, and wrong arguments are told."""

import subprocess
import sys

import decode
import measure
import numpy as np
import pytest
from cells import Cell, Setting
from inputs import Inputs

import kvit
from kvit._cli.compare import Mismatch
from support import ROOT


@pytest.fixture(scope="module")
def memory():
    return measure.RandomMemory("bfloat16", kvit.Stream("host"), seed=1)


def make(memory, rng, layout="NHD", page_size=64):
    # 150 tokens end within a page of 64.
    inputs = Inputs.make(Cell(4, 150, 4, 2), Setting(64, page_size, layout), kvit.Stream("host"), memory, rng, copies=2)
    views = inputs.views()
    return inputs, kvit.Attention(views[0], 4), views


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 64])
def test_a_right_result_passes(memory, rng, layout, page_size):
    decode.prove(*make(memory, rng, layout, page_size))


def test_a_call_that_writes_nothing_is_noticed(memory, rng):
    inputs, op, views = make(memory, rng)

    def idle(*arguments, **options):
        pass

    idle.check = op.check
    with pytest.raises(Mismatch, match="nan"):
        decode.prove(inputs, idle, views)


def test_a_call_that_reads_another_page_is_noticed(memory, rng):
    inputs, op, views = make(memory, rng)
    pages = np.asarray(inputs.table.pages)
    pages[[0, 1]] = pages[[1, 0]]  # the kernel's table, not the one that the reference reads
    with pytest.raises(Mismatch, match="sequence 0"):
        decode.prove(inputs, op, views)


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "decode.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_a_cell_that_is_none_is_a_usage_error():
    done = run("--cells", "64")
    assert done.returncode == 2
    assert "cells look like 64x8192" in done.stderr


def test_the_host_is_refused_with_the_reason():
    done = run("--device", "host")
    assert (done.returncode, done.stdout) == (1, "")
    assert "proves arithmetic, not speed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.gpu
def test_a_small_cell_is_measured_and_written(tmp_path):
    import json

    done = run("--cells", "2x1024", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    assert "2 x 1024" in done.stdout and "of ceiling" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    (cell,) = found["cells"]
    assert 0 < cell["gbps"] < 1.1 * found["ceiling"]["gbps"]
