"""examples/llm/chat.py: the command, with a small model of random weights."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kvit

for _library in ("gguf", "jinja2", "tiktoken", "tqdm"):
    pytest.importorskip(_library, reason=f"needs {_library}, of pip install '.[llm]'")

import chat  # noqa: E402
import small_gguf  # noqa: E402

CHAT = Path(chat.__file__)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    tensors = small_gguf.random_weights(np.random.default_rng(2))
    return small_gguf.write(tmp_path_factory.mktemp("llm") / "small.gguf", tensors)


def test_the_command_answers_and_says_how_fast(small):
    # The same kvit as here, and an encoding of the surroundings that must not matter.
    env = {**os.environ, "PYTHONPATH": str(Path(kvit.__file__).parents[1]), "PYTHONIOENCODING": "ascii"}
    command = [
        sys.executable,
        CHAT,
        "--device",
        "host",
        "--kv",
        "int8:int4",
        "--tokens",
        "3",
        "--context",
        "24",
        "hello",
    ]
    command += ["--model", small]
    done = subprocess.run(command, capture_output=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip()
    said = done.stderr.decode()
    assert re.search(r"small on host, K and V of 64 tokens in [\d,]+ bytes: K in int8 and V in int4", said)
    assert re.search(r"3 tokens read in [\d.]+ s, \d written in [\d.]+ s on host: [\d.]+ tokens/s", said)


def test_lines_are_questions_up_to_an_empty_one(small, monkeypatch, capsys):
    asked: list[str] = []

    def ask(self, question: str, show) -> str:
        asked.append(question)
        show(question.upper())
        return question.upper()

    monkeypatch.setattr(chat.Conversation, "ask", ask)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n two \n\nthree\n"))
    assert chat.main(["--model", str(small), "--device", "host", "--context", "20"]) == 0
    assert asked == ["one", "two"] and capsys.readouterr().out == "ONE\nTWO\n"


def test_auto_takes_the_host_where_there_is_no_gpu_and_a_name_is_meant(small, monkeypatch):
    def without_gpu(device: str) -> None:
        raise kvit.NoGpuError("no GPU was found")

    model = chat.load(small)
    monkeypatch.setattr(chat.kvit, "Device", type("Device", (), {"of": staticmethod(without_gpu)}))
    assert chat.open_engine(model, 20, "auto", None, None).device == "host"
    monkeypatch.setitem(sys.modules, "gpu", None)  # as where CuPy is not installed
    with pytest.raises(ImportError, match="pip install cupy-cuda13x, or say --device host"):
        chat.open_engine(model, 20, "cuda:0", None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], "the question is empty; leave it out"),
        (["Why?", "--device", "tpu"], "--device tpu is unknown; say auto, host or cuda:0"),
        (["Why?", "--kv", "int8", "--v", "int4"], "--kv says what --k and --v say"),
        (["Why?", "--tokens", "0"], "--tokens 0 leaves no room; give at least 1"),
        (["Why?", "--temperature", "nan"], "--temperature nan is no temperature"),
        (["Why?", "--seed", "-1"], "--seed -1 is negative"),
        (["Why?", "--model", "nowhere.gguf"], "no model at nowhere.gguf"),
        (["Why?", "--device", "host"], "--context 2048 is more than small was made for: 200"),
        (["Why?", "--device", "host", "--context", "9", "--kv", "int4:int8"], "i4_i8"),
        (["Why?" * 20, "--device", "host", "--context", "10"], "81 tokens do not fit in pages of 64"),
    ],
)
def test_bad_arguments_are_named(small, arguments, message, capsys):
    try:
        status = chat.main(["--model", str(small), *arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    said = capsys.readouterr()
    assert status in (1, 2) and not said.out
    assert re.search(message, said.err)
