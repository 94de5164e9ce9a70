"""examples/llm/paged.py and gpu.py: what the pages remember, against the model's formulas; models of random weights."""

from __future__ import annotations

import numpy as np
import paged
import plain_tinylm
import pytest
import scoring
from model import Config, Decoder
from paged import PAGE_SIZE, HostEngine

import kvit
from kvit.reference import Pair

# The shape of SmolLM2 in small: groups of 3 query heads, a base that is not the usual one, and no two axes of one size.
CONFIG = Config(
    vocab=80, width=48, layers=2, query_heads=9, kv_heads=3, head_dim=64, ffn_width=40, context=256, rope_base=1e5
)


@pytest.fixture
def tensors(rng) -> dict[str, np.ndarray]:
    """Weights that keep activations of order 1, and that attend with force."""
    return {
        name: (rng.normal(size=shape) / np.sqrt(shape[-1]) * 1.5 if len(shape) == 2 else rng.uniform(0.5, 1.5, shape))
        .astype(np.float16)
        .astype(np.float32)
        for name, shape in CONFIG.shapes().items()
    }


@pytest.fixture
def engine(tensors, device):
    """Makes an engine on the device."""

    def make(capacity: int, k: str | None = None, v: str | None = None) -> HostEngine:
        if device == "host":
            return HostEngine(CONFIG, tensors, capacity, k, v)
        pytest.importorskip("cupy", reason="needs CuPy, of pip install '.[test-interop]'")
        import gpu

        return gpu.GpuEngine(CONFIG, tensors, capacity, k, v, device)

    return make


# q, k, v and outputs in float16, through two layers: some ten roundings of 2**-11, of numbers of order 4.
TOLERANCE = {"rtol": 0, "atol": 10 * 4 * 2**-11}


def test_logits_are_those_of_the_formulas(engine, tensors, rng):
    tokens = rng.integers(CONFIG.vocab, size=PAGE_SIZE + 9)  # into the second page of each layer
    expected = plain_tinylm.logits(CONFIG, tensors, tokens)
    read = engine(2 * PAGE_SIZE)
    np.testing.assert_allclose(read.score(tokens), expected[-1], **TOLERANCE)
    # Token by token: on a GPU the first runs as it is, the second is captured, the others are launched.
    told = engine(2 * PAGE_SIZE)
    told.score(tokens[: PAGE_SIZE - 2])
    for i in range(PAGE_SIZE - 2, len(tokens)):
        np.testing.assert_allclose(told.score(tokens[i : i + 1]), expected[i], **TOLERANCE)
    assert len(told) == len(tokens)
    told.layers.check()


def test_several_prompts_and_tokens_follow_each_other(engine, tensors, rng):
    tokens = rng.integers(CONFIG.vocab, size=40)
    expected, talk, end = plain_tinylm.logits(CONFIG, tensors, tokens), engine(PAGE_SIZE), 0
    for count in (20, 1, 1, 1, 7, 1, 9):  # a second prompt behind captured steps, and steps behind it
        end += count
        np.testing.assert_allclose(talk.score(tokens[end - count : end]), expected[end - 1], **TOLERANCE)


def test_what_was_forgotten_leaves_nothing(engine, tensors, rng):
    tokens, other = rng.integers(CONFIG.vocab, size=(2, 30))
    talk = engine(PAGE_SIZE)
    talk.score(other)
    talk.forget(5)
    text = np.concatenate([other[:5], tokens[:20]])
    np.testing.assert_allclose(talk.score(tokens[:20]), plain_tinylm.logits(CONFIG, tensors, text)[-1], **TOLERANCE)
    talk.forget()
    assert len(talk) == 0
    np.testing.assert_allclose(talk.score(tokens), plain_tinylm.logits(CONFIG, tensors, tokens)[-1], **TOLERANCE)


@pytest.mark.parametrize("names", ["int8:int8", "int8:int4", "int4:int4", "float8_e4m3:float8_e4m3", "16:int8"])
def test_codecs_do_to_logits_what_the_reference_s_do(engine, tensors, rng, names):
    tokens, pair = rng.integers(CONFIG.vocab, size=30), Pair.parse(names)
    k, v = (None if name == "16" else name for name in (pair.k, pair.v))
    talk = engine(PAGE_SIZE, k, v)
    talk.score(tokens[:-2])
    got = [talk.score(tokens[i : i + 1]) for i in (28, 29)]
    model = Decoder(CONFIG, tensors)
    coded = model.forward(tokens, 0, scoring.coded_attention(pair))[-2:]
    plain = model.forward(tokens, 0, scoring.coded_attention(Pair("16", "16")))[-2:]
    # A rounding may carry a number over the edge between two codes. So the codec's own error is the measure: what
    # differs from the reference must be small beside it.
    assert np.linalg.norm(got - coded) < max(0.3 * np.linalg.norm(coded - plain), 0.02 * np.linalg.norm(plain))


def test_text_beyond_the_pages_is_refused_and_nothing_is_read(engine, tensors, rng):
    tokens = rng.integers(CONFIG.vocab, size=PAGE_SIZE + 1)
    talk = engine(PAGE_SIZE)
    talk.score(tokens[:-2])
    with pytest.raises(kvit.CacheFull, match="65 tokens do not fit in pages of 64"):
        talk.score(tokens[-2:])
    assert len(talk) == PAGE_SIZE - 1
    expected = plain_tinylm.logits(CONFIG, tensors, tokens[:-1])[-1]
    np.testing.assert_allclose(talk.score(tokens[-2:-1]), expected, **TOLERANCE)


def test_a_call_that_is_interrupted_has_read_nothing(tensors, rng, monkeypatch):
    tokens = rng.integers(CONFIG.vocab, size=12)
    talk, attend = HostEngine(CONFIG, tensors, PAGE_SIZE), paged.PagedLayers.__call__
    talk.score(tokens[:8])

    def interrupted(self, layer, q, k, v):
        if layer == 1:
            raise KeyboardInterrupt
        return attend(self, layer, q, k, v)

    with monkeypatch.context() as patch:
        patch.setattr(paged.PagedLayers, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            talk.score(tokens[8:])
    assert len(talk) == 8
    expected = plain_tinylm.logits(CONFIG, tensors, tokens)[-1]
    np.testing.assert_allclose(talk.score(tokens[8:]), expected, **TOLERANCE)


def test_memory_is_what_the_pages_take(tensors):
    # 65 tokens need 2 pages of 64 x (K 64 + 4 bytes, V 32 + 4) x 3 heads x 2 layers
    layers = HostEngine(CONFIG, tensors, PAGE_SIZE + 1, "int8", "int4").layers
    assert layers.memory().startswith("K and V of 128 tokens in 79,872 bytes: ")
