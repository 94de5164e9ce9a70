"""examples/llm/evaluate.py, needles.py, text.py: what is measured, on a small model of random weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scoring
from model import Decoder

for _library in ("gguf", "jinja2", "tiktoken", "tqdm"):
    pytest.importorskip(_library, reason=f"needs {_library}, of pip install '.[llm]'")

import chat  # noqa: E402
import needles  # noqa: E402
import small_gguf  # noqa: E402
import text  # noqa: E402

from kvit.reference import Pair  # noqa: E402

_spec = importlib.util.spec_from_file_location("llm_evaluate", Path(chat.__file__).with_name("evaluate.py"))
evaluate = sys.modules["llm_evaluate"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(evaluate)

TEXT = "hello, he said. well, hell is where the hello is; 12 of them, or 34? " * 12


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Weights that attend with force: attention that averages everything would hide a codec."""
    tensors = small_gguf.random_weights(np.random.default_rng(2))
    loud = {name: 2 * tensor if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    return small_gguf.write(tmp_path_factory.mktemp("llm") / "small.gguf", loud)


@pytest.fixture(scope="module")
def model(small) -> chat.Model:
    return chat.load(small)


@pytest.fixture
def pages(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def rows(small, pages, tmp_path, *arguments: str) -> list[dict]:
    """What the command writes."""
    out = tmp_path / "found.json"
    assert evaluate.main(["--model", str(small), "--text", str(pages), "--json", str(out), *arguments]) == 0
    return json.loads(out.read_text())["pairs"]


def test_bits_are_the_model_s_over_the_bytes_of_the_text(small, model, pages, tmp_path, capsys):
    base, coded = rows(small, pages, tmp_path, "--windows", "3", "--length", "40", "--pairs", "int4:int4")
    tokens, decoder = model.tokenizer.encode(TEXT), Decoder(model.config, model.tensors)
    bits, size, per_window = 0.0, 0, []
    for begin in np.linspace(0, len(tokens) - 40, 3).astype(int):
        window = tokens[begin : begin + 40]
        size += len(model.tokenizer.decode(window[1:].tolist()).encode())
        losses = []
        for pair in ("16:16", "int4:int4"):
            logits = decoder.forward(window[:-1], 0, scoring.coded_attention(Pair.parse(pair))).astype(np.float64)
            probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            losses.append(-np.log2(probabilities[np.arange(39), window[1:]]).sum())
        bits += losses[0]
        per_window.append(losses[1] - losses[0])
    assert base["bits_per_byte"] == pytest.approx(bits / size, rel=1e-5)
    assert base["more"] == 0 and base["same_choice_percent"] == 100
    assert coded["more"] == pytest.approx(sum(per_window) / size, rel=1e-3)
    error = np.std(per_window, ddof=1) / np.sqrt(3) / (size / 3)
    assert coded["standard_error"] == pytest.approx(error, rel=1e-3)
    assert 0 < coded["same_choice_percent"] < 100 and coded["tokens_in_same_memory"] == pytest.approx(128 / 36)
    said = capsys.readouterr().out
    assert "117 tokens" in said and f"{coded['bits_per_byte']:.4f}" in said


def test_a_margin_is_the_quantile_of_student_s_t():
    # From tables: 2.262 for 9 degrees of freedom, 2.131 for 15, 1.979 for 127.
    for windows, quantile in ((10, 2.262), (16, 2.131), (128, 1.979)):
        assert scoring.margin(1.0, windows) == pytest.approx(quantile, rel=2e-3)


def test_the_cache_and_its_kernels_measure_the_same(small, pages, tmp_path):
    command = ["--windows", "2", "--length", "24", "--pairs", "int8:int4"]
    _, by_reference = rows(small, pages, tmp_path, *command)
    _, by_kernels = rows(small, pages, tmp_path, *command, "--device", "host")
    # float16 weights and outputs in the kernels: a hundredth of a bit per byte, where a code changes in the next layer.
    assert by_kernels["bits_per_byte"] == pytest.approx(by_reference["bits_per_byte"], abs=0.02)


def test_smoothings_are_measured_on_another_text_and_change_codes_alone(small, model, pages, tmp_path):
    command = ["--windows", "2", "--length", "24", "--pairs", "int4:int4", "16:int8", "--smoothing", "64"]
    by_reference = rows(small, pages, tmp_path, *command)
    by_kernels = rows(small, pages, tmp_path, *command, "--device", "host")
    # K in 16 bits has no codes that a smoothing might help.
    assert [(row["k"], row["v"], row["is_smoothed"]) for row in by_reference] == [
        ("16", "16", False), ("int4", "int4", False), ("16", "int8", False), ("int4", "int4", True),
    ]  # fmt: skip
    assert by_reference[1]["bits_per_byte"] != by_reference[3]["bits_per_byte"]
    for here, there in zip(by_reference, by_kernels, strict=True):
        assert there["bits_per_byte"] == pytest.approx(here["bits_per_byte"], abs=0.02)
    watched = []
    decoder = Decoder(model.config, model.tensors)
    window = evaluate.calibration(model.tokenizer, 64)

    def attend(layer, q, k, v):
        watched.append((layer, k))
        return scoring.causal_attention(q, k, v)

    for part in window:
        decoder.hidden(part, 0, attend)
    first = np.concatenate([k for layer, k in watched if layer == 0])
    found = evaluate.smoothing.measured(decoder, window)
    assert len(found) == model.config.layers
    np.testing.assert_allclose(found[0].mean, first.mean(0), rtol=1e-4, atol=1e-6)


def test_a_needle_is_found_by_who_knows_it_and_by_nobody_else(model):
    for haystack in needles.hide(model.tokenizer, TEXT * 3, 3, 400):
        right = haystack.tokens[-haystack.answer :]
        told = model.tokenizer.decode(haystack.tokens.tolist())
        number = model.tokenizer.decode(right.tolist()).strip()
        assert told.count(number) == 2  # in the text, and as the answer
        assert abs(len(haystack.tokens) - 400) <= 40

        class Knowing:
            """Says the tokens that it was made with."""

            def __init__(self, says: np.ndarray):
                self.says = says

            def hidden(self, tokens, position, attend):
                return np.zeros((len(tokens), 1))

            def logits(self, hidden):
                assert len(hidden) == len(self.says)
                return np.eye(model.config.vocab)[self.says]

        assert haystack.is_found(Knowing(right), None)
        wrong = right.copy()
        wrong[-1] += 1
        assert not haystack.is_found(Knowing(wrong), None)


def test_needles_lie_from_the_beginning_to_the_end(model):
    found = needles.hide(model.tokenizer, TEXT * 3, 4, 400)
    places = []
    for haystack in found:
        told = model.tokenizer.decode(haystack.tokens.tolist())
        places.append(told.index("The secret number") / len(told))
    assert places == sorted(places) and places[0] < 0.25 and places[-1] > 0.6


def test_needles_are_counted(small, pages, tmp_path, monkeypatch):
    monkeypatch.setattr(needles.Haystack, "is_found", lambda self, model, attend: int(self.tokens[-1]) % 2 == 0)
    command = ["--windows", "2", "--length", "16", "--pairs", "int8:int8", "--needles", "4", "--needle-length", "160"]
    haystacks = needles.hide(chat.load(small).tokenizer, TEXT, 4, 160)
    expected = sum(int(haystack.tokens[-1]) % 2 == 0 for haystack in haystacks)
    for row in rows(small, pages, tmp_path, *command):
        assert (row["needles_found"], row["needles"]) == (expected, 4)


def test_prose_is_what_a_page_says_in_sentences():
    page = "# Head\n\nSays a.\n\n```sh\ncode\n```\n\n| a | b |\n|---|---|\n\n    drawn -> so\n\n"
    page += "- one\n  more\n<!-- c -->\nEnd."
    assert text.prose(page) == "# Head\n\nSays a.\n\n- one\n  more\nEnd.\n"


def test_the_project_s_pages_are_enough_text():
    content = text.read(text.pages())
    assert len(content) > 100_000 and "```" not in content and "\n|" not in content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--windows", "1"], "--windows 1 has no standard error; give at least 2"),
        (["--length", "1"], "--length 1 leaves no token to score"),
        (["--needles", "3", "--needle-length", "10"], "--needle-length at least 128"),
        (["--pairs", "int8:int5"], "unknown codec 'int5'"),
        (["--length", "300"], "small was made for texts of 200 tokens; give shorter ones"),
        (["--text", "nowhere.txt", "--length", "16", "--needle-length", "128"], "nowhere.txt"),
    ],
)
def test_bad_arguments_are_named(small, arguments, message, capsys):
    try:
        status = evaluate.main(["--model", str(small), *arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    said = capsys.readouterr()
    assert status in (1, 2) and not said.out
    assert message in said.err
