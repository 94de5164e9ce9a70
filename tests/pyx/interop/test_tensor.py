"""pyx/interop/tensor: views of raw memory, their extent and their reinterpretation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvit._native.buffer import Buffer
from kvit._native.tensor import Tensor
from kvit.dtypes import dtype_of
from kvit.errors import DeviceError, DtypeError, LayoutError, ShapeError


def test_a_pointer_with_a_shape_is_a_contiguous_view():
    tensor = Tensor.from_pointer(4096, (2, 3, 4), "bfloat16", "cuda:3")
    assert (tensor.pointer, tensor.shape, tensor.strides, tensor.nbytes) == (4096, (2, 3, 4), (24, 8, 2), 48)
    assert (tensor.dtype, tensor.device, tensor.readonly) == (dtype_of("bf16"), "cuda:3", False)
    assert tensor.span() == (4096, 4144)


def test_four_bit_elements_have_a_packed_last_axis():
    tensor = Tensor.from_pointer(4096, (2, 3, 8), "uint4")
    assert (tensor.strides, tensor.nbytes, tensor.span()) == ((12, 4, 0), 24, (4096, 4120))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-40, 40)), max_size=4),
    st.sampled_from(["uint8", "bfloat16", "float32"]),
)
def test_the_span_is_exactly_what_the_elements_touch(axes, dtype):
    size = dtype_of(dtype).bits // 8
    shape, strides = tuple(n for n, _ in axes), tuple(step * size for _, step in axes)
    tensor = Tensor.from_pointer(1 << 20, shape, dtype, strides=strides)
    starts = [sum(i * step for i, step in zip(index, strides, strict=True)) for index in np.ndindex(shape)]
    expected = (min(starts), max(starts) + size) if starts else (0, 0)
    assert tensor.span() == tuple((1 << 20) + byte for byte in expected)


def test_the_owner_lives_as_long_as_the_view():
    class Owner:
        alive = 0

        def __init__(self):
            Owner.alive += 1

        def __del__(self):
            Owner.alive -= 1

    tensor = Tensor.from_pointer(4096, (1,), "uint8", owner=Owner())
    assert Owner.alive == 1
    del tensor
    assert Owner.alive == 0


def test_a_tensor_is_returned_as_it_is(device):
    buffer = Buffer.empty((2, 2), "float32", device)
    assert Tensor.wrap(buffer) is buffer
    assert Tensor.wrap(buffer, "float32") is buffer


@pytest.mark.parametrize(
    ("given", "wanted", "shape", "strides"),
    [
        ("uint16", "bfloat16", (2, 4), (8, 2)),
        ("uint8", "float8_e5m2", (2, 4), (4, 1)),
        ("uint8", "uint4", (2, 8), (4, 0)),
        ("uint32", "float32", (2, 4), (16, 4)),
    ],
)
def test_integers_can_be_declared_to_be_another_type(given, wanted, shape, strides):
    source = np.zeros((2, 4), given)
    tensor = Tensor.wrap(source, wanted)
    assert (tensor.dtype.name, tensor.shape, tensor.strides) == (wanted, shape, strides)
    assert tensor.pointer == source.ctypes.data and tensor.nbytes == source.nbytes


@pytest.mark.parametrize(("given", "wanted"), [("float16", "bfloat16"), ("uint8", "bfloat16"), ("int64", "float64")])
def test_a_type_that_says_what_it_is_stays_that(given, wanted):
    with pytest.raises(DtypeError, match=f"{given} cannot be read as {wanted}"):
        Tensor.wrap(np.zeros((2, 4), given), wanted)


def test_packed_bytes_must_be_neighbours():
    with pytest.raises(LayoutError, match="packed in pairs"):
        Tensor.wrap(np.zeros((4, 4), np.uint8)[:, ::2], "uint4")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(pointer=4097, shape=(2,), dtype="float32"), LayoutError, "no multiple of 4"),
        (dict(pointer=4096, shape=(2, 2), dtype="float32", strides=(6, 4)), LayoutError, "no multiples of 4"),
        (dict(pointer=0, shape=(2,), dtype="float32"), LayoutError, "at address 0"),
        (dict(pointer=4096, shape=(2, 2), dtype="float32", strides=(8,)), LayoutError, "differ in length"),
        (dict(pointer=4096, shape=(2, -2), dtype="float32"), ShapeError, "negative"),
        (dict(pointer=4096, shape=(2, 3), dtype="uint4"), LayoutError, "dense and even"),
        (dict(pointer=4096, shape=(1,) * 9, dtype="uint8"), LayoutError, "at most 8"),
        (dict(pointer=4096, shape=(2,), dtype="uint8", device="tpu:0"), DeviceError, "tpu:0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_memory_that_cannot_be_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Tensor.from_pointer(**arguments)


def test_nothing_at_address_0_is_fine():
    assert Tensor.from_pointer(0, (3, 0), "float32").span() == (0, 0)


def test_a_tensor_is_made_by_its_functions_alone():
    with pytest.raises(TypeError, match="Tensor.wrap"):
        Tensor()
