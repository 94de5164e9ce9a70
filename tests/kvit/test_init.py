"""`import kvit`: quick, without numpy, without a driver, and with every name that it promises."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvit


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_public_name_exists():
    assert kvit.__all__ == sorted(kvit.__all__)
    for name in kvit.__all__:
        assert getattr(kvit, name).__name__ == name


def test_attention_is_the_function_though_modules_have_its_name():
    assert run("import kvit.cache.attention, kvit.ops.attention; print(callable(kvit.attention))") == ["True"]


def test_importing_loads_neither_numpy_nor_ml_dtypes_nor_a_driver():
    program = (
        "import sys, kvit\n"
        "maps = open('/proc/self/maps').read()\n"
        "print([name for name in ('numpy', 'ml_dtypes') if name in sys.modules], 'libcuda.so' in maps)"
    )
    assert run(program) == ["[]", "False"]


@pytest.fixture
def source(tmp_path):
    """A folder that holds kvit's source alone, as a checkout after an ordinary install."""
    modules = shutil.ignore_patterns("*.so", "_kernels", "__pycache__")
    shutil.copytree(Path(kvit.__file__).parent, tmp_path / "kvit", ignore=modules)
    return tmp_path


def fail(source):
    done = subprocess.run([sys.executable, "-c", "import kvit"], cwd=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_the_source_folder_says_that_it_is_not_the_installed_kvit(source):
    words = fail(source)
    assert words.startswith(f"ImportError: {source / 'kvit'} is kvit's source, which has no compiled modules")
    assert "run Python in another folder, or with -P" in words and "pip install -e ." in words


def test_modules_of_another_python_are_told(source):
    (source / "kvit" / "_native" / "buffer.cpython-299-x86_64-linux-gnu.so").touch()
    words = fail(source)
    assert "compiled for another Python than this" in words and "cpython-299" in words and "-m pip install ." in words


def test_importing_takes_at_most_150_ms_of_a_core():
    program = "import time; start = time.process_time(); import kvit; print(time.process_time() - start)"
    assert min(float(run(program)[0]) for _ in range(5)) < 0.15  # processor time: a busy machine makes all else slow
