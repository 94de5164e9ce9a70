"""kernels/codegen, end to end on one small family: what is compiled, what is compiled again, and what is published."""

import json
import lzma
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen.build import build_host_library, build_kernels, choose_archs, choose_jobs, wants_asked
from codegen.emit import units_of
from codegen.errors import BuildError
from codegen.manifest import parse_manifest
from codegen.ninja import run_ninja, write_ninja
from codegen.toolchain import find_ninja
from support import KERNELS, ROOT
from support.toolkit import make_ptxas, make_script, make_toolkit

MANIFEST = """
[targets]
default = ["sm_80", "compute_80"]
all = ["sm_80", "sm_90", "sm_90a", "compute_80"]

[fill]
header = "entry/fill.cuh"
type = "FillKernel<{n}>"
params = "FillParams"
symbol = "n{n}"
unit = "n{n}"
axes.n = [1, 2, 3]
only = [{ when = { n = 3 }, archs = ["sm_90a"], reason = "three at a time needs what older GPUs lack" }]

[sum]
header = "entry/sum.cuh"
type = "SumKernel"
params = "SumParams"
symbol = "all"
unit = "all"
archs = ["sm_80"]
axes = {}
"""

# What a kernel must have, and nothing else, so that it compiles in a moment. {head} and {value} are filled in.
KERNEL = """
#include "abi/fact.h"
#include "entry/value.cuh"
#include "platform/platform.cuh"

namespace kvit {{
struct {name}Params {{ int32_t *out; int64_t count; }};
{head} struct {name}Kernel {{
  using Params = {name}Params;
  static constexpr int kThreads = 64, kSharedBytes = 256, kMinCtas = 2;
  static constexpr KvitFact kFacts[] = {{{{"value", {value}}}}};
  KVIT_DEVICE static void Run(const Params &params, char *) {{ StoreGlobal<int32_t>(params.out, {value}); }}
}};
}}  // namespace kvit
"""

# Stands in for nvcc: the same command line, a real depfile (made by g++), and PTX that tells what it was asked for.
NVCC = """
for word; do
  case $last in -o) out=$word;; -MF) depfile=$word;; esac
  case $word in *.cu) source=$word;; -I*) include=$word;; esac
  last=$word
done
g++ -std=c++20 "$include" -x c++ -M -MF "$depfile" "$source" || exit 1
printf '.version 9.0\\n\\t.pragma "used_bytes_mask 0xf0f0";\\n// %s\\n' "$*" > "$out"
"""


@pytest.fixture(scope="module")
def first_build(tmp_path_factory):
    """Two families of this test's own on the real platform, built once for all targets and for the host."""
    tree = tmp_path_factory.mktemp("first")
    kernels = tree / "kernels"
    (kernels / "entry").mkdir(parents=True)
    for folder in ("abi", "core", "platform"):
        (kernels / folder).symlink_to(KERNELS / folder)
    (kernels / "manifest.toml").write_text(MANIFEST)
    (kernels / "entry" / "value.cuh").write_text("inline constexpr int kValue = 40;\n")
    (kernels / "entry" / "fill.cuh").write_text(KERNEL.format(name="Fill", head="template <int N>", value="kValue + N"))
    sum_header = KERNEL.format(name="Sum", head="", value="7").replace('#include "entry/value.cuh"\n', "")
    (kernels / "entry" / "sum.cuh").write_text(sum_header)
    make_compilers(tree)
    with pytest.MonkeyPatch.context() as patch:
        build(tree, patch, archs="sm_80;compute_80")
    return tree


@pytest.fixture
def tree(first_build, tmp_path):
    """A copy of the first build, time stamps included, that a test may change."""
    return shutil.copytree(first_build, tmp_path / "tree", symlinks=True)


def make_compilers(tree, release="13.0"):
    """A toolkit and the assembler of CUDA 12 in tree/site."""
    make_toolkit(tree / "site" / "nvidia" / "cu13", release, nvcc=NVCC)
    make_ptxas(tree / "site" / "nvidia" / "cuda_nvcc" / "bin" / "ptxas", "12.9")


