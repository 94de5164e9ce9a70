"""examples/transformers_llama: trained weights through transformers and kvit say what the numpy model says."""

import importlib.util

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import generate
from backends import ReferenceAttention
from model import load

from support import ROOT

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples" / "transformers_llama" / "tinylm_llama.py"
    spec = importlib.util.spec_from_file_location("tinylm_llama", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_prompts_side_by_side_are_continued_as_by_the_numpy_model(example):
    model, _ = load(example.WEIGHTS)
    prompts = [b"\ndef read_", b"\nclass Parser"]  # of different lengths: one is padded
    want = [
        bytes(generate.generate(model, ReferenceAttention(model.config), prompt, 16, generate.greedy))
        for prompt in prompts
    ]
    assert example.generate(example.load("cpu"), prompts, 16, None, None) == want


def test_the_command_prints_texts_and_what_the_cache_takes(example, capsys):
    assert example.main(["def f", "import", "--tokens", "5", "--kv", "int8:int4"]) == 0
    out, err = capsys.readouterr()
    first, second = out.split("\n\n")[:2]
    assert first.startswith("def f") and second.startswith("import")
    # Two sequences of a page of 16 tokens, 5 layers, 2 heads; int8 rows of 64 take 68 bytes, int4 rows 36.
    assert f"{2 * 16 * 5 * 2 * (68 + 36):,} bytes: K in int8 and V in int4" in err


def test_a_pair_that_is_not_built_is_an_error_message(example, capsys):
    assert example.main(["x", "--tokens", "1", "--kv", "int4:int8"]) == 1
    assert "error: " in capsys.readouterr().err
