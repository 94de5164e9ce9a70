"""kvit tune on a GPU: on a driver that computes nothing, with times that a test makes up; and on a real one."""

import json
import os
import subprocess
import sys

import pytest

from kvit.selection import tuning
from support.processes import run_idle

HOPPER = {"archs": ["sm_90", "sm_90a"]}

# Kernels are not compared, as none computes; whichever the rules of kvit would take last is the fastest.
MEASURE = """
import contextlib, io
from kvit._cli import tune, tune_inputs
from kvit.__main__ import main
tune_inputs.Inputs._require_same = lambda *_: None
tune._times = lambda stream, calls, work: [float(len(calls) - i) for i in range(len(calls))]
said = io.StringIO()
with contextlib.redirect_stdout(said):
    found = [main(["tune", "--seconds", "0.1"]), said.getvalue()]
"""
CHOOSE = """
import kvit
view = kvit.PagedCache(4, 64, 2, 128, device="cuda:0").view
op = kvit.Attention(view, 8)
q, out = (kvit.Buffer.empty((1, 8, 128), "bfloat16", "cuda:0") for _ in range(2))
pages, lengths = (kvit.Buffer.empty(shape, "int32", "cuda:0") for shape in ((1, 4), (1,)))
table = kvit.PageTable(pages, lengths=lengths)
op(q, view, table, out=out)
found = [op.kernel.symbol, op.explain()]
"""


def test_a_gpu_has_a_file_of_its_own_which_the_next_process_chooses_by(tmp_path):
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), tuning.VARIABLE: ""}
    usual, _ = run_idle(tmp_path, CHOOSE, kernels=HOPPER, **environment)
    status, said = run_idle(tmp_path, MEASURE, kernels=HOPPER, **environment)
    path = tmp_path / "config" / "kvit" / "tuning-idle-driver.json"
    assert status == 0 and f"{path}, which processes that begin from now on read" in said
    assert "in 1 of 1 classes of calls another kernel is faster:" in said
    assert "decode tma h8" in said and "for 0 of" in said  # kvit's own choice; no way to keep K and V was finished
    found = tuning.read(path)
    assert found.card[:3] == ("idle driver", (9, 0), 132)
    best = {rule.axis: rule.order[0] for rule in found.rules}
    assert (best["family"], best["l2_promotion_bytes"]) == ("prefill", 128)
    chosen, explained = run_idle(tmp_path, CHOOSE, kernels=HOPPER, **environment)
    assert usual == "kvit_decode__bf16_b16_d128_h8_tma_plain" and chosen.startswith("kvit_prefill__bf16_b16_d128")
    assert f"({path})" in explained
    again, _ = run_idle(tmp_path, CHOOSE, kernels=HOPPER, **(environment | {tuning.VARIABLE: "none"}))
    assert again == usual


def test_another_gpu_leaves_the_file_out_and_says_so(tmp_path):
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), tuning.VARIABLE: ""}
    run_idle(tmp_path, MEASURE, kernels=HOPPER, **environment)
    chosen, explained = run_idle(
        tmp_path, CHOOSE, kernels=HOPPER | {"archs": ["sm_100"]}, IDLE_DRIVER_CC="100", **environment
    )
    assert chosen == "kvit_decode__bf16_b16_d128_h8_tma_plain"
    assert "left out   the rules of" in explained and "this card is idle driver (sm_100, 132" in explained


def test_a_gpu_that_computes_nothing_is_not_timed(tmp_path):
    code = "from kvit.__main__ import main\nimport contextlib, io\nsaid = io.StringIO()\n"
    code += "with contextlib.redirect_stderr(said):\n    found = [main(['tune', '--seconds', '1']), said.getvalue()]\n"
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), tuning.VARIABLE: ""}
    status, said = run_idle(tmp_path, code, kernels=HOPPER, **environment)
    assert status == 1 and "none was timed and nothing is written" in said and "is not finite everywhere" in said
    assert not (tmp_path / "config").exists()


def test_a_file_that_cannot_be_read_does_not_stand_in_the_way(tmp_path):
    path = tmp_path / "config" / "kvit" / "tuning-idle-driver.json"
    path.parent.mkdir(parents=True)
    path.write_text("broken")
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), tuning.VARIABLE: ""}
    status, _ = run_idle(tmp_path, MEASURE, kernels=HOPPER, **environment)
    assert status == 0 and tuning.read(path).rules


def test_what_l2_fetches_is_measured_as_it_is_named(tmp_path):
    # Each tensor map is made by the first call over its view, under the rules that are measured.
    program = """
from kvit._cli import tune_inputs
whole = tune_inputs.Inputs._result
def result(*arguments):
    found = whole(*arguments)
    promotions.append(count("promotion"))
    return found
promotions, tune_inputs.Inputs._result = [], result
"""
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), tuning.VARIABLE: ""}
    kept = "\nfound = promotions\n"
    promotions = run_idle(tmp_path, program + MEASURE + kept, kernels=HOPPER, **environment)
    # CUtensorMapL2promotion of cuda.h: 3 is 256 bytes, which kvit's own rules choose here, and 2 is 128.
    assert promotions[:2] == [3, 2] and set(promotions[2:]) == {3}


@pytest.mark.gpu
def test_a_gpu_is_measured_in_the_time_that_is_given(tmp_path):
    path = tmp_path / "file.json"
    command = [sys.executable, "-m", "kvit", "tune", "--seconds", "20", "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = tuning.read(path)
    assert len(found.rules) > 20 and all("microseconds" in rule.why for rule in found.rules)
    info = [sys.executable, "-m", "kvit", "info", "--json"]
    said = subprocess.run(info, capture_output=True, text=True, env={**os.environ, tuning.VARIABLE: str(path)})
    assert json.loads(said.stdout)["devices"][1]["tuning"]["rules"] == len(found.rules)
