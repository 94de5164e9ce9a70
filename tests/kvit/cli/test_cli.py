"""python -m kvit, as a user runs it: text and JSON of every command, exit statuses, and errors without tracebacks."""

import json
import os
import shlex
import subprocess
import sys
import zipfile

import pytest

import kvit as library
from kvit._cli import capacity, sizes
from kvit.selection import registry


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


def test_info_weighs_every_file_of_the_package_once(tmp_path):
    found = json.loads(succeed("info", "--json", "--packed"))
    parts = {part["part"]: part for part in found["package"]}
    targets = [f"kernels {arch}" for arch in registry.installed().archs]
    assert list(parts) == ["host backend", *targets, "extension modules", "Python", "C and Cython headers"]
    assert sum(part["files"] for part in parts.values()) == len(sizes.files(sizes.PACKAGE))
    # Kernels are packed already: a wheel makes nothing smaller of them, and a few bytes more at worst.
    assert all(0 < part["wheel_bytes"] < 1.01 * part["bytes"] for part in parts.values())
    assert parts["Python"]["wheel_bytes"] < parts["Python"]["bytes"] / 2
    kernels = {part["part"]: part["bytes"] for part in found["built"]["parts"]}
    assert [parts[name]["bytes"] for name in targets] == [kernels[arch] for arch in registry.installed().archs]


def test_a_part_in_a_wheel_weighs_what_zipfile_makes_of_it(tmp_path):
    (tmp_path / "_kernels" / "sm_80").mkdir(parents=True)
    for name in ("_kernels/sm_80/a.cubin.xz", "_kernels/sm_80/b.cubin.xz", "module.py"):
        (tmp_path / name).write_bytes(bytes(range(256)) * (len(name) * 7))
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in ("a", "b"):
            wheel.write(tmp_path / "_kernels" / "sm_80" / f"{name}.cubin.xz")
        packed = sum(entry.compress_size for entry in wheel.infolist())
    (kernels,) = (part for part in sizes.collect(("sm_80",), tmp_path, pack=True) if part["part"] == "kernels sm_80")
    assert (kernels["files"], kernels["wheel_bytes"]) == (2, packed)


MODEL = ("--layers", "32", "--kv-heads", "8", "--page-size", "64")


def budget(head_dim, *more):
    return json.loads(succeed("info", "--json", "--budget", "40GiB", *MODEL, "--head-dim", str(head_dim), *more))


def test_info_says_how_many_tokens_fit_for_every_pair_that_is_built():
    found = budget(128)
    built = registry.candidates("append", dtype="bf16", head_dim=128, variant="simple")
    pairs = {(pair["k"], pair["v"]): pair for pair in found["pairs"]}
    assert len(pairs) == len(found["pairs"]) == len(built)
    plain = pairs["bfloat16", "bfloat16"]
    # 32 layers of 8 heads of 128 channels, K and V, 2 bytes each: 128 KiB, of which 40 GiB hold 327,680.
    assert (plain["token_bytes"], plain["tokens"], plain["times_16_bit"]) == (131072, 327680, 1.0)
    for pair in pairs.values():
        page = pair["token_bytes"] * 64
        assert (
            pair["tokens"] == pair["pages"] * 64
            and pair["pages"] * page <= found["budget"] < (pair["pages"] + 1) * page
        )


