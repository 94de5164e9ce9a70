"""kvit.reference.rope: turns are those of float64, at any position, and pairs are the channels that they should be."""

import numpy as np
import pytest

from kvit import reference
from kvit.reference.rope import default_frequencies
from support.caches import BFLOAT16, FLOAT16


def test_cosines_and_sines_of_every_phase_are_within_their_bound(rng):
    # All phases of the top 16 bits, where quarters begin and end among them, and random ones.
    coarse = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    edges = (np.arange(16, dtype=np.uint32) << np.uint32(28))[:, None] + np.arange(-3, 4, dtype=np.int64).astype(
        np.uint32
    )
    phases = np.concatenate([coarse, edges.reshape(-1), rng.integers(0, 2**32, 1 << 18, dtype=np.uint32)])
    cosine, sine = reference.cosine_and_sine(phases)
    angle = phases * (2 * np.pi / 2.0**32)
    assert cosine.dtype == sine.dtype == np.float32
    assert np.abs(cosine - np.cos(angle)).max() < 1.3e-7
    assert np.abs(sine - np.sin(angle)).max() < 1.3e-7
    assert (cosine[0], sine[0]) == (1, 0)


@pytest.mark.parametrize("position", [0, 1, 100, 1_000_000, 2**31 - 1, -5])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rows_turn_as_in_float64_at_any_position(rng, interleaved, position):
    # A float32 angle at a million radians is off by 0.03; this one is off by 2e-10 turns per token, times 2^-32.
    frequencies = default_frequencies(10000.0, 64)
    x = rng.standard_normal((1, 3, 96)).astype(np.float32)
    found = reference.rotate(x, [position], reference.Rotation.of(frequencies, interleaved))
    angle = np.remainder(np.longdouble(position) * frequencies.astype(np.longdouble), 2 * np.pi).astype(np.float64)
    pairs = x[..., :64].astype(np.complex128)
    pairs = pairs[..., 0::2] + 1j * pairs[..., 1::2] if interleaved else pairs[..., :32] + 1j * pairs[..., 32:]
    turned = pairs * np.exp(1j * angle)
    parts = [turned.real, turned.imag]
    expected = np.stack(parts, -1).reshape(1, 3, 64) if interleaved else np.concatenate(parts, -1)
    # Frequencies are float64: 2^-53 of them, times the position, is an angle too.
    np.testing.assert_allclose(found[..., :64], expected, atol=2e-6 + abs(position) * 2.0**-50)
    np.testing.assert_array_equal(found[..., 64:], x[..., 64:])  # beyond rotary_dim nothing turns


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_turning_there_and_back_gives_the_rows_again_within_two_roundings(rng, dtype):
    x = rng.standard_normal((50, 2, 64)).astype(dtype)
    rotation = reference.Rotation.of(default_frequencies(10000.0, 64))
    positions = rng.integers(0, 100_000, 50)
    back = reference.rotate(reference.rotate(x, positions, rotation), -positions, rotation)
    roundoff = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[np.dtype(dtype).name]
    largest = np.abs(x.astype(np.float64)).max()
    assert np.abs(back.astype(np.float64) - x.astype(np.float64)).max() < 3 * roundoff * largest


def test_scores_depend_on_distance_alone(rng):
    q, k = rng.standard_normal((2, 1, 1, 64)).astype(np.float32)
    rotation = reference.Rotation.of(default_frequencies(10000.0, 64))

    def score(at_q, at_k):
        return float(np.vdot(reference.rotate(q, [at_q], rotation), reference.rotate(k, [at_k], rotation)))

    assert score(17, 5) == pytest.approx(score(1_000_017, 1_000_005), abs=2e-5)
    assert score(17, 5) != pytest.approx(score(18, 5), abs=1e-3)


def test_the_attention_factor_lengthens_what_turns_and_nothing_else(rng):
    x = rng.standard_normal((4, 2, 64)).astype(np.float32)
    rotation = reference.Rotation.of(default_frequencies(10000.0, 32), attention_factor=1.25)
    found = reference.rotate(x, np.arange(4), rotation)
    lengths = [np.linalg.norm(rows[..., :32], axis=-1) for rows in (found, x)]
    np.testing.assert_allclose(lengths[0], 1.25 * lengths[1], rtol=1e-6)
    np.testing.assert_array_equal(found[..., 32:], x[..., 32:])


def test_pairs_of_other_axes_turn_by_other_positions(rng):
    # Each axis alone is a rotation by its own positions; a token whose axes agree turns as if there were one.
    x = rng.standard_normal((5, 2, 64)).astype(np.float32)
    frequencies, axes = default_frequencies(10000.0, 64), rng.integers(0, 3, 32).tolist()
    positions = rng.integers(0, 1000, (3, 5))
    found = reference.rotate(x, positions, reference.Rotation.of(frequencies, axes=axes))
    plain = reference.Rotation.of(frequencies)
    for i, axis in enumerate(axes):
        expected = reference.rotate(x, positions[axis], plain)
        np.testing.assert_array_equal(found[..., [i, 32 + i]], expected[..., [i, 32 + i]])
    one = reference.rotate(x, positions[0], reference.Rotation.of(frequencies, axes=axes))
    np.testing.assert_array_equal(one, reference.rotate(x, positions[0], plain))
