"""kvit.Rope: frequencies of every scaling against their published formulas, and configurations as models have them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import kvit
from kvit.reference import rope as reference

D, BASE = 128, 500000.0
PLAIN = BASE ** (-np.arange(0, D, 2) / D)  # theta_i of RoFormer, section 3.2.2
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}


def frequencies(scaling=None, **options):
    return np.array(kvit.Rope(D, BASE, scaling=scaling, **options).inverse_frequencies)


def test_plain_frequencies_are_powers_of_the_base():
    np.testing.assert_allclose(frequencies(), PLAIN, rtol=1e-14)
    np.testing.assert_allclose(frequencies(rotary_dim=32), BASE ** (-np.arange(0, 32, 2) / 32), rtol=1e-14)


def test_linear_scaling_divides_every_frequency():
    np.testing.assert_allclose(frequencies({"rope_type": "linear", "factor": 4.0}), PLAIN / 4, rtol=1e-14)
    np.testing.assert_allclose(frequencies({"type": "linear", "factor": 4.0}), PLAIN / 4, rtol=1e-14)  # the older key


def test_ntk_scaling_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor():
    found = frequencies({"rope_type": "ntk", "factor": 4.0})
    assert found[0] == 1
    np.testing.assert_allclose(found[-1], PLAIN[-1] / 4, rtol=1e-12)
    np.testing.assert_allclose(found, (BASE * 4 ** (D / (D - 2))) ** (-np.arange(0, D, 2) / D), rtol=1e-12)


def test_dynamic_scaling_is_none_within_the_original_length_and_ntk_beyond():
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4096}
    np.testing.assert_allclose(frequencies({**scaling, "length": 100}), PLAIN, rtol=1e-12)
    # 8192 tokens of 4096: factor 2 * 2 - (2 - 1) = 3.
    base = BASE * 3 ** (D / (D - 2))
    np.testing.assert_allclose(frequencies({**scaling, "length": 8192}), base ** (-np.arange(0, D, 2) / D), rtol=1e-12)


def test_yarn_ramps_between_the_pairs_that_turn_32_times_and_once():
    # YaRN, section 3.2: with r = L / wavelength, pairs of r > 32 stay, of r < 1 are interpolated; a ramp in i between.
    found = kvit.Rope(D, BASE, scaling=YARN)

    def pair(turns):
        return D * math.log(4096 / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    first, last = math.floor(pair(32)), math.ceil(pair(1))
    ramp = np.clip((np.arange(D // 2) - first) / (last - first), 0, 1)
    np.testing.assert_allclose(found.inverse_frequencies, PLAIN / 16 * ramp + PLAIN * (1 - ramp), rtol=1e-12)
    turns = 4096 * PLAIN / (2 * math.pi)
    np.testing.assert_allclose(np.array(found.inverse_frequencies)[turns > 40], PLAIN[turns > 40], rtol=1e-12)
    np.testing.assert_allclose(np.array(found.inverse_frequencies)[turns < 0.7], PLAIN[turns < 0.7] / 16, rtol=1e-12)
    assert found.attention_factor == pytest.approx(0.1 * math.log(16) + 1)  # YaRN, section 3.4


def test_yarn_takes_the_ramp_and_the_attention_factor_that_are_given():
    whole = {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False}
    expected = reference.yarn_frequencies(BASE, D, 16.0, 4096, beta_fast=16, beta_slow=2, truncate=False)
    np.testing.assert_allclose(frequencies(whole), expected, rtol=1e-14)
    assert kvit.Rope(D, scaling={**YARN, "attention_factor": 0.75}).attention_factor == 0.75
    both = {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}
    expected_factor = (0.0707 * math.log(40) + 1) / (0.1 * math.log(40) + 1)
    assert kvit.Rope(D, scaling=both).attention_factor == pytest.approx(expected_factor)


def test_llama3_scaling_changes_long_wavelengths_alone():
    wavelength = 2 * math.pi / PLAIN
    smooth = (8192 / wavelength - 1) / (4 - 1)
    between = (1 - smooth) * PLAIN / 8 + smooth * PLAIN
    expected = np.where(wavelength < 8192 / 4, PLAIN, np.where(wavelength > 8192 / 1, PLAIN / 8, between))
    np.testing.assert_allclose(frequencies(LLAMA3), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "scaling, expected",
    [
        (None, reference.default_frequencies(BASE, D)),
        ({"rope_type": "linear", "factor": 3.0}, reference.linear_frequencies(BASE, D, 3.0)),
        ({"rope_type": "ntk", "factor": 3.0}, reference.ntk_frequencies(BASE, D, 3.0)),
        (YARN, reference.yarn_frequencies(BASE, D, 16.0, 4096)),
        (LLAMA3, reference.llama3_frequencies(BASE, D, 8.0, 1.0, 4.0, 8192)),
    ],
    ids=["plain", "linear", "ntk", "yarn", "llama3"],
)
def test_frequencies_and_steps_are_the_references(scaling, expected):
    found = kvit.Rope(D, BASE, scaling=scaling)
    np.testing.assert_allclose(found.inverse_frequencies, expected, rtol=1e-14)
    np.testing.assert_allclose(found.steps, reference.Rotation.of(expected).steps, rtol=1e-14)
    assert reference.yarn_attention_factor(16.0) == pytest.approx(kvit.Rope(D, scaling=YARN).attention_factor)


SHORT, LONG = [1 + i / 64 for i in range(D // 2)], [1 + i for i in range(D // 2)]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 4096,
    "factor": 32.0,
}


@pytest.mark.parametrize("length, factors", [(1, SHORT), (4096, SHORT), (4097, LONG), (131072, LONG)])
def test_longrope_takes_the_long_factors_for_sequences_beyond_the_original_length(length, factors):
    found = kvit.Rope(D, BASE, scaling={**LONGROPE, "length": length})
    np.testing.assert_allclose(found.inverse_frequencies, PLAIN / factors, rtol=1e-14)
    np.testing.assert_allclose(found.inverse_frequencies, reference.longrope_frequencies(BASE, D, factors), rtol=1e-14)
    # LongRoPE, section 3.3: sqrt(1 + ln s / ln L), at every length.
    assert found.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert found.attention_factor == pytest.approx(reference.longrope_attention_factor(32.0, 4096))


def test_longrope_takes_the_attention_factor_that_is_given_or_one_for_each_side_of_the_original_length():
    given = {**LONGROPE, "length": 5000, "attention_factor": 1.5}
    assert kvit.Rope(D, scaling=given).attention_factor == 1.5
    both = {**LONGROPE, "short_mscale": 1.25, "long_mscale": 1.75}  # as Phi-3.5-MoE has them
    assert [kvit.Rope(D, scaling={**both, "length": n}).attention_factor for n in (4096, 4097)] == [1.25, 1.75]
    assert kvit.Rope(D, scaling={**LONGROPE, "length": 5000, "factor": 1.0}).attention_factor == 1


@pytest.mark.parametrize("factor", [None, 4.0])
def test_proportional_scaling_turns_the_fastest_pairs_as_if_all_turned(factor):
    scaling = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": factor}
    found = frequencies(scaling)
    np.testing.assert_allclose(found[:16], PLAIN[:16] / (factor or 1), rtol=1e-14)  # a quarter of 64 pairs
    assert not found[16:].any()
    np.testing.assert_allclose(found, reference.proportional_frequencies(BASE, D, 0.25, factor or 1.0), rtol=1e-14)
    np.testing.assert_allclose(frequencies({"rope_type": "proportional"}), PLAIN, rtol=1e-14)


def test_axes_come_one_after_another_or_take_turns():
    def axes(**given):
        return list(kvit.Rope(32, scaling=given).axes)

    assert axes(mrope_section=[4, 5, 7]) == [0] * 4 + [1] * 5 + [2] * 7 == reference.chunked_axes([4, 5, 7])
    # Width has its four pairs by the 12th; time has what is left.
    turns = axes(mrope_section=[7, 5, 4], mrope_interleaved=True)
    assert turns == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 0, 0] == reference.interleaved_axes([7, 5, 4], 16)
    assert kvit.Rope(32).axes is None


def test_axes_go_with_any_scaling():
    found = kvit.Rope(D, BASE, scaling={**YARN, "mrope_section": [16, 24, 24]})
    assert found.steps == kvit.Rope(D, BASE, scaling=YARN).steps
    assert found.axes.count(1) == 24


LLAMA = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "rope_theta": BASE,
    "max_position_embeddings": 131072,
    "rope_scaling": LLAMA3,
}


def test_configurations_describe_ropes():
    found = kvit.Rope.from_config(LLAMA)
    assert found.inverse_frequencies == kvit.Rope(128, BASE, scaling=LLAMA3).inverse_frequencies
    within = {key: value for key, value in LLAMA.items() if key not in ("rope_theta", "rope_scaling")}
    newer = SimpleNamespace(**within, rope_parameters={**LLAMA3, "rope_theta": BASE, "partial_rotary_factor": 0.5})
    assert kvit.Rope.from_config(newer, interleaved=True).rotary_dim == 64
    plain = kvit.Rope.from_config({"head_dim": 64, "rope_scaling": None})
    assert (plain.base, plain.rotary_dim, plain.scaling_type) == (10000.0, 64, "default")
    # Where only the lengths are given, they give the factor.
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 4096}
    found = kvit.Rope.from_config({"head_dim": 128, "max_position_embeddings": 65536, "rope_scaling": yarn})
    assert found.inverse_frequencies == kvit.Rope(128, scaling=YARN).inverse_frequencies


def test_a_dynamic_configuration_needs_to_know_how_long_sequences_get():
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    config = {"head_dim": 128, "max_position_embeddings": 4096, "rope_scaling": dynamic}
    with pytest.raises(ValueError, match="dynamic needs length"):
        kvit.Rope.from_config(config)
    assert kvit.Rope.from_config(config, length=8192).inverse_frequencies[1] < kvit.Rope(128).inverse_frequencies[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"head_dim": 128, "rotary_dim": 40},
            "rotary_dim is 40; .* multiple of 16 up to head_dim, 128, or of 4 up to 32",
        ),
        (
            {"head_dim": 128, "rotary_dim": 22},
            "rotary_dim is 22; .* multiple of 16 up to head_dim, 128, or of 4 up to 32",
        ),
        (
            {"head_dim": 16, "rotary_dim": 20},
            "rotary_dim is 20; .* multiple of 16 up to head_dim, 16, or of 4 up to 32",
        ),
        ({"head_dim": 64, "rotary_dim": 0}, "rotary_dim is 0; it must be a multiple of 16"),
        ({"head_dim": 64, "rotary_dim": 128}, "rotary_dim is 128"),
        ({"head_dim": 2**31}, "head_dim is 2147483648; rows of a head have 65536 channels at most"),
        ({"head_dim": 128, "base": 1.0}, "base is 1.0"),
        ({"head_dim": 128, "scaling": {"rope_type": "spiral"}}, "rope_type is 'spiral'; known are default, linear"),
        ({"head_dim": 128, "scaling": {"rope_type": "linear"}}, "linear needs factor"),
        ({"head_dim": 128, "scaling": {"rope_type": "ntk", "factor": -2.0}}, "factor is -2.0"),
        ({"head_dim": 128, "scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "the first must be the smaller"),
        ({"head_dim": 128, "scaling": LONGROPE}, "longrope needs length"),
        ({"head_dim": 128, "scaling": {**LONGROPE, "length": 9, "factor": None}}, "longrope needs factor"),
        ({"head_dim": 128, "scaling": {**LONGROPE, "length": 9, "long_factor": None}}, "longrope needs long_factor"),
        ({"head_dim": 64, "scaling": {**LONGROPE, "length": 9}}, "short_factor is 64 numbers; .* each of the 32 pairs"),
        (
            {"head_dim": 128, "scaling": {**LONGROPE, "length": 9, "long_factor": [*LONG[:-1], 0.0]}},
            r"long_factor\[63\] is 0.0; it must be a number greater than 0",
        ),
        ({"head_dim": 128, "scaling": {**LONGROPE, "length": 9, "long_mscale": 2.0}}, "longrope needs short_mscale"),
        (
            {"head_dim": 128, "scaling": {"rope_type": "proportional", "partial_rotary_factor": 1.5}},
            "partial_rotary_factor is 1.5; it must be a share",
        ),
        (
            {"head_dim": 32, "scaling": {"mrope_section": [4, 6, 7]}},
            r"mrope_section is \[4, 6, 7\]; .* together the 16",
        ),
        ({"head_dim": 32, "scaling": {"mrope_section": [4, 6, 7], "mrope_interleaved": True}}, "together the 16"),
        ({"head_dim": 32, "scaling": {"mrope_section": [4, 4, 4, 4]}}, "it must be 3 numbers of pairs"),
        ({"head_dim": 32, "scaling": {"mrope_section": [4, -6, 18]}}, "it must be 3 numbers of pairs"),
        ({"head_dim": 32, "scaling": {"mrope_interleaved": True}}, "mrope_interleaved and no mrope_section"),
    ],
)
def test_what_no_rope_can_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kvit.Rope(**arguments)


def test_a_configuration_without_a_width_is_refused():
    with pytest.raises(ValueError, match="no hidden_size; give head_dim"):
        kvit.Rope.from_config({"rope_theta": 1e4})