def test_int8_keys_with_int4_values_hold_two_and_a_half_times_the_tokens_at_head_dim_128():
    # (scale, zero) weigh more beside shorter rows: 512 / 200 bytes, and 256 / 104.
    for head_dim, times in ((128, 2.56), (64, 2.4615)):
        pairs = {(pair["k"], pair["v"]): pair for pair in budget(head_dim)["pairs"]}
        assert pairs["int8", "int4"]["times_16_bit"] == pytest.approx(times, abs=1e-4)
        assert pairs["int8", "int4"]["tokens"] / pairs["bfloat16", "bfloat16"]["tokens"] == pytest.approx(
            times, abs=1e-3
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_token_takes_what_a_cache_of_that_pair_grows_by(dtype):
    for pair in budget(64, "--dtype", dtype)["pairs"]:
        few, more = (
            library.PagedCache(pages, 64, 8, 64, dtype=dtype, k=pair["k"], v=pair["v"], device="host").nbytes
            for pages in (2, 5)
        )
        assert 32 * (more - few) == 3 * 64 * pair["token_bytes"]


def test_info_tells_of_one_pair_alone():
    (pair,) = budget(128, "--k", "int8", "--v", "int4")["pairs"]
    assert (pair["k"], pair["v"], pair["token_bytes"]) == ("int8", "int4", 32 * 8 * 200)
    (pair,) = budget(128, "--v", "int8")["pairs"]
    assert (pair["k"], pair["v"]) == ("bfloat16", "int8")


def test_info_prints_the_tokens_as_a_table():
    lines = succeed("info", "--budget", "24GB", *MODEL, "--head-dim", "128").splitlines()
    assert lines[0] == "22.4 GiB for 32 layers of 8 KV heads, head_dim 128, bfloat16, in pages of 64"
    assert lines[1].split() == ["K", "V", "bytes", "per", "token", "tokens", "times", "16-bit"]
    assert lines[2].split() == ["bfloat16", "bfloat16", "131072", "183104", "1.00"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--budget", "40GiB"), 1, "--budget needs --layers, --kv-heads, --head-dim too"),
        (("--layers", "32"), 1, "add --budget"),
        (("--k", "int8"), 1, "add --budget"),
        (("--budget", "many"), 2, "'many' is no amount of memory; write it like 40GiB"),
        (("--budget", "0GiB"), 2, "no amount of memory"),
        (("--budget", "1GiB", *MODEL, "--head-dim", "0"), 2, "at least 1"),
        (("--budget", "1GiB", *MODEL, "--head-dim", "96"), 1, "built head_dims are 64, 128, 256"),
        (("--budget", "1GiB", *MODEL, "--head-dim", "64", "--k", "int3"), 1, "did you mean int8 or int4?"),
        (("--budget", "1GiB", *MODEL, "--head-dim", "64", "--k", "int4", "--v", "int8"), 1, "k='int8', v='int8'"),
        (("--budget", "1GiB", *MODEL, "--head-dim", "64", "--dtype", "float64"), 1, "dtype is float64"),
    ],
)
def test_info_says_what_is_wrong_with_a_budget(arguments, status, words):
    assert words in fail(status, "info", *arguments)


@pytest.mark.parametrize(
    ("words", "num_bytes"), [("4096", 4096), ("40GiB", 40 << 30), ("1.5 tib", 3 << 39), ("24GB", 24 * 10**9), ("7b", 7)]
)
def test_amounts_of_memory_are_read_in_either_kind_of_unit(words, num_bytes):
    assert capacity.parse_bytes(words) == num_bytes


def test_info_lists_the_host_first_and_tells_versions():
    found = json.loads(succeed("info", "--json"))
    host = found["devices"][0]
    assert (host["device"], host["targets"], host["too_new_for_driver"]) == ("host", {"host": len(registry.all())}, {})
    assert found["packages"]["numpy"] and found["packages"]["cuda-bindings"]
    assert (found["why_no_gpu"] is None) == (len(found["devices"]) > 1)


def test_info_on_a_machine_without_a_gpu_says_so_in_one_line():
    # An empty CUDA_VISIBLE_DEVICES hides the GPUs of a machine that has some.
    done = kvit("info", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0 and done.stderr == ""
    assert [line for line in done.stdout.splitlines() if "no CUDA GPU can be used" in line]


@pytest.mark.gpu
def test_info_lists_the_gpu_with_what_it_would_run():
    found = json.loads(succeed("info", "--json"))
    gpu = found["devices"][1]
    assert gpu["device"] == "cuda:0" and gpu["num_sms"] > 0 and gpu["memory_bytes"] > 2**30
    assert registry.find("read", loads=2).target(tuple(gpu["compute_capability"])) in gpu["targets"]
    assert found["driver"]["missing_functions"] == [] and gpu["too_new_for_driver"] == {}


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
    command = f"{shlex.quote(sys.executable)} -m kvit kernels --json | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[", "")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("info",),
        ("info", "--json"),
        ("kernels",),
        ("--version",),
        ("selfcheck", "--device", "host", "--seconds", "0.1"),
    ],
    ids=" ".join,
)
def test_a_full_disk_behind_the_output_is_told_without_a_traceback(arguments, unbuffered):
    command = [sys.executable, "-m", "kvit", *arguments]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=env)
    assert (done.returncode, done.stderr) == (1, "kvit: the output cannot be written: No space left on device\n")


def test_a_closed_output_is_no_reason_for_a_traceback():
    command = f"{shlex.quote(sys.executable)} -m kvit info >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


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
        (("--seconds", "soon"), 2, "'soon' is no time; give seconds"),
        (("--seconds", "nan"), 2, "'nan' is no time"),
        (("--seed", "-1"), 2, "negative"),
        (("--seed", "x"), 2, "argument --seed: 'x' is no number"),
        (("--case", "1.5"), 2, "argument --case: '1.5' is no number"),
    ],
)
def test_selfcheck_says_what_is_wrong_with_its_arguments(arguments, status, words):
    assert words in fail(status, "selfcheck", *arguments)


def test_selfcheck_of_a_gpu_where_there_is_none_says_so():
    words = fail(1, "selfcheck", "--device", "cuda:0", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert words.startswith("kvit: no CUDA GPU can be used")
