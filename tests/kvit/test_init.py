"""`import kvit`: quick, without numpy, without a driver, and with every name that it promises."""

import subprocess
import sys

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


def test_importing_takes_at_most_150_ms_of_a_core():
    program = "import time; start = time.process_time(); import kvit; print(time.process_time() - start)"
    assert min(float(run(program)[0]) for _ in range(5)) < 0.15  # processor time: a busy machine makes all else slow
