"""kvit.KeySmoothing: its numbers, how they are measured, and what is refused."""

import numpy as np
import pytest

import kvit


def test_what_is_absent_changes_nothing():
    mean = np.arange(128, dtype=np.float64).reshape(2, 64)
    only_mean, only_width = kvit.KeySmoothing(mean), kvit.KeySmoothing(width=mean + 1)
    assert (only_mean.kv_heads, only_mean.head_dim) == (2, 64)
    np.testing.assert_array_equal(only_mean.mean, mean.astype(np.float32))
    assert (only_mean.width == 1).all() and (only_width.mean == 0).all()
    assert only_mean.has_mean and not only_width.has_mean
    assert repr(only_width) == "KeySmoothing(2 KV heads, head_dim 64, widths 1 to 128)"


def test_numbers_are_kept_apart_from_the_arrays_that_were_given():
    mean = np.ones((1, 8), np.float32)
    smoothing = kvit.KeySmoothing(mean)
    mean[:] = 7
    assert (smoothing.mean == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        smoothing.mean[:] = 7


def test_scores_are_those_of_keys_as_they_were_but_for_a_number_of_the_row(rng):
    k = rng.standard_normal((50, 2, 32)) * np.exp(rng.uniform(-2, 2, 32)) + rng.standard_normal(32) * 4
    q = rng.standard_normal((9, 6, 32))
    smoothing = kvit.KeySmoothing.measure(k, q)
    stored = (k - smoothing.mean) / smoothing.width
    changed = q * np.repeat(smoothing.width, 3, 0)
    scores, found = (np.einsum("qhc,khc->qhk", a, np.repeat(b, 3, 1)) for a, b in ((q, k), (changed, stored)))
    lost = scores - found
    np.testing.assert_allclose(lost, np.broadcast_to(lost[..., :1], lost.shape), atol=1e-5)


def test_measured_widths_make_keys_and_queries_equally_wide(rng):
    k = rng.standard_normal((4000, 1, 16)) * np.geomspace(0.1, 10, 16) + 5
    q = rng.standard_normal((4000, 4, 16)) * np.geomspace(3, 0.5, 16)
    smoothing = kvit.KeySmoothing.measure(k.astype(np.float32), q)
    np.testing.assert_allclose(smoothing.mean, k.mean(0), rtol=1e-4)
    of_k, of_q = (k / smoothing.width).std(0), np.sqrt(((q * smoothing.width) ** 2).mean((0, 1)))
    np.testing.assert_allclose(of_k[0], of_q, rtol=1e-4)
    assert (kvit.KeySmoothing.measure(k).width == 1).all()


def test_channels_that_never_change_or_that_nobody_asks_for_have_no_width(rng):
    k, q = rng.standard_normal((2, 100, 1, 8))
    k[..., 2], q[..., 5] = 4, 0
    width = kvit.KeySmoothing.measure(k, q).width[0]
    assert width[2] == width[5] == 1 and (np.delete(width, [2, 5]) != 1).all()


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ((), ValueError, "mean and width are both absent"),
    ((np.ones(8),), kvit.ShapeError, r"mean has shape \[8\]; give \[kv_heads, head_dim\]"),
    ((np.ones((0, 8)),), kvit.ShapeError, "mean has shape"),
    ((np.ones((1, 8)), np.ones((1, 16))), kvit.ShapeError, r"mean has shape \[1, 8\] and width \[1, 16\]"),
    ((np.full((1, 8), np.nan),), ValueError, "mean has numbers that are not finite"),
    ((None, np.zeros((1, 8))), ValueError, "width has numbers that are not from"),
    ((None, np.full((1, 8), -1.0)), ValueError, "width has numbers that are not from"),
    ((None, np.full((1, 8), np.inf)), ValueError, "width has numbers that are not from"),
    (("mean",), ValueError, "mean is a str that numpy does not take"),
    (([[1, 2], [3]],), ValueError, "mean is a list that numpy does not take"),
], ids=str)  # fmt: skip
def test_wrong_numbers_are_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        kvit.KeySmoothing(*arguments)


@pytest.mark.parametrize(("k", "q", "error", "words"), [
    (np.ones((4, 8)), None, kvit.ShapeError, "k has shape"),
    (np.ones((0, 1, 8)), None, kvit.ShapeError, "k has shape"),
    (np.full((4, 1, 8), np.inf), None, ValueError, "k has numbers that are not finite"),
    (np.ones((4, 2, 8)), np.ones((4, 3, 8)), kvit.ShapeError, "3 query heads"),
    (np.ones((4, 2, 8)), np.ones((4, 2, 16)), kvit.ShapeError, "q has head_dim 16 and k 8"),
], ids=str)  # fmt: skip
def test_wrong_measurements_are_refused_by_name(k, q, error, words):
    with pytest.raises(error, match=words):
        kvit.KeySmoothing.measure(k, q)
