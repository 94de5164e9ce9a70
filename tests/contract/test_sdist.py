"""The source distribution: every source is in it, and nothing that a build left behind."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import PurePosixPath

import pytest

from support import ROOT
from support.sources import BUILT, FOLDERS

# Beside the folders of sources and docs.
LOOSE = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py", ".clang-format"}
# What setuptools adds.
ADDED = {"PKG-INFO", "setup.cfg"}
# What a build in place leaves in the tree.
LEFT_BEHIND = (
    "kvit/_kernels/index.json",
    "kvit/_kernels/sm_80/read_all.cubin.xz",
    "kvit/_native/module.cpython-311-x86_64-linux-gnu.so",
    "kvit/_native/module.pxd",
    "kvit/_native/module.pyi",
    "kvit/__pycache__/codecs.cpython-311.pyc",
    "build/kernels/build.ninja",
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Names in the source distribution of a copy of this tree in which something was built."""
    scratch = tmp_path_factory.mktemp("sdist")
    tree = scratch / "tree"
    tree.mkdir()
    for folder in (*FOLDERS, "docs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", *BUILT))
    for name in LOOSE:
        shutil.copy(ROOT / name, tree / name)
    for name in LEFT_BEHIND:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(scratch)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (archive,) = scratch.glob("kvit-*.tar.gz")
    with tarfile.open(archive) as tar:
        paths = [PurePosixPath(member.name) for member in tar.getmembers() if member.isfile()]
    return {PurePosixPath(*path.parts[1:]).as_posix() for path in paths}


def all_sources():
    """Every file of the tree's folders that no build left there."""
    for folder in (*FOLDERS, "docs"):
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT)
            declared = relative.parent.as_posix() == "kvit/_native" and path.suffix in {".pxd", ".pyi"}
            if path.is_file() and BUILT.isdisjoint(relative.parts) and path.suffix != ".so" and not declared:
                yield relative.as_posix()


def test_every_source_is_in_it_and_what_a_build_left_behind_is_not(packed):
    info = {name for name in packed if name.startswith("kvit.egg-info/")}
    assert packed - info - ADDED == set(all_sources()) | LOOSE


def test_what_the_build_reads_is_in_it(packed):
    # Of each kind one, so that the test above cannot agree by comparing two empty folders.
    for name in (
        "kernels/manifest.toml",
        "kernels/codegen/ninja.py",
        "kernels/entry/decode.cuh",
        "kernels/platform/host_fibers.cpp",
        "pyx/runtime/module.pyx",
        "pyx/runtime/module.pxd",
        "kvit/include/kvit.h",
        "kvit/capi.pxd",
        "kvit/selection/rules.json",
        "kvit/py.typed",
    ):
        assert name in packed
