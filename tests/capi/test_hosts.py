"""examples/c_host and examples/cython_host: extension modules that decode through the table, without the GIL."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, poisoned, to_device
from support.capi import Table

STEPS, SEQUENCES, QUERY_HEADS, KV_HEADS, HEAD_DIM = 19, 9, 8, 2, 64  # an odd number of each: no share is like another
SHAPE = STEPS, SEQUENCES, QUERY_HEADS, KV_HEADS, HEAD_DIM


class Decoding:
    """q, k, v of every step, and what must come out."""

    def __init__(self, rng):
        self.q = rng.standard_normal((STEPS, SEQUENCES, QUERY_HEADS, HEAD_DIM)).astype(BFLOAT16)
        self.k, self.v = rng.standard_normal((2, STEPS, SEQUENCES, KV_HEADS, HEAD_DIM)).astype(BFLOAT16)
        self.expected, self.bound = np.empty(self.q.shape), np.empty(self.q.shape)
        for step in range(STEPS):
            for sequence in range(SEQUENCES):
                q = self.q[step, sequence][None]
                k, v = self.k[: step + 1, sequence], self.v[: step + 1, sequence]
                self.expected[step, sequence] = reference.attention(q, k, v).out[0]
                magnitude = reference.attention(q, k, np.abs(v)).out
                self.bound[step, sequence] = tolerances.attention_bound(magnitude, q.dtype)[0]

    def check(self, out):
        tolerances.assert_within(out, self.expected, self.bound)


@pytest.fixture
def decoding(rng):
    return Decoding(rng)


def decode_in_c(c_host, decoding, page_size=4, **options):
    out = poisoned(decoding.q.shape, BFLOAT16)
    raw = [array.view(np.uint16) for array in (decoding.q, decoding.k, decoding.v, out)]
    c_host.decode(*raw, SHAPE, page_size, **options)
    return out


@pytest.mark.parametrize("page_size", [1, 4, 64])  # a page for each token, a last page part full, one page for all
def test_a_c_extension_decodes_in_its_own_memory(c_host, decoding, page_size):
    decoding.check(decode_in_c(c_host, decoding, page_size))


def test_a_c_extension_of_an_older_version_runs_with_a_kvit_that_has_more(older_c_host, decoding):
    decoding.check(decode_in_c(older_c_host, decoding))


def test_eight_threads_of_a_c_extension_decode_side_by_side(c_host, decoding):
    decoding.check(decode_in_c(c_host, decoding, threads=8))


def test_append_and_attention_do_not_wait_for_the_gil(c_host, decoding):
    # The threads that decode are joined by one that keeps the GIL: a call that wanted it would never come back.
    decoding.check(decode_in_c(c_host, decoding, threads=3, keep_gil=True))


def test_a_c_extension_shows_kvits_words(c_host, decoding):
    raw = [array.view(np.uint16) for array in (decoding.q, decoding.k, decoding.v, decoding.q.copy())]
    # 8 query heads and 3 KV heads; the bytes of k and v are those of 3 heads of another number of steps
    k = np.zeros((1, 1, 3, HEAD_DIM), np.uint16)
    with pytest.raises(RuntimeError, match="ShapeError: there are 8 query heads and 3 KV heads; query heads must be a"):
        c_host.decode(raw[0][:1, :1], k, k, raw[3][:1, :1].copy(), (1, 1, 8, 3, HEAD_DIM), 4)


def memory_of(decoding, device, page_size=4):
    """q, k, v, out, pools, pages and lengths on the device; pools poisoned, pages in no order."""
    slots = -(-STEPS // page_size)
    pages = np.random.default_rng(3).permutation(SEQUENCES * slots).astype(np.int32).reshape(SEQUENCES, slots)
    lengths = np.repeat(np.arange(1, STEPS + 1, dtype=np.int32)[:, None], SEQUENCES, axis=1)
    pool = poisoned((SEQUENCES * slots, page_size, KV_HEADS, HEAD_DIM), BFLOAT16)
    arrays = decoding.q, decoding.k, decoding.v, poisoned(decoding.q.shape, BFLOAT16), pool, pool, pages, lengths
    return [to_device(array, device) for array in arrays]


@pytest.mark.gpu
def test_a_c_extension_decodes_on_a_gpu(c_host, decoding):
    buffers = memory_of(decoding, "cuda:0")
    c_host.decode_on_gpu(*(buffer.pointer for buffer in buffers), SHAPE, 4)
    decoding.check(buffers[3].numpy())


def test_a_cython_extension_decodes_in_its_callers_memory(cython_host, decoding, device):
    q, k, v, out, k_pool, v_pool, pages, lengths = memory_of(decoding, device)
    cython_host.decode(q, k, v, out, k_pool, v_pool, pages, lengths)
    decoding.check(out.numpy())


def test_a_cython_extension_shows_kvits_words(cython_host, decoding):
    memory = memory_of(decoding, "host")
    memory[3] = kvit.Buffer.empty((STEPS, SEQUENCES, QUERY_HEADS, HEAD_DIM + 64), "bfloat16", "host")
    with pytest.raises(RuntimeError, match="ShapeError: out has shape .*; q of .* gives"):
        cython_host.decode(*memory)


def test_a_host_runs_where_it_was_compiled_against_this_kvit(c_host_file):
    assert import_c_host(c_host_file, "").stdout.strip() == "imported"


@pytest.mark.parametrize(("field", "value"), [("size", ctypes.sizeof(Table) - 8), ("version", 0)])
def test_a_table_older_than_the_header_is_refused(api, c_host_file, field, value):
    done = import_c_host(
        c_host_file,
        "import ctypes, kvit._native.capi as capi\n"
        "from ctypes import c_char_p, c_void_p, py_object, pythonapi\n"
        "get, new = pythonapi.PyCapsule_GetPointer, pythonapi.PyCapsule_New\n"
        "get.restype, get.argtypes = c_void_p, [py_object, c_char_p]\n"
        "new.restype, new.argtypes = py_object, [c_void_p, c_char_p, c_void_p]\n"
        "name = b'kvit._native.capi._C_API'\n"
        f"table = ctypes.create_string_buffer(ctypes.string_at(get(capi._C_API, name), {ctypes.sizeof(Table)}))\n"
        f"table[{getattr(Table, field).offset}:{getattr(Table, field).offset + 4}] = ({value}).to_bytes(4, 'little')\n"
        "capi._C_API = new(ctypes.addressof(table), name, None)\n",
    )
    newest = api.table.version
    size, version = (value, newest) if field == "size" else (ctypes.sizeof(Table), 0)
    assert done.returncode != 0
    assert (
        f"ImportError: the installed kvit has version {version} of its C API ({size} bytes); this module was compiled "
        f"against version {newest} ({ctypes.sizeof(Table)} bytes). Install a newer kvit" in done.stderr
    )


def test_a_missing_gpu_is_told_in_kvits_words(c_host_file):
    call = "c_host.decode_on_gpu(*[4096] * 8, (1, 1, 8, 2, 64), 4)"
    done = import_c_host(c_host_file, "", call, CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0 and "RuntimeError: NoGpuError: no CUDA GPU can be used" in done.stderr


def import_c_host(path, before, after="", **environment):
    code = f"{before}\nimport sys\nsys.path.insert(0, {str(path.parent)!r})\nimport c_host\nprint('imported')\n{after}"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