def build(tree, monkeypatch, archs=None):
    """Build with the toolkit in tree/site, as if pip had put it there, and return the index."""
    monkeypatch.setattr(sys, "path", [str(tree / "site"), *sys.path])
    monkeypatch.delenv("KVIT_ARCHS", raising=False)
    index = build_kernels(tree / "kernels", tree / "build", tree / "out", version="1.2.3", archs=archs, jobs=1)
    return json.loads(index.read_text())


def unpacked(tree, name):
    return lzma.decompress((tree / "out" / name).read_bytes())


def published(tree):
    return {path.relative_to(tree / "out").as_posix() for path in (tree / "out").rglob("*") if path.is_file()}


def steps_after_touching(tree, *paths):
    """What ninja would do once these files are newer than everything that was built."""
    now = time.time() + 10
    for path in paths:
        os.utime(path, (now, now))
    return run_ninja(tree / "build", find_ninja(), 1, dry_run=True)


def test_kernels_that_few_want_are_asked_for_by_an_environment_variable():
    assert not wants_asked({})
    assert not wants_asked({"KVIT_KERNELS": "default"})
    assert wants_asked({"KVIT_KERNELS": "all"})
    with pytest.raises(BuildError, match="KVIT_KERNELS is 'every'; it must be default, or all"):
        wants_asked({"KVIT_KERNELS": "every"})


def test_every_kernel_is_compiled_for_its_targets_and_for_the_host_and_is_in_the_index(tree):
    index = json.loads((tree / "out" / "index.json").read_text())
    assert published(tree) == {
        "index.json",
        "libkvit_host.so",
        "sm_80/fill_n1.cubin.xz",
        "sm_80/fill_n2.cubin.xz",
        "sm_80/sum_all.cubin.xz",
        "compute_80/fill_n1.ptx.xz",
        "compute_80/fill_n2.ptx.xz",
    }
    assert {name: value for name, value in index.items() if name != "kernels"} == {
        "version": 1,
        "kvit": "1.2.3",
        "cuda": "13.0",
        "ptxas": "12.9",
        "archs": ["sm_80", "compute_80"],
        "drivers": {"sm_80": [12, 0], "compute_80": [12, 0]},
    }
    assert index["kernels"][1] == {
        "symbol": "kvit_fill__n2",
        "family": "fill",
        "unit": "n2",
        "axes": {"n": 2},
        "params": "FillParams",
        "params_bytes": 16,
        "threads": 64,
        "shared_bytes": 256,
        "min_ctas": 2,
        "facts": {"value": 42},
        "archs": ["sm_80", "compute_80"],
    }
    assert [kernel["archs"] for kernel in index["kernels"][2:]] == [[], ["sm_80"]]  # fill_n3: for the host alone here
    ptx, cubin = unpacked(tree, "compute_80/fill_n1.ptx.xz"), unpacked(tree, "sm_80/fill_n1.cubin.xz")
    assert b"-arch=compute_80 -ptx" in ptx
    # Marked as PTX that drivers of CUDA 12.0 know, without the hints that came later.
    assert ptx.startswith(b".version 8.0\n") and b"used_bytes_mask" not in ptx
    # The same PTX, assembled by ptxas of CUDA 12 into a cubin of ELF ABI version 7: no C++ is translated twice.
    assert cubin.startswith(b"\x7fELF") and cubin[8] == 7 and ptx in cubin
    assert b"-arch=sm_80" in cubin.partition(ptx)[2]
    assert "registers" in (tree / "build" / "out" / "sm_80" / "fill_n1.cubin.log").read_text()


def test_touching_one_header_compiles_only_what_includes_it(tree):
    assert run_ninja(tree / "build", find_ninja(), 1, dry_run=True) == []
    assert sorted(steps_after_touching(tree, tree / "kernels" / "entry" / "value.cuh")) == [
        "g++ fill_n1",
        "g++ fill_n2",
        "g++ fill_n3",
        "link out/libkvit_host.so",
        "nvcc compute_80 fill_n1",
        "nvcc compute_80 fill_n2",
        "ptxas sm_80 fill_n1",
        "ptxas sm_80 fill_n2",
    ]


