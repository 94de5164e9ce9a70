"""exchange.c as a module: arrays whose types have DLPack's C exchange API, and which can be made to fail."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# DLPack's numbers of devices and types, and its flags.
CPU, CUDA, CUDA_HOST, METAL, CUDA_MANAGED = 1, 2, 3, 8, 13
INT, UINT, FLOAT, COMPLEX, BFLOAT = 0, 1, 2, 5, 4
READ_ONLY, IS_COPIED, PADDED = 1, 2, 4


def code_of(dtype: np.dtype) -> int:
    """DLPack's number of a numpy type, ml_dtypes' too."""
    return {"bfloat16": BFLOAT, "float8_e4m3fn": 10, "float8_e5m2": 12}.get(dtype.name) or "iuf".index(dtype.kind)


@functools.cache
def module() -> ModuleType:
    """The module, compiled once."""
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "exchange.so"
        include = f"-I{sysconfig.get_paths()['include']}"
        command = ["gcc", "-std=gnu11", "-O1", "-shared", "-fPIC", include, "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        spec = importlib.util.spec_from_file_location("exchange", target)
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found


@functools.cache
def lender_type(api: str = "GOOD") -> type:
    """The type whose attribute is that capsule of exchange.c."""
    base = module().Lender
    return type("Lender", (base,), {"__dlpack_c_exchange_api__": getattr(module(), api)})


def lender(array: np.ndarray, api: str = "GOOD", **changes: Any) -> Any:
    """An object that lends a numpy array of float16, or of what `changes` say it is, which keep the array alive."""
    given = dict(
        address=array.ctypes.data,
        shape=array.shape,
        code=FLOAT,
        bits=16,
        strides=[step // array.itemsize for step in array.strides],
        context=array,
    )
    return lender_type(api)(**{**given, **changes})


def outstanding() -> int:
    """Loans that were not given back."""
    return module().counts()[0]
