"""The C headers are C, and a launch struct has the same size in C as in the kernels."""

import shutil
import subprocess

import pytest

from kvit.selection import registry
from support import KERNELS, ROOT
from support.manifest import the_manifest
from support.sources import sources

STRICT_C = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", KERNELS, "-I", ROOT / "kvit" / "include")


def compile_c(source, *arguments):
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "no C compiler; on Debian: apt install gcc"
    command = [compiler, *STRICT_C, *arguments, "-x", "c", "-"]
    done = subprocess.run(list(map(str, command)), input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sources(".h", under=("kernels/abi", "kvit/include")), ids=str)
def test_a_header_for_all_is_strict_c_on_its_own(path):
    compile_c(f'#include "{ROOT / path}"\nint main(void) {{ return 0; }}\n', "-fsyntax-only")


def test_the_host_backend_s_interface_is_strict_c():
    compile_c('#include "platform/host_api.h"\nint main(void) { return 0; }\n', "-fsyntax-only")


def test_launch_structs_have_the_same_size_in_c_as_in_the_kernels(tmp_path):
    structs = sorted({family.params for family in the_manifest().families})
    prints = "".join(f'  printf("{name} %d\\n", (int)sizeof({name}));\n' for name in structs)
    source = f'#include <stdio.h>\n#include "abi/probe_params.h"\nint main(void) {{\n{prints}  return 0;\n}}\n'
    compile_c(source, "-o", tmp_path / "sizes")
    output = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True).stdout
    in_c = {name: int(size) for name, size in (line.split() for line in output.splitlines())}
    assert {entry.params: entry.params_bytes for entry in registry.all()} == in_c