def test_all_builds_what_the_rows_allow_each_cubin_from_ptx_of_its_own_target(tree, monkeypatch):
    index = build(tree, monkeypatch, archs="all")
    targets = {kernel["symbol"]: kernel["archs"] for kernel in index["kernels"]}
    assert targets == {
        "kvit_fill__n1": ["sm_80", "sm_90", "compute_80"],
        "kvit_fill__n2": ["sm_80", "sm_90", "compute_80"],
        "kvit_fill__n3": ["sm_90a"],
        "kvit_sum__all": ["sm_80"],
    }
    assert "sm_90a/fill_n3.cubin.xz" in published(tree) and "sm_80/fill_n3.cubin.xz" not in published(tree)
    cubin = unpacked(tree, "sm_90a/fill_n3.cubin.xz")
    assert b"-arch=compute_90a -ptx" in cubin and b"-arch=sm_90a" in cubin
    assert not (tree / "out" / "compute_90a").exists()  # what cubins were made from is published where it was asked for


def test_units_with_most_kernels_are_begun_first(tree):
    sums, fills = (tree / "kernels" / "manifest.toml", 'unit = "n{n}"')
    manifest = parse_manifest(sums.read_text().replace(fills, 'unit = "few"').replace("n = 3 }", "n = [1, 2, 3] }"))
    write_ninja(tree / "build", tree / "kernels", units_of(reversed(manifest.specs())), (), "g++", None)
    edges = [line for line in (tree / "build" / "build.ninja").read_text().splitlines() if "gxx source/" in line]
    assert [edge.split()[1] for edge in edges] == ["host/fill_few.o:", "host/sum_all.o:"]


def test_a_moved_tree_and_a_toolkit_unpacked_elsewhere_compile_nothing_again(tree, monkeypatch):
    # The tree is a copy already. pip's hermetic builds unpack the compiler into a new folder each time, with new times.
    shutil.rmtree(tree / "site")
    make_compilers(tree)
    before = (tree / "build" / ".ninja_log").read_bytes()
    build(tree, monkeypatch)
    assert (tree / "build" / ".ninja_log").read_bytes() == before


def test_another_release_of_the_toolkit_compiles_everything_for_the_gpu_again(tree, monkeypatch, capfd):
    shutil.rmtree(tree / "site")
    make_compilers(tree, release="13.1")
    assert build(tree, monkeypatch, archs="sm_80;compute_80")["cuda"] == "13.1"
    output = capfd.readouterr().out
    assert output.count("nvcc compute_80") == output.count("ptxas sm_80") == 3
    assert "g++ " not in output


def test_without_ptxas_of_cuda_12_cubins_are_assembled_again_and_the_index_says_that_they_need_a_newer_driver(
    tree, monkeypatch, capfd
):
    shutil.rmtree(tree / "site" / "nvidia" / "cuda_nvcc")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "nvidia" / "cuda_nvcc").exists()])
    index = build(tree, monkeypatch, archs="sm_80;compute_80")
    assert (index["ptxas"], index["drivers"]) == ("13.0", {"sm_80": [13, 0], "compute_80": [12, 0]})
    done = capfd.readouterr()
    assert done.out.count("ptxas sm_80") == 3 and "nvcc compute_80" not in done.out
    assert "need a driver of CUDA 13.0 (r580)" in done.err


def test_a_narrower_build_takes_away_what_an_earlier_one_published(tree, monkeypatch):
    index = build(tree, monkeypatch, archs="none")
    assert published(tree) == {"index.json", "libkvit_host.so"}
    assert (index["cuda"], index["archs"]) == (None, [])
    assert all(kernel["archs"] == [] for kernel in index["kernels"])


def test_a_kernel_that_does_not_compile_is_a_build_error_that_shows_the_compiler_s_message(tree, monkeypatch, capfd):
    (tree / "kernels" / "entry" / "sum.cuh").write_text("#error no sum today\n")
    with pytest.raises(BuildError, match="does not compile"):
        build(tree, monkeypatch, archs="none")
    assert "no sum today" in capfd.readouterr().out


def test_a_compiler_in_a_folder_with_a_space_builds(tree, monkeypatch):
    program = make_script(tree / "my $tools" / "g++", 'exec g++ "$@"')
    monkeypatch.setenv("CXX", str(program))
    (tree / "kernels" / "entry" / "value.cuh").write_text("inline constexpr int kValue = 41;\n")
    assert build(tree, monkeypatch, archs="none")["archs"] == []


