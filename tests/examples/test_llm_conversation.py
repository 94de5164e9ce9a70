"""examples/llm/conversation.py: what the engine reads in each turn. Tokenizer and engine are easy to follow."""

from __future__ import annotations

import numpy as np
import pytest

import kvit

for _library in ("jinja2", "tiktoken"):
    pytest.importorskip(_library, reason=f"needs {_library}, of pip install '.[llm]'")

from conversation import Conversation  # noqa: E402
from sampling import greedy  # noqa: E402


def conversations(tokenizer, engine, longest: int, **options) -> Conversation:
    return Conversation(tokenizer, engine, longest, greedy, **options)


class Bytes:
    """A byte is a token; 0 ends an answer. A conversation is its messages, each with the letter of its role."""

    end = 0

    def encode(self, text: str, control: bool = False) -> np.ndarray:
        return np.frombuffer(text.replace("$", "\0").encode(), np.uint8).astype(np.int64)

    def bytes_of(self, token: int) -> bytes:
        return bytes([token])

    def conversation(self, messages, answer=True) -> str:
        return "".join(f"{message['role'][0]}:{message['content']}$" for message in messages) + "a:" * answer


class Echo:
    """Answers what the script says, byte by byte, and remembers all that it read."""

    device = "nowhere"

    def __init__(self, script: bytes, capacity: int = 1000):
        self.script, self.capacity, self.memory, self.calls = list(script), capacity, [], []

    def score(self, tokens: np.ndarray) -> np.ndarray:
        if len(self.memory) + len(tokens) > self.capacity:
            raise kvit.CacheFull("full")
        self.memory += tokens.tolist()
        self.calls.append(len(tokens))
        logits = np.zeros(256)
        logits[self.script.pop(0)] = 1
        return logits

    def forget(self, length: int = 0) -> None:
        del self.memory[length:]

    def text(self) -> str:
        return bytes(self.memory).replace(b"\0", b"$").decode()


def test_each_turn_reads_only_what_is_new_and_all_is_there():
    engine, shown = Echo(b"Hi.\0Yes.\0"), []
    talk = conversations(Bytes(), engine, 20)
    assert talk.ask("Hello", shown.append) == "Hi." == "".join(shown)
    assert engine.text() == "u:Hello$a:Hi."
    assert talk.ask("Sure?", shown.append) == "Yes."
    assert engine.text() == "u:Hello$a:Hi.$u:Sure?$a:Yes."
    assert engine.calls == [10, 1, 1, 1, 11, 1, 1, 1, 1]
    assert (talk.read_tokens, talk.said_tokens) == (21, 7)
    assert "21 tokens read" in talk.summary() and "7 written" in talk.summary()


def test_an_answer_that_was_cut_off_is_read_to_its_end_later():
    engine = Echo(b"abcdef\0")
    talk = conversations(Bytes(), engine, 3)
    assert talk.ask("1", str) == "abc"
    assert engine.text() == "u:1$a:ab"  # nobody asked yet what follows c
    assert talk.ask("2", str) == "def"
    assert engine.text() == "u:1$a:abc$u:2$a:de"


def test_ctrl_c_ends_the_answer_and_not_the_conversation():
    def show(piece: str) -> None:
        if piece == "b":
            raise KeyboardInterrupt

    engine = Echo(b"abx\0")
    talk = conversations(Bytes(), engine, 9)
    assert talk.ask("1", show) == "ab"
    assert talk.ask("2", str) == "x"
    assert engine.text() == "u:1$a:ab$u:2$a:x"


def test_a_character_of_several_tokens_appears_whole():
    shown: list[str] = []
    assert conversations(Bytes(), Echo("é…".encode() + b"\xc3\0"), 20).ask("?", shown.append) == "é…\ufffd"
    assert [piece for piece in shown if piece] == ["é", "…", "\ufffd"]


def test_a_system_message_comes_first():
    engine = Echo(b"\0")
    assert conversations(Bytes(), engine, 5, system="Be brief").ask("1", str) == ""
    assert engine.text() == "s:Be brief$u:1$a:"


def test_full_pages_forget_the_oldest_turns():
    engine = Echo(b"aaaa\0bbbb\0cc\0", capacity=26)
    talk = conversations(Bytes(), engine, 9, system="S")
    talk.ask("1111", str)
    assert talk.ask("2222", str) == "bbbb"  # s:S$ u:1111$ a:aaaa$ u:2222$ a:bbbb would be 32
    assert engine.text() == "s:S$u:2222$a:bbbb"
    assert talk.ask("3", str) == "cc" and engine.text() == "s:S$u:2222$a:bbbb$u:3$a:cc"


def test_an_answer_ends_where_the_pages_do():
    engine = Echo(b"abcdefghi", capacity=10)
    talk = conversations(Bytes(), engine, 20)
    assert talk.ask("1", str) == "abcde"  # u:1$a: and 4 tokens fill them; e is said and not read
    assert talk.ask("22", str) == "fghi"  # the first turn had to go
    assert engine.text() == "u:22$a:fgh"


def test_a_question_that_never_fits_is_no_part_of_the_conversation():
    engine = Echo(b"x\0", capacity=10)
    talk = conversations(Bytes(), engine, 5)
    with pytest.raises(kvit.CacheFull):
        talk.ask("much too long", str)
    assert talk.ask("1", str) == "x" and engine.text() == "u:1$a:x"
