"""The handlers of custom calls, called as XLA calls them: here by ctypes, so that a GPU's handler runs too."""

import ctypes
import json

import pytest

from kvit._native import xla_handlers
from support import ROOT
from support.processes import run_idle, run_python
from support.xla import FirstMetadata, Metadata, Runtime, Version


@pytest.fixture
def runtime():
    return Runtime(xla_handlers.capsules()["cpu"])


@pytest.mark.parametrize("minor", [1, 2, 3, 7])
@pytest.mark.parametrize("platform", ["cpu", "CUDA"])
def test_a_handler_says_the_runtimes_version_and_that_it_must_not_be_captured(platform, minor):
    metadata = Metadata(ctypes.sizeof(Metadata), Version(ctypes.sizeof(Version), None, -1, -1), 0xFFFF, 5)
    Runtime(xla_handlers.capsules()[platform], minor).ask(metadata)
    assert (metadata.version.major, metadata.version.minor, metadata.traits, metadata.state_type) == (0, minor, 0, 5)


def test_metadata_of_the_first_version_is_written_where_it_is_and_no_further(runtime):
    class Fenced(ctypes.Structure):
        _fields_ = [("metadata", FirstMetadata), ("behind", ctypes.c_int64 * 4)]

    for size in (0, ctypes.sizeof(Version)):  # whether XLA has filled it in before it asks
        fenced = Fenced(FirstMetadata(Version(size, None, -1, -1), 0xFFFF), (ctypes.c_int64 * 4)(1, 2, 3, 4))
        runtime.api.version.minor = 1
        runtime.ask(fenced.metadata)
        version = fenced.metadata.version
        assert (version.size, version.major, version.minor, fenced.metadata.traits) == (24, 0, 1, 0)
        assert list(fenced.behind) == [1, 2, 3, 4]


def test_other_stages_than_execution_do_nothing(runtime):
    assert [runtime.call("nonsense", stage=stage) for stage in range(3)] == [None] * 3


PREPARED = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from kvit._native import xla_handlers
from support.xla import Runtime
import json
runtime = Runtime(xla_handlers.capsules()["cpu"])
found = [runtime.call("one")]
calls, failing = [], False

def prepare(words, arguments, results, stream, device):
    tensors = [(x.pointer, x.shape, x.dtype.name, x.readonly) for x in (*arguments, *results)]
    calls.append([words.decode(), tensors, stream, device])
    if failing:
        raise ValueError("no " + words.decode())
    return lambda: calls.append(words.decode())

xla_handlers.install(prepare)
one = ((0x1000, (2, 3), "float16"),), ((0x2000, (4,), "int32"),)
found += [runtime.call("one", *one), runtime.call("one", *one), calls[:]]
calls.clear()
moved = ((0x1010, (2, 3), "float16"),), one[1]
reshaped = ((0x1000, (3, 2), "float16"),), one[1]
retyped = ((0x1000, (2, 3), "bfloat16"),), one[1]
for other in (moved, reshaped, retyped):
    runtime.call("one", *other)
runtime.call("two", *one)
runtime.call("two", one[0] + one[1])
found.append(sum(isinstance(call, list) for call in calls))
xla_handlers.forget()
failing = True
found += [runtime.call("one", *one), runtime.call("one", ((0x1001, (2,), "float16"),))]
found += [runtime.call("one", ((0x1000, (2,), 15),)), runtime.call("one", 33 * one[0])]
print(json.dumps(found))
"""


def test_a_call_is_prepared_once_for_each_place_of_its_memory():
    status, out, error = run_python(PREPARED)
    assert (status, error) == (0, "")
    unready, first, second, calls, prepared, refused, odd, complex64, many = json.loads(out)
    assert unready == ["KvitError: kvit.jax was not imported; import it before programs that call kvit are run", 3]
    assert first is second is None
    tensors = [[0x1000, [2, 3], "float16", True], [0x2000, [4], "int32", False]]
    assert calls == [["one", tensors, 0, "host"], "one", "one"]
    assert prepared == 5  # other addresses, shapes, types and words, and results that are arguments
    assert refused == ["ValueError: no one", 3]
    assert odd[0].startswith("LayoutError: float16 at address 0x1001")
    assert complex64 == ["DtypeError: XLA's type 15 has no dtype here; give arrays of another one", 3]
    assert many == ["LayoutError: a call has more than 32 arguments and results", 3]


# Attention, append and gather of a cache on a GPU whose driver returns at once: nothing is computed, all is launched.
ON_A_GPU = f"""
sys.path.insert(0, {str(ROOT / "tests")!r})
import kvit.jax
from kvit._native import xla_handlers
from kvit.jax import call
from support.xla import Runtime
seen = []

def prepare(words, arguments, results, stream, device):
    seen.append([stream, device, {{x.device for x in (*arguments, *results)}} == {{device}}])
    return call.prepare(words, arguments, results, stream, device)

xla_handlers.install(prepare)
runtime = Runtime(xla_handlers.capsules()["CUDA"])
shapes = dict(
    q=((2, 4, 64), "bfloat16"), k=((2, 2, 64), "bfloat16"), v=((2, 2, 64), "bfloat16"),
    k_cache=((8, 16, 2, 64), "bfloat16"), v_cache=((8, 16, 2, 64), "bfloat16"),
    pages=((2, 4), "int32"), lengths=((2,), "int32"), out=((2, 4, 64), "bfloat16"), q_out=((2, 4, 64), "bfloat16"),
)
places = {{name: ((i + 1) << 32, *shape) for i, (name, shape) in enumerate(shapes.items())}}
cache = dict(layout="NHD", k_codec=None, v_codec=None)

def run(family, arguments, results, moved=0, **options):
    words = dict(family=family, arguments=arguments, results=results, dtype="bfloat16", cache=cache, options=options)
    before = count("launches")
    into = [(places[name][0] + moved, *places[name][1:]) for name in results]
    error = runtime.call(json.dumps(words), [places[name] for name in arguments], into)
    return [error, count("launches") - before]

paged = ["k_cache", "v_cache", "pages", "lengths"]
found = [run("attention", ["q", *paged], ["out"], window=[9, None]) for _ in range(2)]
rope = kvit.jax.rope_words(kvit.Rope(64))
found.append(run("append", ["k", "v", "q", *paged], ["k_cache", "v_cache", "q_out"], rope=rope))
found.append(run("gather", paged, ["k", "v"]))
found.append(run("append", ["k", "v", *paged], ["k_cache", "v_cache"], moved=64))
found.append(seen)
runtime.api.size -= 8
found.append(run("gather", paged, ["k", "v"]))
"""


def test_on_a_gpu_calls_are_launched_on_the_stream_that_xla_names(tmp_path):
    pytest.importorskip("jax", reason="needs JAX: pip install 'kvit[test-interop]'")
    attention, again, append, gather, moved, seen, old = run_idle(tmp_path, ON_A_GPU)
    assert attention == again == append == gather == [None, 1]
    assert seen == [[0x500, "cuda:0", True]] * 4  # the second attention was prepared
    assert moved[1] == 0 and "XLA gave k_cache new memory where the call must write in place" in moved[0][0]
    assert old == [["DeviceError: this jaxlib does not tell handlers which GPU they run on; install a newer one", 9], 0]
