"""benchmarks/generation.py: contenders share weights, are proven before they are timed, and all is written down."""

import json
from contextlib import ExitStack

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import generation
import torch
from generation import ON_HOST, Contender, Result, prove

import kvit
from kvit._cli.compare import Mismatch

pytestmark = pytest.mark.interop
PROMPTS = torch.arange(1, 41).view(2, 20)


@pytest.fixture(scope="module")
def model():
    return generation.new_model(ON_HOST, 64, "cpu")


def contenders(model, stack, names=tuple(generation.CONTENDERS), k=None, v=None):
    return [Contender(name, model, 2, k, v, stack) for name in names]


def test_contenders_have_the_weights_of_one_model_and_attention_of_their_own(model):
    with ExitStack() as stack:
        found = contenders(model, stack)
        places = {next(contender.model.parameters()).data_ptr() for contender in found}
        assert places == {next(model.parameters()).data_ptr()}
        assert [contender.model.config._attn_implementation for contender in found] == ["kvit", "kvit", "sdpa", "eager"]
        prove(model, found, PROMPTS, has_codecs=False)
        assert [contender.generate(PROMPTS, 3).sequences.shape[1] for contender in found] == [23] * 4


def test_codecs_may_be_further_off_and_no_further(model):
    with ExitStack() as stack:
        prove(model, contenders(model, stack, ["kvit"], "int4", "int4"), PROMPTS, has_codecs=True)


def test_a_contender_that_computes_something_else_is_not_timed(model, monkeypatch):
    plain = kvit.transformers.layer.attention
    monkeypatch.setattr(kvit.transformers.layer, "attention", lambda *a, scale, **k: plain(*a, scale=40 * scale, **k))
    with ExitStack() as stack, pytest.raises(Mismatch, match="kvit: logits of token 0 are .* away from those of eager"):
        prove(model, contenders(model, stack, ["kvit"]), PROMPTS, has_codecs=False)


def test_a_contender_whose_memory_does_not_suffice_leaves_the_others_to_go_on(model, tmp_path, monkeypatch):
    with ExitStack() as stack:
        found = contenders(model, stack, ["kvit", "eager"])

        asked = []

        def seconds(prompts, new_tokens):
            asked.append(new_tokens)
            raise torch.OutOfMemoryError

        monkeypatch.setattr(found[1], "seconds", seconds)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        results = generation.time_cell(found, PROMPTS, 2, 1)
    assert asked == [1]  # and never again
    assert results[0].tokens_per_s > 0 and (results[1].prompt_s, results[1].tokens_per_s) == (None, None)
    assert generation.table(results).splitlines()[2].split() == ["2", "20", "eager:", "out", "of", "memory", *"----"]


def test_tokens_per_second_are_those_of_all_sequences():
    assert Result(batch=8, context=5, contender="kvit", prompt_s=1.0, step_s=0.25).tokens_per_s == 32
    slow = Result(batch=8, context=5, contender="eager", prompt_s=1.0, step_s=0.5)
    lines = generation.table([Result(8, 5, "kvit", 1.0, 0.25), slow]).splitlines()
    assert lines[0].split()[-2:] == ["of", "kvit's"] and lines[2].split()[-2:] == ["16.0", "0.50"]


def test_a_machine_without_a_gpu_runs_a_tiny_model_and_says_so(tmp_path, capsys):
    command = [
        "--device",
        "host",
        "--batches",
        "1",
        "2",
        "--contexts",
        "9",
        "--new-tokens",
        "2",
        "--contenders",
        "kvit",
    ]
    assert generation.main([*command, "eager", "--json", str(tmp_path / "found.json")]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "the host backend (no GPU: a tiny model, whose times say nothing about speed)" in said
    cells = [(cell["batch"], cell["context"], cell["contender"]) for cell in found["cells"]]
    assert cells == [(1, 9, "kvit"), (1, 9, "eager"), (2, 9, "kvit"), (2, 9, "eager")]
    assert all(cell["tokens_per_s"] == pytest.approx(cell["batch"] / cell["step_s"]) for cell in found["cells"])
    assert found["model"]["layers"] == 2 and "tokens/s" in said


def test_a_picture_has_a_panel_for_each_batch(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    results = [Result(b, c, name, 0.1, 0.01) for b in (1, 8) for c in (100, 1000) for name in ("kvit", "eager")]
    generation.plot(tmp_path / "found.svg", results, "a card")
    picture = (tmp_path / "found.svg").read_text()
    assert all(f"<!-- {words} -->" in picture for words in ("batch of 1", "batch of 8", "eager", "tokens/s", "a card"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "0"], "0 is no number of any; give at least 1"),
        (["--contenders", "flash"], "invalid choice: 'flash'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        generation.main(arguments)
    assert message in capsys.readouterr().err


def test_errors_of_kvit_are_said_in_a_line(capsys):
    assert generation.main(["--device", "host", "--k", "int3", "--contenders", "kvit"]) == 1
    assert "generation: " in (said := capsys.readouterr().err) and "int3" in said
