"""python -m kvit, as a user runs it: text and JSON of every command, exit statuses, and errors without tracebacks."""

import json
import os
import subprocess
import sys

import pytest

from kvit import registry


def kvit(*arguments, **options):
    command = [sys.executable, "-m", "kvit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def succeed(*arguments):
    done = kvit(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fail(status, *arguments, **options):
    done = kvit(*arguments, **options)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_no_command_is_a_usage_error():
    assert "usage: kvit" in fail(2)


def test_version_is_that_of_the_package():
    assert succeed("--version").split() == ["kvit", registry.installed().kvit]


def test_info_tells_what_is_built_in_parts_that_add_up():
    found = json.loads(succeed("info", "--json"))
    built = found["built"]
    assert built["kernels"] == len(registry.all())
    assert [part["part"] for part in built["parts"]] == ["host", *registry.installed().archs]
    on_disk = [path for path in registry.KERNELS.rglob("*") if path.is_file() and path.name != "index.json"]
    assert (
        built["bytes"] == sum(part["bytes"] for part in built["parts"]) == sum(path.stat().st_size for path in on_disk)
    )
    assert all(part["missing_files"] == [] for part in built["parts"])


def test_info_lists_the_host_first_and_tells_versions():
    found = json.loads(succeed("info", "--json"))
    assert (found["devices"][0]["device"], found["devices"][0]["target"]) == ("host", "host")
    assert found["packages"]["numpy"] and found["packages"]["cuda-bindings"]
    assert (found["why_no_gpu"] is None) == (len(found["devices"]) > 1)


def test_info_on_a_machine_without_a_gpu_says_so_in_one_line():
    # An empty CUDA_VISIBLE_DEVICES hides the GPUs of a machine that has some.
    done = kvit("info", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0 and done.stderr == ""
    assert [line for line in done.stdout.splitlines() if "no CUDA GPU can be used" in line]


@pytest.mark.gpu
def test_info_lists_the_gpu_with_what_it_would_run():
    _, gpu, *_ = json.loads(succeed("info", "--json"))["devices"]
    assert gpu["device"] == "cuda:0" and gpu["num_sms"] > 0 and gpu["memory_bytes"] > 2**30
    assert gpu["target"] == registry.best_target(tuple(gpu["compute_capability"]), registry.installed().archs)


def test_kernels_lists_every_kernel_once():
    symbols = [word for word in succeed("kernels").split() if word.startswith("kvit_")]
    assert sorted(symbols) == sorted(entry.symbol for entry in registry.all())


def test_kernels_as_json_is_what_the_registry_knows():
    rows = {row["symbol"]: row for row in json.loads(succeed("kernels", "--json"))}
    for entry in registry.all():
        row = rows[entry.symbol]
        assert row["axes"] == dict(entry.axes) and row["archs"] == list(entry.archs)
        assert (row["threads"], row["shared_bytes"]) == (entry.threads, entry.shared_bytes)
        assert row["runs_on"]["host"] == "host"


def test_kernels_of_two_families_are_those_and_no_others():
    rows = json.loads(succeed("kernels", "--family", "decode", "--family", "merge", "--json"))
    assert {row["family"] for row in rows} == {"decode", "merge"}


def test_an_unknown_family_is_told_beside_those_that_there_are():
    words = fail(1, "kernels", "--family", "prefil")
    assert "'prefil'" in words and "decode" in words


def test_a_reader_that_leaves_early_is_no_error_to_look_at():
    done = subprocess.run(
        f"{sys.executable} -m kvit kernels --json | head -c 1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[", "")


def test_selfcheck_on_the_host_finds_nothing_wrong():
    words = succeed("selfcheck", "--device", "host", "--seconds", "3", "--seed", "11")
    assert words.startswith("seed 11\n")
    assert words.rstrip().endswith("all right")


@pytest.mark.gpu
def test_selfcheck_on_a_gpu_finds_nothing_wrong():
    assert succeed("selfcheck", "--device", "cuda:0", "--seconds", "20").rstrip().endswith("all right")


def test_selfcheck_runs_one_case_of_a_seed_again():
    assert "host: 1 of 1 cases" in succeed("selfcheck", "--device", "host", "--seed", "11", "--case", "3")


def test_selfcheck_of_all_devices_without_a_gpu_says_that_none_is_checked():
    arguments = ("selfcheck", "--seconds", "0.1")
    done = kvit(*arguments, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert "no GPU is checked: no CUDA GPU can be used" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--device", "gpu"), 1, '"cuda:N"'),
        (("--device", "host", "--case", "1000000"), 1, "cases 0 to"),
        (("--seconds", "0"), 2, "more than 0"),
        (("--seconds", "soon"), 2, "soon"),
        (("--seed", "-1"), 2, "negative"),
    ],
)
def test_selfcheck_says_what_is_wrong_with_its_arguments(arguments, status, words):
    assert words in fail(status, "selfcheck", *arguments)


def test_selfcheck_of_a_gpu_where_there_is_none_says_so():
    words = fail(1, "selfcheck", "--device", "cuda:0", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert words.startswith("kvit: no CUDA GPU can be used")
