"""examples/llm with SmolLM2-135M-Instruct itself, which is fetched where it is not there yet."""

from __future__ import annotations

import numpy as np
import plain_tinylm
import pytest
import scoring
from model import Decoder
from sampling import continued, greedy

from kvit.reference import Pair

for _library in ("gguf", "jinja2", "tiktoken", "tqdm"):
    pytest.importorskip(_library, reason=f"needs {_library}, of pip install '.[llm]'")

import chat  # noqa: E402


@pytest.fixture(scope="module")
def smollm2() -> chat.Model:
    return chat.load(None)


@pytest.fixture
def engine(smollm2, device):
    """Makes an engine of the model on the device."""
    if device != "host":
        pytest.importorskip("cupy", reason="needs CuPy, of pip install '.[test-interop]'")
    return lambda capacity, k=None, v=None: chat.open_engine(smollm2, capacity, device, k, v)


def test_the_model_is_the_one_that_the_file_describes(smollm2):
    config = smollm2.config
    assert (config.layers, config.query_heads, config.kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert (config.rope_base, config.context, smollm2.tokenizer.end) == (100000.0, 8192, 2)
    assert smollm2.tokenizer.encode("The sky is blue 24").tolist() == [504, 6376, 314, 4461, 216, 34, 36]
    assert smollm2.tokenizer.conversation([{"role": "user", "content": "Why?"}]).endswith(
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_logits_are_those_of_a_dense_run_in_float64(smollm2, engine):
    tokens = smollm2.tokenizer.encode("Light of short waves is scattered")
    expected = plain_tinylm.logits(smollm2.config, smollm2.tensors, tokens)[-2:]
    talk = engine(64)
    got = np.array([talk.score(tokens[:-1]), talk.score(tokens[-1:])])
    # Rows of q, k, v and outputs are rounded to 11 bits. On the host that moves logits by 1.3 * 2**-11 of their own
    # spread (RMS); GPUs add in another order, and weights that are wrong anywhere move them by the spread itself.
    assert np.sqrt(np.mean((got - expected) ** 2)) < 4 * 2**-11 * expected.std()
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_tokens_from_the_cache_are_those_of_reading_all_again(smollm2, engine):
    prompt = smollm2.tokenizer.encode("Once upon a time, there was a")
    talk = engine(64)
    told = list(continued(talk.score, prompt, 8, greedy, smollm2.tokenizer.end))
    model, text = Decoder(smollm2.config, smollm2.tensors), prompt
    for _ in range(8):
        hidden = model.hidden(text, 0, scoring.coded_attention(Pair("16", "16")))
        text = np.append(text, greedy(model.logits(hidden[-1:])[0]))
    assert told == text[len(prompt) :].tolist()
    talk.layers.check()


@pytest.mark.parametrize("stored", [(None, None), ("int8", "int4")], ids=["float16", "int8:int4"])
def test_it_knows_the_capital_of_france(smollm2, engine, stored):
    tokenizer = smollm2.tokenizer
    asked = tokenizer.conversation([{"role": "user", "content": "What is the capital of France?"}])
    logits = engine(64, *stored).score(tokenizer.encode(asked + "The capital of France is", control=True))
    assert tokenizer.decode([greedy(logits)]) == " Paris"
