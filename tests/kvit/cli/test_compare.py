"""kvit._cli.compare: what counts as the same, and what a mismatch says."""

import numpy as np
import pytest

from kvit._cli.compare import Mismatch, digest_of_results, expect_close, expect_same

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("actual", "expected"),
    [([1.0, 2.0], [1.0, 2.1]), ([NAN, 1.0], [NAN, 1.0]), ([-INF, 0.0], [-INF, 0.0]), ([], [])],
)
def test_within_the_bound_is_close(actual, expected):
    expect_close("x", np.array(actual), np.array(expected), 0.11)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [([1.0, 2.0], [1.0, 2.2]), ([NAN], [1.0]), ([1.0], [NAN]), ([INF], [1.0]), ([1.0], [-INF]), ([INF], [-INF])],
)
def test_beyond_the_bound_or_special_in_the_wrong_place_is_off(actual, expected):
    with pytest.raises(Mismatch, match="elements are off"):
        expect_close("x", np.array(actual), np.array(expected), 0.11)


def test_the_worst_element_is_named_and_a_nan_is_the_worst():
    with pytest.raises(Mismatch, match=r"x: 2 of 4 .* at \(1, 0\): 9.0 instead of 3.0"):
        expect_close("x", np.array([[1.0, 2.5], [9.0, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), 0.1)
    with pytest.raises(Mismatch, match=r"at \(0, 1\): nan instead of 2.0"):
        expect_close("x", np.array([[1.0, NAN], [9.0, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), 0.1)


def test_the_same_bits_are_the_same_and_zeros_of_two_signs_are_not():
    expect_same("x", np.array([NAN, 0.0], np.float32), np.array([NAN, 0.0], np.float32))
    with pytest.raises(Mismatch, match=r"1 of 2 .* at \(1,\): -0.0 instead of 0.0"):
        expect_same("x", np.array([NAN, -0.0], np.float32), np.array([NAN, 0.0], np.float32))


@pytest.mark.parametrize("expect", [expect_same, lambda *given: expect_close(*given, 1.0)])
def test_another_shape_is_a_mismatch(expect):
    with pytest.raises(Mismatch, match="shape"):
        expect("x", np.zeros((2, 3)), np.zeros((3, 2)))


def digest_after(compare, name, actual):
    with digest_of_results() as digest:
        compare(name, actual, actual, *([0.1] if compare is expect_close else []))
    return str(digest)


# Zeros of two signs are equal, a list has the bits of the other dtype, and a name is all that tells two results apart.
@pytest.mark.parametrize("compare", [expect_close, expect_same])
@pytest.mark.parametrize(
    ("name", "actual"),
    [
        ("x", np.array([-0.0, 1.0], np.float32)),
        ("x", np.array([[0.0, 1.0]], np.float32)),
        ("x", np.array([0, 0x3F800000], np.int32)),
        ("y", np.array([0.0, 1.0], np.float32)),
    ],
)
def test_a_digest_tells_bits_shapes_types_and_names_apart(compare, name, actual):
    plain = digest_after(compare, "x", np.array([0.0, 1.0], np.float32))
    assert plain == digest_after(compare, "x", np.array([9, 0.0, 1.0], np.float32)[1:])
    assert plain != digest_after(compare, name, actual)


def test_a_digest_is_of_what_was_found_and_not_of_what_was_expected_and_ends_with_its_block():
    with digest_of_results() as digest:
        expect_close("x", np.array([1.0]), np.array([1.05]), 0.1)
    found = str(digest)
    expect_close("x", np.array([2.0]), np.array([2.0]), 0.1)
    assert str(digest) == found == digest_after(expect_close, "x", np.array([1.0]))
