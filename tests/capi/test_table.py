"""kvit.h, kvit/capi.pxd and the table behind the capsule say the same thing."""

import ctypes
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import kvit
from kvit import dtypes, errors
from support import ROOT, capi

INCLUDE = ROOT / "kvit" / "include"
HEADERS = [INCLUDE / "kvit_types.h", INCLUDE / "kvit_caches.h", INCLUDE / "kvit.h"]
TEXT = re.sub(r"//.*", "", "".join(header.read_text(encoding="utf-8") for header in HEADERS))
STRUCTS = {name: body for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", TEXT, re.S)}
DECLARATIONS = [ROOT / "kvit" / "capi_types.pxd", ROOT / "kvit" / "capi.pxd"]
CYTHON = re.sub(r"#.*", "", "".join(path.read_text(encoding="utf-8") for path in DECLARATIONS))


def members(text):
    """Names of the members of a struct, in their order, from the text between its braces."""
    functions = re.sub(r"\(\*(\w+)\)\([^;]*?\)", r"\1", text)
    return [re.search(r"(\w+)(\[\w+\])?$", part.strip())[1] for part in re.split(r"[;,]", functions) if part.strip()]


def run_c(tmp_path, body, *flags):
    source = tmp_path / "program.c"
    source.write_text(f'#include <stddef.h>\n#include <stdio.h>\n#include "kvit.h"\nint main(void) {{\n{body}\n}}\n')
    compiler = shutil.which("gcc") or shutil.which("cc")
    command = [compiler, "-std=c11", "-I", kvit.get_include(), *flags, source, "-o", tmp_path / "program"]
    subprocess.run(list(map(str, command)), check=True)
    return subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True).stdout


def test_the_headers_that_are_installed_are_these():
    for header in HEADERS:
        assert header.read_bytes() == Path(kvit.get_include(), header.name).read_bytes()


def test_every_struct_is_mirrored():
    assert set(STRUCTS) == set(capi.STRUCTS)


@pytest.mark.parametrize("name", capi.STRUCTS)
def test_structs_lie_in_c_as_these_tests_have_them(name, tmp_path):
    fields = [field for field, *_ in capi.STRUCTS[name]._fields_]
    assert members(STRUCTS[name]) == fields
    prints = "".join(f'printf("%zu ", offsetof({name}, {field}));' for field in fields)
    output = run_c(tmp_path, f'{prints}printf("%zu", sizeof({name}));return 0;')
    kind = capi.STRUCTS[name]
    assert list(map(int, output.split())) == [*(getattr(kind, field).offset for field in fields), ctypes.sizeof(kind)]


@pytest.mark.parametrize("name", capi.STRUCTS)
def test_cython_has_the_same_members(name):
    body = re.search(rf"ctypedef struct {name}:\n((?:\n|        .*\n)*)", CYTHON)[1]
    in_cython = re.findall(r"(\w+)\)?(?:\([^)]*\) noexcept nogil)?$", re.sub(r",\n\s+", ", ", body), re.M)
    # What nobody may use is not declared.
    assert in_cython == [field for field in members(STRUCTS[name]) if not field.startswith("reserved")]


def test_cython_has_every_constant():
    constants = set(re.findall(r"\b(KVIT_[A-Z0-9_]+) = ", TEXT)) | {"KVIT_API_VERSION", "KVIT_MAX_NDIM"}
    assert constants <= set(re.findall(r"\bKVIT_\w+", CYTHON))


def test_element_types_have_the_codes_of_the_kernels():
    in_header = dict(re.findall(r"KVIT_DTYPE_(\w+) = (\d+)", TEXT))
    in_kernels = re.findall(r'X\((\w+), (\d+), \d+, "', (ROOT / "kernels" / "abi" / "dtype.h").read_text())
    assert in_header == dict(in_kernels)
    assert {int(code) for code in in_header.values()} == {dtype.code for dtype in dtypes.DTYPES}


def test_every_error_of_kvit_has_a_status():
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)} - {"KvitError"}
    words = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper().removesuffix("_ERROR") for name in kinds}
    assert words == set(capi.STATUSES[1:12])


def test_statuses_keep_their_numbers():
    in_header = sorted((int(number), name) for name, number in re.findall(r"KVIT_ERROR_(\w+) = (\d+)", TEXT))
    assert in_header == list(enumerate(capi.STATUSES))[1:]


def test_the_table_tells_its_size_and_version(api):
    assert api.table.size == ctypes.sizeof(capi.Table)
    assert api.table.version == int(re.search(r"#define KVIT_API_VERSION (\d+)", TEXT)[1])


def test_no_function_of_the_table_is_missing(api):
    for name, kind in capi.Table._fields_[2:]:
        assert ctypes.cast(getattr(api.table, name), ctypes.c_void_p).value, f"{name} of {kind} is NULL"


def test_the_header_is_cpp_too(tmp_path):
    source = tmp_path / "program.cpp"
    source.write_text("#include <Python.h>\n#include <kvit.h>\nconst kvit_api* api() { return kvit_import(); }\n")
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    includes = ["-I", kvit.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    done = subprocess.run(["g++", "-std=c++17", *flags, *includes, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dense_tensors_have_the_strides_of_c(tmp_path):
    body = """
  const int64_t shape[] = {5, 3, 64};
  kvit_tensor t = kvit_dense(0, KVIT_DTYPE_BF16, KVIT_DEVICE_CUDA, 1, 3, shape);
  printf("%d %d %d %d", t.ndim, t.dtype, t.device_type, t.device_id);
  for (int i = 0; i < 4; ++i) printf(" %d %d", (int)t.shape[i], (int)t.strides[i]);
  return 0;"""
    assert run_c(tmp_path, body) == "3 3 2 1 5 384 3 128 64 2 0 0"
