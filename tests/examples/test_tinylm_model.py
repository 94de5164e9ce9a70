"""examples/tinylm/model.py: the numpy model against the formulas, and the weights file."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import model as tinylm
import numpy as np
import plain_tinylm
import pytest
import safetensors.numpy
from model import Config, Decoder, load, save
from weights import WeightsError

import kvit.reference

TINYLM = Path(tinylm.__file__).parent

# Sizes that no axis shares with another, so that a mixed-up axis cannot fit by luck; 3 query heads per KV head.
SMALL = Config(width=48, layers=2, query_heads=6, kv_heads=2, head_dim=64, ffn_width=40, context=24)


def random_weights(config: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights that keep activations of order 1, so that every part of the model matters to the logits."""
    return {
        name: (rng.normal(size=shape) / np.sqrt(shape[-1]) if len(shape) == 2 else rng.uniform(0.5, 1.5, shape)).astype(
            np.float16
        )
        for name, shape in config.shapes().items()
    }


class ExactAttention:
    """kvit.reference.attention over unrounded K and V."""

    def __init__(self, config: Config):
        self._kv = [np.empty((2, 0, config.kv_heads, config.head_dim))] * config.layers

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        self._kv[layer] = np.concatenate([self._kv[layer], np.stack([k, v])], axis=1)
        return kvit.reference.attention(q, *self._kv[layer]).out.astype(np.float32)


@pytest.fixture
def weights(rng) -> dict[str, np.ndarray]:
    return random_weights(SMALL, rng)


# The sums are of at most 384 float32 products, through two layers: 1e-4 is a thousand roundings at order 1.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def test_logits_are_those_of_the_formulas(weights, rng):
    tokens = rng.integers(256, size=SMALL.context)  # the whole context: the last rotary angle as well
    got = Decoder(SMALL, weights).forward(tokens, 0, ExactAttention(SMALL))
    np.testing.assert_allclose(got, plain_tinylm.logits(SMALL, weights, tokens), **TOLERANCE)


def test_text_may_come_in_any_pieces(weights, rng):
    model, tokens = Decoder(SMALL, weights), rng.integers(256, size=SMALL.context)
    whole = model.forward(tokens, 0, ExactAttention(SMALL))
    attend, position, pieces = ExactAttention(SMALL), 0, []
    for count in (1, 1, 15, 7):  # one by one, and several after several, which puts a causal mask behind a history
        pieces.append(model.forward(tokens[position : position + count], position, attend))
        position += count
    np.testing.assert_allclose(np.concatenate(pieces), whole, **TOLERANCE)


def test_text_beyond_the_context_is_refused_before_anything_is_stored(weights):
    def attend(*_):
        pytest.fail("the refusal came after K and V were stored")

    with pytest.raises(ValueError, match="token 25 is past the model's context of 24"):
        Decoder(SMALL, weights).forward(np.zeros(5, int), 20, attend)


def test_a_saved_model_loads_as_it_was(tmp_path, weights):
    save(tmp_path / "model.safetensors", SMALL, weights, {"steps": "12"})
    model, facts = load(tmp_path / "model.safetensors")
    assert model.config == SMALL and facts == {"steps": "12"}
    assert {name: tensor.tolist() for name, tensor in model.weights.items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }


def test_wrong_weights_are_named(tmp_path, weights):
    del weights["layers.1.down.weight"]
    with pytest.raises(WeightsError, match=r"layers.1.down.weight is missing; the config wants \(48, 40\)"):
        Decoder(SMALL, weights)
    safetensors.numpy.save_file(weights, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="bare.safetensors has no config"):
        load(tmp_path / "bare.safetensors")


def test_committed_weights_keep_their_budget():
    path = TINYLM / "model.safetensors"
    model, facts = load(path)
    assert path.stat().st_size <= 8e6
    assert sum(tensor.size for tensor in model.weights.values()) <= 4e6
    assert float(facts["test_bits_per_byte"]) < 2


def test_committed_weights_predict_python_that_they_were_not_trained_on():
    # textwrap.py is in the test split of every Python version. What the bytes' frequencies alone tell leaves 4.5 bits
    # per byte; training's own figure is an average over more files. Eight windows, far apart: single ones differ much.
    model, facts = load(TINYLM / "model.safetensors")
    text = np.frombuffer(Path(sysconfig.get_paths()["stdlib"], "textwrap.py").read_bytes(), np.uint8)
    bits = []
    for start in range(0, 8 * 2048, 2048):
        window = text[start : start + 257].astype(np.int64)
        logits = model.forward(window[:-1], 0, ExactAttention(model.config)).astype(np.float64)
        log_probability = logits[np.arange(256), window[1:]] - np.log(np.exp(logits).sum(axis=1))
        bits.append(-log_probability.mean() / np.log(2))
    assert np.mean(bits) < float(facts["test_bits_per_byte"]) + 0.75