def for_windows(tree, monkeypatch, machine="x86_64-w64-mingw32"):
    """A compiler in tree/windows that says that it is for this machine, and compiles for the one that runs the test."""
    compiler = make_script(
        tree / "windows", f'if [ "$1" = -dumpmachine ]; then echo {machine}; exit; fi\ng++ -fPIC "$@"'
    )
    monkeypatch.setenv("CXX", str(compiler))
    return compiler


def test_the_host_library_alone_is_made_for_the_system_that_the_compiler_is_for(tree, monkeypatch):
    for_windows(tree, monkeypatch)
    library = build_host_library(tree / "kernels", tree / "windows_build", jobs=1)
    assert library == tree / "windows_build" / "out" / "kvit_host.dll" and library.exists()
    steps = (tree / "windows_build" / "build.ninja").read_text()
    # Flags that a linker for Windows refuses, and targets that there is no compiler for.
    assert "-fPIC" not in steps and "-z,defs" not in steps and ".cubin" not in steps
    monkeypatch.delenv("CXX")
    assert build_host_library(tree / "kernels", tree / "host_build", jobs=1).name == "libkvit_host.so"
    assert "-fPIC" in (tree / "host_build" / "build.ninja").read_text()


@pytest.mark.parametrize("machine", ["x86_64-w64-mingw32", "x86_64-unknown-windows-gnu"])
def test_a_compiler_for_windows_is_refused_where_modules_are_to_be_built(machine, tree, monkeypatch):
    compiler = for_windows(tree, monkeypatch, machine)
    before = published(tree)
    with pytest.raises(BuildError, match=f"{compiler} compiles for Windows.*\n.*Set CXX to a compiler for Linux"):
        build(tree, monkeypatch)
    assert published(tree) == before


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"KVIT_ARCHS": "sm_12"}, "KVIT_ARCHS names sm_12"),
        ({"KVIT_ARCHS": "none", "CXX": "no-such-compiler"}, "no C++ compiler 'no-such-compiler'"),
        ({"KVIT_ARCHS": "none", "KVIT_JOBS": "many"}, "KVIT_JOBS is 'many'"),
    ],
)
def test_what_is_wrong_is_said_before_any_module_is_translated_or_compiled(environ, words, tmp_path):
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    command = [sys.executable, str(ROOT / "setup.py"), "build_ext", *folders]
    # The environment's own ninja and headers are found beside its packages; of PATH nothing is needed.
    environ = {**os.environ, "PATH": "/usr/bin:/bin", **environ}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ, cwd=tmp_path)
    assert done.returncode == 1 and f"kvit: {words}" in done.stderr, done.stderr
    assert "ythoniz" not in done.stdout and "building" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_kvit_archs_chooses_in_the_order_of_the_manifest():
    manifest = parse_manifest(MANIFEST)
    assert choose_archs(manifest, None) == choose_archs(manifest, "") == ("sm_80", "compute_80")
    assert choose_archs(manifest, "all") == ("sm_80", "sm_90", "sm_90a", "compute_80")
    assert choose_archs(manifest, "compute_80; sm_80") == ("sm_80", "compute_80")
    assert choose_archs(manifest, "compute_80") == ("compute_80",)
    assert choose_archs(manifest, "none") == ()


def test_a_target_and_its_relative_with_a_letter_are_built_together():
    # sm_90a alone would lack every kernel that needs no letter, and sm_90 those that do.
    manifest = parse_manifest(MANIFEST)
    assert choose_archs(manifest, "sm_90") == choose_archs(manifest, "sm_90a") == ("sm_90", "sm_90a")


def test_kvit_archs_with_a_target_outside_the_manifest_says_which_there_are():
    with pytest.raises(
        BuildError, match="KVIT_ARCHS names sm_70; the manifest builds sm_80, sm_90, sm_90a, compute_80"
    ):
        choose_archs(parse_manifest(MANIFEST), "sm_80;sm_70")


def test_kvit_jobs_is_a_number_or_an_error():
    assert choose_jobs({"KVIT_JOBS": "3"}) == 3
    assert choose_jobs({}) >= 1
    with pytest.raises(BuildError, match="KVIT_JOBS is 'many'"):
        choose_jobs({"KVIT_JOBS": "many"})
