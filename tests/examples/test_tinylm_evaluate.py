"""examples/tinylm/evaluate.py: what it scores is the model's loss, and the codecs alone make the difference."""

from __future__ import annotations

import json
import math

import corpus
import evaluate
import numpy as np
import pytest
import scoring
from evaluate import WINDOW
from model import Config, Decoder, save
from scoring import DTYPE

import kvit.reference
from kvit.reference import Pair


@pytest.fixture(scope="module")
def small() -> Decoder:
    """Two layers of random weights that attend with force: attention that averages everything would hide a codec."""
    config, rng = Config(width=64, layers=2, query_heads=6, kv_heads=2, ffn_width=64), np.random.default_rng(3)
    weights = {name: 2 * rng.normal(size=shape) / np.sqrt(shape[-1]) for name, shape in config.shapes().items()}
    return Decoder(config, weights)


def one_layer(rng, tokens=40, query_heads=6):
    """q, k and v of a window in float32; 6 query heads on 2 KV heads, so that a mixed-up axis cannot fit by luck."""
    return (rng.standard_normal((tokens, heads, 64)).astype(np.float32) for heads in (query_heads, 2, 2))


@pytest.mark.parametrize("names", ["16:16", "int8:int4", "float8_e4m3:int8"])
def test_attention_is_the_reference_s_over_a_cache_of_the_pair(rng, names):
    q, k, v = one_layer(rng)
    pair = Pair.parse(names)
    k_codec, v_codec = pair.codecs(DTYPE)
    cache = kvit.reference.Cache.poisoned(3, 16, 2, 64, dtype=np.float16, k=k_codec, v=v_codec)
    table = kvit.reference.Table([[2, 0, 1]], [40])
    kvit.reference.append(cache, table, k.astype(np.float16), v.astype(np.float16), [40])
    expected, _ = kvit.reference.paged_attention(q.astype(np.float16), cache, table, [40])
    # Rows decoded to float32 and sums of 64 and 40 terms in it: some ten roundings of 2**-24, of numbers up to 10.
    np.testing.assert_allclose(scoring.coded_attention(pair)(0, q, k, v), expected, atol=2e-5)


@pytest.mark.parametrize("names", ["16:16", "int8:int4", "float8_e4m3:float8_e4m3"])
def test_the_cache_and_its_kernels_give_the_same(rng, device, names):
    pair = Pair.parse(names)
    rows = list(one_layer(rng))
    config = Config(query_heads=6, kv_heads=2)
    got = scoring.cached_attention(pair, config, device, WINDOW)(0, *rows)
    # Weights and outputs in float16: two roundings of 2**-11, of values up to 4, and of codes over a range of 8.
    np.testing.assert_allclose(got, scoring.coded_attention(pair)(0, *rows), atol=2**-11 * 12)


def test_a_uniform_model_needs_eight_bits_for_each_byte():
    assert scoring.bits_of(np.full((5, 256), 1e4), np.arange(5)) == pytest.approx(np.full(5, 8))


def test_bits_are_those_of_the_byte_that_comes():
    logits = np.zeros((2, 4), np.float32)
    logits[0, 3], logits[1, 0] = math.log(5), math.log(13)  # probabilities 5/8 and 13/16; of the others 1/8 and 1/16
    assert scoring.bits_of(logits, np.array([3, 1])) == pytest.approx([math.log2(8 / 5), 4])


def test_windows_reach_from_the_first_byte_to_the_last():
    text = bytes(range(256)) * 8
    found = evaluate.windows(text, 5)
    assert found.shape == (5, WINDOW + 1)
    assert bytes(found[0]) == text[: WINDOW + 1] and bytes(found[-1]) == text[-WINDOW - 1 :]


def test_fewer_bits_cost_more_and_each_pair_is_measured_by_itself(small, rng):
    texts = rng.integers(256, size=(2, WINDOW + 1)).astype(np.uint8)
    base = evaluate.evaluate(small, Pair("16", "16"), texts)
    moved = {
        names: np.abs(evaluate.evaluate(small, Pair.parse(names), texts).bits - base.bits).mean()
        for names in ("int8:int8", "int8:int4", "int4:int4")
    }
    assert 0 < moved["int8:int8"] < moved["int8:int4"] < moved["int4:int4"]
    assert evaluate.evaluate(small, Pair("16", "16"), texts).over(base) == (0, 0)


def test_bytes_of_a_token_count_its_parameters():
    # 5 layers x 2 KV heads x (64 bytes of int8 and 4 of parameters, 32 of int4 and 4)
    assert scoring.token_bytes(Pair("int8", "int4"), Config()) == 5 * 2 * (64 + 4 + 32 + 4)
    assert scoring.token_bytes(Pair("16", "16"), Config()) == 5 * 2 * 2 * 128


def test_the_command_prints_and_writes_a_row_for_each_pair(small, tmp_path, monkeypatch, capsys):
    save(tmp_path / "small.safetensors", small.config, small.weights, {})
    monkeypatch.setattr(corpus, "read", lambda: {"test": bytes(range(256)) * 4})
    command = ["--weights", str(tmp_path / "small.safetensors"), "--bytes", "600", "--pairs", "int8:int4", "16:16"]
    assert evaluate.main([*command, "--json", str(tmp_path / "found.json")]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert found["bytes"] == 512  # whole windows of 600 bytes
    coded, plain = found["pairs"]
    assert (coded["k"], coded["v"], plain["more"]) == ("int8", "int4", 0)
    assert coded["more"] == pytest.approx(coded["bits_per_byte"] - plain["bits_per_byte"])
    assert f"{coded['bits_per_byte']:.4f}" in said and "512 held-out bytes" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bytes", "255"], "--bytes 255 is less than a window; give at least 256"),
        (["--pairs", "int8"], "'int8' is no pair; pairs look like int8:int4"),
        (["--pairs", "int8:int5"], "unknown codec 'int5'; known are float16"),
        (["--weights", "nowhere.safetensors"], "no weights at nowhere.safetensors"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    try:
        status = evaluate.main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    said = capsys.readouterr()
    assert status in (1, 2) and not said.out
    assert message in said.err
