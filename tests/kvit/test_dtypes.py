"""kvit.dtypes against kernels/abi/dtype.h, numpy and ml_dtypes."""

import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import kvit
from kvit import dtypes
from kvit.dtypes import DTYPES, dtype_of, numpy_dtype
from kvit.errors import DtypeError

HEADER = Path(__file__).resolve().parents[2] / "kernels" / "abi" / "dtype.h"


def test_codes_names_and_bits_are_those_of_the_header():
    rows = re.findall(r'X\((\w+), (\d+), (\d+), "(\w+)"\)', HEADER.read_text())
    assert len(rows) == HEADER.read_text().count("X(") - 1  # all but the comment that explains the columns
    assert [(int(code), name, int(bits)) for _, code, bits, name in rows] == [(d.code, d.name, d.bits) for d in DTYPES]
    assert [name.lower() for name, *_ in rows] == [dtype.short for dtype in DTYPES]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dtype_is_found_by_all_its_names(dtype):
    numpys = numpy_dtype(dtype)
    for name in (dtype, dtype.name, dtype.short, numpys, numpys.type):
        assert dtype_of(name) is dtype
    assert getattr(dtypes, dtype.name) is dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_numpy_dtype_has_the_width_that_the_code_says(dtype):
    # ml_dtypes keeps a 4-bit element in a byte of its own.
    assert numpy_dtype(dtype).itemsize * 8 == max(dtype.bits, 8)


def test_a_framework_dtype_is_found_by_what_it_prints():
    class TorchLike:
        def __str__(self):
            return "torch.bfloat16"

    assert dtype_of(TorchLike()) is dtypes.bfloat16


def test_the_fp8_that_differs_in_its_bits_is_not_taken_for_the_one_that_exists():
    # The string is how users write it; ml_dtypes' type of that name has infinities, and so other bits.
    assert dtype_of("float8_e4m3") is dtypes.float8_e4m3fn
    with pytest.raises(DtypeError, match="unknown dtype"):
        dtype_of(np.dtype(ml_dtypes.float8_e4m3))


@pytest.mark.parametrize("unknown", ["complex64", "int4", "", None, 3, float, np.dtype("c8"), np.dtype("?")], ids=repr)
def test_an_unknown_dtype_is_refused_with_the_known_ones(unknown):
    with pytest.raises(DtypeError, match="unknown dtype .*; known are float32, float16, bfloat16"):
        dtype_of(unknown)


def test_the_other_byte_order_is_refused():
    with pytest.raises(DtypeError, match="other order"):
        dtype_of(np.dtype(np.float32).newbyteorder())


@pytest.mark.parametrize(("dtype", "elements", "num_bytes"), [("uint4", 7, 4), ("uint4", 8, 4), ("bfloat16", 3, 6)])
def test_bytes_are_counted_packed(dtype, elements, num_bytes):
    assert dtype_of(dtype).bytes_for(elements) == num_bytes


def test_importing_dtypes_imports_no_numpy():
    # Without kvit/__init__.py, which may import what it likes.
    code = f"""
import sys, types
kvit = types.ModuleType("kvit")
kvit.__path__ = {list(sys.modules["kvit"].__path__)}
sys.modules["kvit"] = kvit
import kvit.dtypes
print([name for name in ("numpy", "ml_dtypes") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


@pytest.mark.parametrize("name", ["float16", "float32", "int32", "uint8", "bfloat16", "float8_e5m2"])
def test_a_dtype_is_numpys_of_the_same_name(name):
    dtype = dtype_of(name)
    theirs = numpy_dtype(dtype)
    assert dtype == theirs and dtype == theirs.type and dtype == name and np.dtype(dtype) == theirs
    assert dtype in {dtype_of(name)} and hash(dtype) == hash(name)


@pytest.mark.parametrize("other", [np.dtype("complex64"), np.float64, "float17", None, 5, object(), float])
def test_a_dtype_is_nothing_else(other):
    assert dtype_of("float16") != other


@pytest.mark.parametrize(("dtype", "itemsize"), [("float16", 2), ("float32", 4), ("uint8", 1), ("float8_e5m2", 1)])
def test_a_buffer_counts_as_numpy_does(dtype, itemsize):
    buffer = kvit.Buffer.empty((2, 3, 4), dtype, "host")
    array = np.asarray(buffer)
    assert (buffer.ndim, buffer.size, buffer.itemsize) == (array.ndim, array.size, array.itemsize) == (3, 24, itemsize)


def test_elements_of_half_a_byte_have_no_size_of_their_own():
    buffer = kvit.Buffer.empty((2, 4), "uint4", "host")
    assert (buffer.ndim, buffer.size, buffer.nbytes) == (2, 8, 4)
    with pytest.raises(AttributeError, match="half a byte; nbytes tells the bytes of all"):
        buffer.itemsize  # noqa: B018
