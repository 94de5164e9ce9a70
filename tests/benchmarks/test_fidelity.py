"""benchmarks/fidelity.py: its errors are the codecs', measured against the numbers before them."""

import json

import fidelity
import numpy as np
import pytest
from fidelity import Case

from kvit.reference import Pair


@pytest.fixture(scope="module")
def case():
    return Case("Gaussian", 64, 96, "bfloat16")


def error(case, names):
    pair = Pair.parse(names)
    return case.result(pair, fidelity.by_reference(case, pair))


def test_sixteen_bits_move_nothing(case):
    assert (error(case, "16:16").rms, error(case, "16:16").worst) == (0, 0)


def test_fewer_bits_move_more_and_the_worst_head_more_than_all(case):
    found = [error(case, names) for names in ("16:int8", "int8:int8", "int8:int4", "int4:int4")]
    assert [result.rms for result in found] == sorted(result.rms for result in found)
    assert all(0 < result.rms < result.worst for result in found)


def test_the_error_of_v_alone_is_as_large_as_its_steps_say(case):
    # Rounding is uniform over a step: its RMS is step / sqrt(12). Attention averages errors as it averages values,
    # which are just as independent, so the ratio of the two stays.
    v = case.v.astype(np.float64)
    step = (v.max(-1) - v.min(-1)) / 15
    expected = np.sqrt((step**2).mean() / 12 / (v**2).mean())
    assert error(case, "16:int4").rms == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("names", ["16:16", "int8:int8", "int8:int4", "float8_e4m3:float8_e4m3"])
def test_kernels_err_as_the_reference_does(case, device, names):
    # What bfloat16 rounds adds to what the codec rounds: two roundings of 2**-8, independent of each other.
    pair = Pair.parse(names)
    by_kernel = case.result(pair, fidelity.by_kernel(case, pair, device)).rms
    assert abs(by_kernel - error(case, names).rms) < 2.0**-8


def test_relative_errors_are_those_of_the_output(case):
    found = case.result(Pair("16", "16"), 1.25 * case.exact)
    assert (found.rms, found.worst) == pytest.approx((0.25, 0.25))
    one_head = case.exact.copy()
    one_head[3, 5] *= 3
    assert case.result(Pair("16", "16"), one_head).worst == pytest.approx(2)


@pytest.mark.parametrize(("kind", "low", "high"), [("Gaussian", 2.9, 3.1), ("heavy-tailed", 8, 1000)])
def test_kinds_differ_in_their_tails(kind, low, high):
    x = fidelity.KINDS[kind](np.random.default_rng(1), (4000, 2, 64))
    assert low < (x**4).mean() / (x**2).mean() ** 2 < high  # kurtosis: 3 of a normal, none of Student's t of 3 degrees
    if kind == "Gaussian":
        assert x.var() == pytest.approx(1, rel=0.02)


def test_outlier_channels_are_the_same_for_all_tokens_of_a_head():
    x = fidelity.outlier_channels(np.random.default_rng(1), (4000, 2, 64))
    size = np.sort(x.std(axis=0), axis=-1)
    np.testing.assert_allclose(size[:, :-2], 1, rtol=0.1)
    np.testing.assert_allclose(size[:, -2:], fidelity.OUTLIER_FACTOR, rtol=0.1)


def test_percentages_have_three_digits_or_all_before_the_point():
    assert fidelity.Result(Pair("16", "16"), "Gaussian", 64, 0.01234, 13.9).percent() == "1.23 / 1390"


def test_bytes_count_parameters():
    assert Pair("int8", "int4").row_bytes("bfloat16", 128) == 128 + 4 + 64 + 4
    assert Pair("16", "float8_e4m3").row_bytes("bfloat16", 128) == 256 + 128


def test_the_command_prints_and_writes_every_pair(tmp_path, capsys):
    command = ["--pairs", "16:16", "int8:int4", "--tokens", "40", "--head-dims", "64"]
    assert fidelity.main([*command, "--json", str(tmp_path / "found.json")]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert [(r["pair"]["k"], r["kind"]) for r in found["results"]][:3] == [("16", kind) for kind in fidelity.KINDS]
    coded = found["results"][3]  # int8:int4, Gaussian
    assert f"{100 * coded['rms']:.3g} / {100 * coded['worst']:.3g}" in said
    assert "kvit.reference" in said and said.count("\n") == 5  # a title, a blank line, a header, two pairs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "int8"], "'int8' is no pair; pairs look like int8:int4"),
        (["--pairs", "8:16"], "unknown codec '8'; known are float16"),
        (["--tokens", "0"], "--tokens 0 leaves nothing to attend to"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        fidelity.main(arguments)
    assert message in capsys.readouterr().err
