"""Whether tensors share memory: against the sets of their bytes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import kvit
from kvit._native.overlaps import tensor_meets_itself, tensors_are_same, tensors_meet

BASE = 1 << 20  # an address that nobody reads


def tensor(offset, shape, strides):
    return kvit.Tensor.from_pointer(BASE + offset, shape, "uint8", strides=strides)


def places(offset, shape, strides):
    """The address of every element, one by one."""
    found = np.array([offset])
    for count, stride in zip(shape, strides, strict=True):
        found = (found[:, None] + np.arange(count) * stride).ravel()
    return found


@st.composite
def axes(draw):
    """(offset, shape, strides) of up to three axes, negative strides, repeated elements and none among them."""
    count = draw(st.integers(1, 3))
    shape = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    strides = draw(
        st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 24, -1, -4, -12]), min_size=count, max_size=count)
    )
    return draw(st.integers(-40, 40)), tuple(shape), tuple(strides)


@settings(max_examples=2000)
@given(axes(), axes())
def test_what_shares_a_byte_is_never_missed(a, b):
    shares = bool(np.intersect1d(places(*a), places(*b)).size)
    found = tensors_meet(tensor(*a), tensor(*b))
    assert found == tensors_meet(tensor(*b), tensor(*a))
    assert found or not shares
    assert tensor_meets_itself(tensor(*a)) or len(set(places(*a))) == len(places(*a))


@settings(max_examples=1000)
@given(st.data())
def test_slices_of_one_array_are_told_apart_exactly(data):
    # Whatever axes a packed tensor is cut along, and however its axes are ordered.
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    whole = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape).transpose(data.draw(st.permutations(range(3))))

    def cut():
        bounds = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in whole.shape]
        return whole[tuple(slice(*pair) for pair in bounds)]

    a, b = cut(), cut()
    shares = bool(np.intersect1d(a, b).size)
    assert tensors_meet(*(kvit.Tensor.wrap(x) for x in (a, b))) == shares
    assert not tensor_meets_itself(kvit.Tensor.wrap(a))


def test_heads_that_take_turns_are_told_apart():
    packed = np.zeros((5, 3, 2, 8), np.float16)  # [token, head, K or V, channel]
    k, v = (kvit.Tensor.wrap(packed[:, :, i]) for i in range(2))
    assert not tensors_meet(k, v)
    assert tensors_meet(k, kvit.Tensor.wrap(packed[:, :1, :1].reshape(5, 1, 8)))


def test_four_bit_rows_are_told_apart_by_bytes():
    packed = np.zeros((4, 2, 8), np.uint8)  # two rows of 16 elements each
    a, b = (kvit.Tensor.wrap(packed[:, i], "uint4") for i in range(2))
    assert not tensors_meet(a, b) and tensors_meet(a, a)
    assert not tensor_meets_itself(a)


def test_the_same_elements_are_the_same_whatever_the_stride_of_an_axis_of_one():
    a, b = tensor(0, (1, 4), (100, 1)), tensor(0, (1, 4), (4, 1))
    assert tensors_are_same(a, b)
    assert not tensors_are_same(a, tensor(1, (1, 4), (4, 1)))
    assert not tensors_are_same(a, tensor(0, (1, 3), (4, 1)))
    assert not tensors_are_same(tensor(0, (2, 4), (8, 1)), tensor(0, (2, 4), (4, 1)))


def test_repeated_elements_overlap_themselves():
    assert tensor_meets_itself(tensor(0, (2, 4), (0, 1)))
    assert tensor_meets_itself(tensor(0, (3, 4), (3, 1)))
    assert not tensor_meets_itself(tensor(0, (3, 4), (-4, 1)))
    assert not tensor_meets_itself(tensor(0, (0, 4), (0, 1)))
