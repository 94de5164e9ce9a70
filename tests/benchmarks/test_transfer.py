"""benchmarks/transfer.py and transfer_inputs.py: what is timed is proven first, and wrong arguments are told."""

import subprocess
import sys

import measure
import numpy as np
import pytest
import transfer
from transfer_inputs import Cell, Inputs, Setting

import kvit
from kvit._cli.compare import Mismatch
from support import ROOT

SETTING = Setting(kv_heads=2, query_heads=5, head_dim=64, page_size=16)


@pytest.fixture(scope="module")
def memory():
    return measure.RandomMemory("bfloat16", kvit.Stream("host"), seed=1)


def make(memory, rng, stored=("int8", "int4"), layout="NHD"):
    return Inputs(Cell(3, 20, stored, layout), SETTING, kvit.Stream("host"), memory, rng, copies=2)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("stored", transfer.STORED, ids=str)
def test_right_results_pass(memory, rng, stored, layout):
    inputs = make(memory, rng, stored, layout)
    for rope, with_queries in ((None, False), (kvit.Rope(64), False), (kvit.Rope(64), True)):
        op = kvit.Append(inputs.views[0], rope=rope)
        transfer.prove_append(inputs, op, transfer.appending(inputs, op, with_queries), with_queries)
    inputs = make(memory, rng, stored, layout)
    append, gather = kvit.Append(inputs.views[0]), kvit.Gather(inputs.views[0])
    transfer.prove_append(inputs, append, transfer.appending(inputs, append, False), False)
    transfer.prove_gather(inputs, gather, transfer.gathering(inputs, gather))


def test_an_append_that_does_not_turn_is_noticed(memory, rng):
    inputs = make(memory, rng)
    turning, idle = kvit.Append(inputs.views[0], rope=kvit.Rope(64)), kvit.Append(inputs.views[0])
    with pytest.raises(Mismatch, match="k of sequence 0"):
        transfer.prove_append(inputs, turning, transfer.appending(inputs, idle, False), False)


def test_calls_that_write_nothing_are_noticed(memory, rng):
    inputs = make(memory, rng)
    with pytest.raises(Mismatch, match="k of sequence 0"):
        transfer.prove_append(inputs, kvit.Append(inputs.views[0]), lambda copy: None, False)
    with pytest.raises(Mismatch, match="k gathered of sequence 0"):
        transfer.prove_gather(inputs, kvit.Gather(inputs.views[0]), lambda copy: None)


def test_bytes_are_those_read_and_written():
    # Rows of 64 channels: 128 bytes in 16 bits, 64 and 4 of parameters in int8, 32 and 4 in int4, 64 in float8.
    rows = 3 * 20 * SETTING.kv_heads
    assert Cell(3, 20, ("int8", "int4"), "NHD").kv_bytes(SETTING) == rows * (2 * 128 + 68 + 36)
    assert Cell(3, 20, ("bfloat16", "bfloat16"), "NHD").kv_bytes(SETTING) == rows * 4 * 128
    assert Cell(3, 20, ("float8_e4m3", "float8_e4m3"), "NHD").kv_bytes(SETTING) == rows * (2 * 128 + 2 * 64)
    assert Cell(3, 20, ("int8", "int8"), "NHD").query_bytes(SETTING) == 2 * 3 * 20 * 5 * 128


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "transfer.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "arguments, words", [(("--cells", "64"), "cells look like 8x512"), (("--stored", "int3"), "int3")]
)
def test_wrong_words_are_usage_errors(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_the_host_is_refused_with_the_reason():
    done = run("--device", "host")
    assert (done.returncode, done.stdout) == (2, "")
    assert "proves arithmetic, not speed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.gpu
def test_a_small_cell_is_measured_and_written(tmp_path):
    import json

    options = ("--cells", "2x64", "--stored", "int8", "--layouts", "NHD")
    done = run(*options, "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    assert "2 x 64" in done.stdout and "of a copy of as much" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    operations = [result["operation"] for result in found["results"]]
    assert operations == ["append + rope", "append + rope + q", "append", "gather"]
    assert all(0 < np.float64(result["us"]) < 1e4 for result in found["results"])
