"""pyx/interop/import_dlpack: DLPack's C exchange API, by a library in C that lends what it is asked for, and fails so.

The capsules of __dlpack__ are tested in test_import_array, with the other protocols that Python speaks.
"""

import gc
import sys
import weakref

import numpy as np
import pytest

from kvit._native.tensor import Tensor
from kvit.errors import DeviceError, DtypeError, LayoutError, ShapeError
from support import ROOT, exchange
from support.exchange import lender, lender_type, outstanding
from support.processes import run_idle
from support.threads import run_side_by_side


@pytest.fixture
def array():
    """float16, of lengths that are told apart."""
    return np.arange(24, dtype=np.float16).reshape(2, 3, 4)


@pytest.fixture(autouse=True)
def all_is_given_back():
    """Every loan of a test must have been given back, once, when it ends."""
    before = outstanding()
    yield
    gc.collect()
    assert outstanding() == before
    exchange.module().set_stream(0)


def test_a_view_of_what_a_type_lends_by_its_functions(array):
    tensor = Tensor.wrap(lender(array))
    assert (tensor.pointer, tensor.shape, tensor.strides) == (array.ctypes.data, array.shape, array.strides)
    assert (tensor.dtype.name, tensor.device, tensor.readonly) == ("float16", "host", False)


@pytest.mark.parametrize(
    ("code", "bits", "dtype"),
    [
        (exchange.FLOAT, 16, "float16"), (exchange.FLOAT, 32, "float32"), (exchange.FLOAT, 64, "float64"),
        (exchange.BFLOAT, 16, "bfloat16"), (10, 8, "float8_e4m3fn"), (12, 8, "float8_e5m2"),
        (exchange.UINT, 8, "uint8"), (exchange.UINT, 16, "uint16"), (exchange.UINT, 32, "uint32"),
        (exchange.INT, 8, "int8"), (exchange.INT, 32, "int32"), (exchange.INT, 64, "int64"),
        (exchange.INT, 16, "uint16"),  # raw bits: kvit counts in no int16
    ],
)  # fmt: skip
def test_types_of_dlpack(code, bits, dtype):
    memory = np.zeros(64, np.uint8)
    tensor = Tensor.wrap(lender(memory, code=code, bits=bits, shape=(4,), strides=(1,)))
    assert tensor.dtype.name == dtype and tensor.strides == (bits // 8,)


@pytest.mark.parametrize(
    ("code", "bits", "lanes"),
    [(exchange.COMPLEX, 64, 1), (exchange.FLOAT, 16, 4), (exchange.UINT, 64, 1), (exchange.BFLOAT, 32, 1), (6, 8, 1)],
    ids=["complex", "lanes", "uint64", "bfloat32", "bool"],
)
def test_a_type_that_kvit_has_no_code_for_is_refused(array, code, bits, lanes):
    with pytest.raises(DtypeError, match=f"type {code} with {bits} bits and {lanes} lanes has no dtype; known are"):
        Tensor.wrap(lender(array, code=code, bits=bits, lanes=lanes))


def test_strides_may_be_left_out(array):
    tensor = Tensor.wrap(lender(array, strides=None))
    assert tensor.strides == array.strides


def test_memory_may_begin_behind_its_address(array):
    tensor = Tensor.wrap(lender(array, shape=(2, 4), strides=(12, 1), byte_offset=8))
    assert tensor.pointer == array.ctypes.data + 8 and tensor.strides == (24, 2)


@pytest.mark.parametrize("strides", [(), None])
def test_a_tensor_without_axes(array, strides):
    tensor = Tensor.wrap(lender(array, shape=(), strides=strides))
    assert (tensor.shape, tensor.strides, tensor.nbytes) == ((), (), 2)


def test_nothing_may_lie_nowhere(array):
    assert Tensor.wrap(lender(array, address=0, shape=(3, 0, 4), strides=None)).nbytes == 0


def test_packed_4_bit_elements():
    memory = np.zeros(64, np.uint8)
    four = dict(code=exchange.UINT, bits=4)
    for strides in (None, (8, 1)):
        tensor = Tensor.wrap(lender(memory, shape=(2, 8), strides=strides, **four))
        assert (tensor.dtype.name, tensor.strides, tensor.nbytes) == ("uint4", (4, 0), 8)
    for shape, strides, words in (((2, 8), (9, 1), "begin inside a byte"), ((2, 8), (8, 2), "dense and even"),
                                  ((2, 7), (8, 1), "dense and even"), ((), (), "dense and even")):  # fmt: skip
        with pytest.raises(LayoutError, match=words):
            Tensor.wrap(lender(memory, shape=shape, strides=strides, **four))
    with pytest.raises(LayoutError, match="one per byte, kvit two"):
        Tensor.wrap(lender(memory, shape=(2, 8), strides=None, flags=exchange.PADDED, **four))


def test_whole_bytes_are_not_padded(array):
    assert Tensor.wrap(lender(array, flags=exchange.PADDED)).pointer == array.ctypes.data


def test_flags_say_what_may_be_done_with_the_memory(array):
    assert Tensor.wrap(lender(array, flags=exchange.READ_ONLY)).readonly
    with pytest.raises(LayoutError, match="exports a copy of its memory; kvit works in place"):
        Tensor.wrap(lender(array, flags=exchange.IS_COPIED))


@pytest.mark.parametrize("place", [exchange.CPU, exchange.CUDA_HOST])
def test_memory_of_the_host(array, place):
    exchange.module().set_stream(0, True)  # nobody asks for the stream of a CPU
    assert Tensor.wrap(lender(array, device=(place, 0))).device == "host"


@pytest.mark.parametrize("place", [exchange.CUDA, exchange.CUDA_MANAGED])
def test_memory_of_a_gpu(array, place):
    assert Tensor.wrap(lender(array, device=(place, 3))).device == "cuda:3"


@pytest.mark.parametrize(("theirs", "ours"), [(0, 1), (1, 0), (1, 1), (640, 640)])
def test_work_on_one_stream_is_in_order_as_it_is(array, theirs, ours):
    # Anything else would ask for a driver, which is not here: 0 and 1 are both the legacy default stream.
    exchange.module().set_stream(theirs)
    assert Tensor.wrap(lender(array, device=(exchange.CUDA, 0)), stream=ours).device == "cuda:0"


WAITS = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import kvit, numpy
from support import exchange
array = numpy.zeros(16, numpy.float16)
stream = kvit.Stream("cuda:0")

def waits(theirs, ours):
    exchange.module().set_stream(theirs)
    before = count("waits")
    kvit.Tensor.wrap(exchange.lender(array, device=(exchange.CUDA, 0)), stream=ours)
    streams = (ctypes.c_void_p.in_dll(library, name).value for name in ("idle_recorded", "idle_waiter"))
    return [count("waits") - before, *streams]

found = [waits(0x500, 0x600)[1:], waits(0x500, 0)[1:]]
found += [waits(*pair)[0] for pair in ((0x500, 0x500), (0, 0), (0, 1), (1, 0), (0x600, 0x500))]
with kvit.Graph.capture(stream):
    found.append(waits(0x500, 0x600)[0])
"""


def test_the_stream_of_a_call_waits_for_the_librarys_and_not_where_they_are_one(tmp_path):
    # What is captured runs when its graph is launched, so that nothing of now can wait for it, or be waited for by it.
    assert run_idle(tmp_path, WAITS) == [[0x500, 0x600], [0x500, None], 0, 0, 0, 0, 1, 0]


def test_another_kind_of_device_is_refused(array):
    with pytest.raises(DeviceError, match="DLPack device type 8 is neither a CPU nor a CUDA GPU"):
        Tensor.wrap(lender(array, device=(exchange.METAL, 0)))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(shape=(1,) * 9, strides=None), LayoutError, "9 dimensions are too many"),
        (dict(shape=(2, -3), strides=None), ShapeError, "negative length"),
        (dict(shape=(2**40, 2**40), strides=None), ShapeError, "larger than any memory"),
        (dict(shape=(2, 2), strides=(2**60, 1)), LayoutError, "larger than any memory"),
        (dict(address=0), LayoutError, "at address 0"),
        (dict(byte_offset=1), LayoutError, "no multiple of 2; copy it first"),
        (dict(major=2), LayoutError, "DLPack 2.3 is unknown; kvit reads 0, 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_memory_that_cannot_be_read_is_refused_and_given_back(array, changes, error, words):
    with pytest.raises(error, match=words):
        Tensor.wrap(lender(array, **changes))


@pytest.mark.parametrize("api", ["NEWER", "PARTIAL", "MISNAMED"])
def test_functions_of_another_version_or_name_are_not_called(array, api):
    lent = exchange.module().counts()[1]
    with pytest.raises(DtypeError, match="a Lender is no tensor"):  # there is no other way in
        Tensor.wrap(lender(array, api))
    assert exchange.module().counts()[1] == lent


def test_an_older_version_is_found_behind_a_newer_one(array):
    assert Tensor.wrap(lender(array, "CHAINED")).pointer == array.ctypes.data


def test_the_attribute_by_its_older_name(array):
    kind = type("Older", (exchange.module().Lender,), {"__c_dlpack_exchange_api__": exchange.module().GOOD})
    assert Tensor.wrap(kind(array.ctypes.data, (24,), exchange.FLOAT, 16)).shape == (24,)


def fail():
    raise KeyError("the dog ate it")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(before=fail), "the Lender does not lend its memory: 'the dog ate it'"),
        (dict(status=-1), "does not lend its memory: its C function fails with -1 and does not say why"),
        (dict(status=7), "does not lend its memory: its C function fails with 7"),
        (dict(gives_nothing=True), "does not lend its memory: its C function gives nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_library_that_fails_is_quoted(array, changes, words):
    with pytest.raises(LayoutError, match=words):
        Tensor.wrap(lender(array, **changes))


def test_a_library_that_does_not_know_its_stream_is_quoted(array):
    exchange.module().set_stream(0, True)
    with pytest.raises(LayoutError, match="the Lender does not lend its memory: no stream today"):
        Tensor.wrap(lender(array, device=(exchange.CUDA, 0)))


def test_an_interrupt_is_no_refusal(array):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tensor.wrap(lender(array, before=interrupt))


class WithCapsules(lender_type()):
    """Functions and __dlpack__ of one class: the latter gives another array, so that each is told from the other."""

    other = np.zeros(5, np.float16)

    def __dlpack_device__(self):
        return self.other.__dlpack_device__()

    def __dlpack__(self, **asked):
        return self.other.__dlpack__(**asked)


# Both of one class: a subclass that has a __dlpack__ alone answers by that.
WithBoth = type("WithBoth", (WithCapsules,), {"__dlpack_c_exchange_api__": exchange.module().GOOD})


def made(kind, array, **changes):
    return kind(array.ctypes.data, array.shape, exchange.FLOAT, 16, context=array, **changes)


def test_functions_come_before_capsules(array):
    assert Tensor.wrap(made(WithBoth, array)).shape == array.shape


def test_a_subclass_that_answers_dlpack_otherwise_is_asked(array):
    assert Tensor.wrap(made(WithCapsules, array)).shape == (5,)


def test_capsules_are_asked_where_functions_refuse(array):
    assert Tensor.wrap(made(WithBoth, array, before=fail)).shape == (5,)


@pytest.mark.parametrize(("requires_grad", "shape"), [(False, (2, 3, 4)), (True, (5,))])
def test_capsules_are_asked_for_what_requires_a_gradient(array, requires_grad, shape):
    # PyTorch's functions lend it, and its __dlpack__ refuses it: writing would go past autograd.
    kind = type("Trained", (WithBoth,), {"requires_grad": requires_grad})
    assert Tensor.wrap(made(kind, array)).shape == shape


def test_a_loan_is_given_back_with_the_last_view_and_no_sooner():
    array = np.zeros((2, 3, 4), np.float16)
    gone = weakref.ref(array)
    source = lender(array)
    before = outstanding()
    tensor = Tensor.wrap(source)
    raw = Tensor.wrap(lender(array, code=exchange.UINT), "bfloat16")  # a view of a view
    assert outstanding() == before + 2
    del array, source
    gc.collect()
    assert gone() is not None and tensor.pointer == raw.pointer == gone().ctypes.data
    del tensor
    assert outstanding() == before + 1
    del raw
    gc.collect()
    assert outstanding() == before and gone() is None


def test_memory_without_a_deleter_is_the_librarys_own(array):
    before = outstanding()
    Tensor.wrap(lender(array, has_deleter=False))
    gc.collect()
    assert outstanding() == before + 1
    exchange.module().forget()


def test_wrapping_again_and_again_leaves_nothing_behind(array):
    source = lender(array)
    Tensor.wrap(source)
    references = sys.getrefcount(source), sys.getrefcount(array), sys.getrefcount(type(source))
    for _ in range(100):
        Tensor.wrap(source)
    with pytest.raises(LayoutError):
        Tensor.wrap(lender(array, byte_offset=1))
    assert (sys.getrefcount(source), sys.getrefcount(array), sys.getrefcount(type(source))) == references


def test_types_without_end_are_no_leak(array):
    # What is known of types is bounded, and right for each of them whatever was forgotten before.
    made_types = []
    for i in range(200):
        kind = type("Passing", (exchange.module().Lender,), {"__dlpack_c_exchange_api__": exchange.module().GOOD})
        made_types.append(weakref.ref(kind))
        assert Tensor.wrap(made(kind, array)).shape == array.shape, i
        del kind
    gc.collect()
    assert sum(kind() is not None for kind in made_types) <= 64


def test_a_library_may_call_kvit_or_collect_garbage_while_it_lends(array):
    other = np.zeros((2, 2), np.float32)

    def busy():
        gc.collect()
        assert Tensor.wrap(lender(array)).shape == array.shape
        assert Tensor.wrap(other).shape == (2, 2)

    assert Tensor.wrap(lender(array, before=busy)).pointer == array.ctypes.data


def test_threads_lend_side_by_side(array):
    source = lender(array)

    def wrap(_):
        return {Tensor.wrap(source).pointer for _ in range(2000)}

    assert run_side_by_side(wrap) == [{array.ctypes.data}] * 8
