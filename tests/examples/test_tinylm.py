"""examples/tinylm: text generated through kvit's paged cache."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import generate
import numpy as np
import pytest
from backends import PAGE_SIZE, PagedAttention, ReferenceAttention
from model import END_OF_FILE, Config, Decoder, load

import kvit

TINYLM = Path(generate.__file__).parent
PROMPT = b"\ndef read_"


@pytest.fixture(scope="module")
def trained() -> Decoder:
    return load(TINYLM / "model.safetensors")[0]


@pytest.fixture(scope="module")
def small() -> Decoder:
    """One layer of random weights, where running the trained ones would add time and no reason."""
    config, rng = Config(width=64, layers=1, ffn_width=64, context=64), np.random.default_rng(3)
    weights = {name: rng.normal(size=shape) / np.sqrt(shape[-1]) for name, shape in config.shapes().items()}
    return Decoder(config, weights)


def greedy_text(model: Decoder, attend, count: int, prompt: bytes = PROMPT) -> bytes:
    return bytes(generate.generate(model, attend, prompt, count, generate.greedy))


def test_greedy_text_is_that_of_reference_attention(trained, device):
    count = 3 * PAGE_SIZE  # fills pages, and starts new ones at different layers of the same step
    paged = greedy_text(trained, PagedAttention(trained.config, len(PROMPT) + count, device), count)
    assert paged == greedy_text(trained, ReferenceAttention(trained.config), count)
    assert len(paged) == count


def test_a_prompt_in_one_call_scores_as_it_does_byte_by_byte(trained, device):
    # More than a page, so that one append crosses into the next, and early tokens must not see late ones.
    prompt = np.frombuffer(b"\nimport os\nimport sys\n", np.uint8)
    whole = trained.forward(prompt, 0, PagedAttention(trained.config, len(prompt), device))
    attend = PagedAttention(trained.config, len(prompt), device)
    single = np.concatenate([trained.forward(prompt[i : i + 1], i, attend) for i in range(len(prompt))])
    # float16 keeps 11 bits; a logit, of order 10, gathers such roundings of q, k, v and the outputs over the layers.
    np.testing.assert_allclose(single, whole, rtol=0, atol=10 * 2**-8)
    assert (single.argmax(axis=1) == whole.argmax(axis=1)).all()


def test_pages_beyond_the_capacity_are_refused(small):
    attend = PagedAttention(small.config, PAGE_SIZE, "host")
    small.forward(np.zeros(PAGE_SIZE, int), 0, attend)
    with pytest.raises(kvit.CacheFull):
        small.forward(np.zeros(1, int), PAGE_SIZE, attend)


def test_memory_counts_whole_pages(small):
    attend = PagedAttention(small.config, 3 * PAGE_SIZE, "host")
    small.forward(np.zeros(PAGE_SIZE + 1, int), 0, attend)
    # 2 pages x 16 tokens x (K and V) x 2 heads x 64 channels x 2 bytes
    assert attend.memory() == "17 tokens of K and V in 1 layers x 2 pages of 16 tokens: 16,384 bytes"


def test_auto_takes_the_host_where_there_is_no_gpu(small, monkeypatch):
    def without_gpu(config: Config, capacity: int, device: str, *stored: str | None) -> PagedAttention:
        if device != "host":
            raise kvit.NoGpuError("no GPU was found")
        return PagedAttention(config, capacity, device, *stored)

    monkeypatch.setattr(generate, "PagedAttention", without_gpu)
    assert generate.open_attention(small.config, PAGE_SIZE, "auto", None).device == "host"
    with pytest.raises(kvit.NoGpuError):  # asked for by name, another device would be a surprise
        generate.open_attention(small.config, PAGE_SIZE, "cuda:0", None)


def test_generation_ends_with_the_file(small):
    bytes_to_choose = iter([ord("a"), ord("b"), END_OF_FILE, ord("c")])
    made = generate.generate(small, ReferenceAttention(small.config), PROMPT, 10, lambda logits: next(bytes_to_choose))
    assert bytes(made) == b"ab"


def test_bytes_are_drawn_by_their_probability():
    sampler, count = generate.Sampler(0.5, seed=1), 4000
    logits = np.log([0.5, 0.0625, 0.25])  # at temperature 1/2 probabilities are squared: 64 : 1 : 16, of 81
    drawn = np.bincount([sampler(logits) for _ in range(count)], minlength=3)
    share = np.array([64, 1, 16]) / 81
    deviation = np.sqrt(count * share * (1 - share))
    assert (abs(drawn - count * share) < 5 * deviation).all()


def test_a_seed_fixes_the_text(small):
    def text(seed: int) -> bytes:
        choose = generate.Sampler(1.0, seed)
        return bytes(generate.generate(small, ReferenceAttention(small.config), PROMPT, 20, choose))

    assert text(5) == text(5) != text(6)


@pytest.mark.parametrize("backend", [["--device", "host"], ["--reference"]], ids=["host", "reference"])
def test_the_script_prints_text_and_a_summary(backend):
    command = [sys.executable, TINYLM / "generate.py", "def read_", "--tokens", "4", "--greedy", *backend]
    # The same kvit as here, and an encoding of the surroundings that must not matter: the model may say any byte.
    env = {**os.environ, "PYTHONPATH": str(Path(kvit.__file__).parents[1]), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert re.fullmatch(r"def read_.{4}\n", done.stdout.decode(), re.DOTALL)
    summary = done.stderr.decode()
    assert re.search(r"4 tokens in [\d.]+ s on (host|kvit.reference): [\d.]+ tokens/s", summary)
    assert re.search(r"13 tokens of K and V in 5 layers.*: [\d,]+ bytes", summary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the prompt is empty; give at least one character"),
        (["def", "--tokens", "0"], "--tokens 0 generates nothing; ask for at least 1"),
        (["def", "--device", "tpu"], "--device tpu is unknown; say auto, host or cuda:0"),
        (["def", "--device", "host", "--reference"], "leave out --device"),
        (["def", "--temperature", "-1"], "--temperature -1.0 is no temperature"),
        (["def", "--temperature", "nan"], "--temperature nan is no temperature"),
        (["def", "--seed", "-1"], "--seed -1 is negative"),
        (["def", "--tokens", "510"], r"3 bytes and --tokens 510 exceed .*\(512\); ask for at most 509 tokens"),
        (["d" * 600], "600 bytes and --tokens 200 exceed .*shorten the prompt by 89 or more"),
        (["def", "--weights", "nowhere.safetensors"], "no weights at nowhere.safetensors; .*train.py --out"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    try:
        status = generate.main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    said = capsys.readouterr()
    assert status in (1, 2) and not said.out
    assert re.search(message, said.err)


@pytest.mark.parametrize("kv", ["int8", "int4", "int8:int4", "float8_e4m3"])
def test_quantised_caches_write_text_in_fewer_bytes(kv, capsys):
    words = ["def read_", "--tokens", "30", "--greedy", "--device", "host"]
    assert generate.main([*words, "--kv", kv]) == 0
    said = capsys.readouterr()
    assert generate.main(words) == 0
    plain = capsys.readouterr()
    assert len(said.out) == len(plain.out) and said.out.startswith("def read_")
    # 8 bits change the most likely byte too rarely to show in 30; fewer may, and evaluate.py says how much that costs.
    assert said.out == plain.out or kv != "int8"
    held, would = (int(re.findall(r"([0-9,]+) bytes", text.err)[-1].replace(",", "")) for text in (said, plain))
    assert held < 0.6 * would


def test_a_pair_that_was_not_built_is_named(capsys):
    assert generate.main(["def", "--device", "host", "--kv", "int4:int8"]) == 1
    assert "i4_i8" in capsys.readouterr().err
