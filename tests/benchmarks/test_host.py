"""benchmarks/host.py, host_calls.py and idle_driver.py: what is timed runs, and what is missing says why."""

import json
import os
import subprocess
import sys

import host
import host_arrays
import host_case
import pytest

import kvit
from support import ROOT


def run(*arguments, **options):
    command = [sys.executable, str(ROOT / "benchmarks" / "host.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


def test_without_a_gpu_everything_but_the_driver_is_measured(tmp_path):
    done = run("--device", "host", "--rounds", "1", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    start, calls = found["start_ms"], found["call_us"]["idle driver"]
    assert 0 < start["import kvit"] < start["the first result (host), all in all"]
    # Without a GPU nothing else can be there; each of these has a time, and not a reason for having none.
    names = [
        "kvit.Attention", "kvit.Attention, by graph", "kvit.Attention, out alone",
        "kvit.Attention, out alone, by graph", "kvit.Append", "kvit.Append, by graph",
        "cache.append, 8 sequences", "cache.append, 256 sequences",
        "kvit.attention of a cache, 8 sequences", "kvit.attention of a cache, 256 sequences",
        "kvit.Batch step, 8 sequences", "kvit.Batch step, 256 sequences",
        "kvit.Graph of one attention", "kvit.h attention, from C", "kvit.h attention, from C, by graph",
        "cuda.bindings cuLaunchKernel",
    ]  # fmt: skip
    forms = ("", " and query_indptr", ", a new view and table")
    names += [f"arrays of kvit{form}" for form in forms] + ["Tensor.wrap of numpy's array on the host"]
    others = set(host_arrays.rows(is_idle=True)) - set(names)
    assert [name for name in calls if name not in others] == names
    assert {*calls} == {*names, *others}
    assert all(isinstance(calls[name], float) and 0 < calls[name] < 10_000 for name in names), calls
    # A library that is not installed says so; one that is has a time.
    missing = {name: why for name, why in calls.items() if isinstance(why, str)}
    assert all("Error: No module named" in why for why in missing.values()), missing
    for words in ("kvit.Attention", "us, idle driver", "import kvit"):
        assert words in done.stdout


def test_a_device_that_is_not_there_is_told_without_a_traceback():
    done = run("--device", "gpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert "device is 'gpu'" in done.stderr and "Traceback" not in done.stderr


def test_processes_import_the_kvit_that_runs_and_not_the_folder_that_they_are_started_in(tmp_path, monkeypatch):
    (tmp_path / "kvit").mkdir()
    (tmp_path / "kvit" / "__init__.py").write_text("raise ImportError('the source, and not what is installed')\n")
    monkeypatch.chdir(tmp_path)
    assert host._run([sys.executable, "-c", "import kvit; print(kvit.__file__)"]).strip() == kvit.__file__


NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("arguments", [(), ("--device", "cuda:1")])
def test_without_a_gpu_the_next_step_is_an_option_of_this_program(arguments):
    done = run(*arguments, env=NO_GPU)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no CUDA GPU can be used" in done.stderr and "give --device host" in done.stderr
    assert 'device="host"' not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [((), 2), (("--device", "host"), 2), (("--idle", "nowhere"), 2), (("--device", "gpu"), 1)],
)
def test_host_calls_without_its_driver_says_so_without_a_traceback(arguments, status):
    command = [sys.executable, str(ROOT / "benchmarks" / "host_calls.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=NO_GPU)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("host_calls: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["decode", "prefill", "transfer"])
@pytest.mark.parametrize("device", ["cuda:0", "host"])
def test_a_benchmark_of_gpus_sends_nobody_from_the_host_to_a_gpu_that_is_not_there(name, device):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=NO_GPU)
    assert (done.returncode, done.stdout) == (2, "")
    assert "proves arithmetic, not speed. Run this on a machine with a GPU" in done.stderr
    assert 'device="host"' not in done.stderr and "give --device" not in done.stderr


def test_fidelity_of_kernels_without_a_gpu_is_one_line():
    command = [sys.executable, str(ROOT / "benchmarks" / "fidelity.py"), "--kernel"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=NO_GPU)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "give --device host" in done.stderr


def test_a_missing_c_compiler_is_told_without_a_traceback():
    done = run("--device", "host", env={**os.environ, "CC": "no-such-compiler"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "host: no C compiler 'no-such-compiler'. On Debian: apt install gcc. Or set CC to one.\n"


def test_the_table_has_a_column_for_each_driver_and_tells_what_is_missing_below():
    launch = "cuda.bindings cuLaunchKernel"
    columns = {"cuda:0": {"a": 2.5, "b": "ImportError: no b", launch: 2.0}, "idle driver": {"a": 0.75, launch: 0.5}}
    header, *rows, reason = host.calls_table(columns).splitlines()
    assert header.split()[-7:] == ["us,", "cuda:0", "us,", "idle", "driver", "bare", "launches"]
    assert [row.split()[-3:] for row in rows] == [["2.50", "0.75", "1.5"], ["-", "-", "-"], ["2.00", "0.50", "1.0"]]
    assert reason == "b: ImportError: no b"


def test_a_burst_is_timed_after_everything_before_it_is_done():
    events = []
    burst = host_case.burst_of("do('call')", lambda: events.append("wait"), do=events.append)
    assert events == ["call"]  # which loads what the first call loads
    assert burst() > 0
    assert events[1:] == ["wait", *["call"] * host_case.NUM_CALLS, "wait"]


@pytest.mark.gpu
def test_on_a_gpu_both_drivers_are_measured(tmp_path):
    done = run("--rounds", "1", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {*found["call_us"]} == {"cuda:0", "idle driver"}
    for calls in found["call_us"].values():
        own = {name: us for name, us in calls.items() if "kvit" in name or "bindings" in name}
        assert {name: us for name, us in own.items() if not isinstance(us, float)} == {}
