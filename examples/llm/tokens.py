"""Text to tokens and back, and conversations to text, by the vocabulary and the template of a GGUF file."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tiktoken
from jinja2.sandbox import ImmutableSandboxedEnvironment
from weights import WeightsError

# How text is cut before pairs of bytes merge, by the name that GGUF files give it. Runs of blanks in front of a digit
# stay whole, since digits are cut out first, one by one; otherwise the last blank of a run goes with what follows.
CUTS = {
    "smollm": r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+",
}
CONTROL = 3  # the type of tokens that stand for no text


class Tokenizer:
    """The vocabulary of a model, by byte pairs, and its chat template.

    facts   the file's metadata

    Raises WeightsError: a vocabulary of another kind, or one that tiktoken cannot express.
    """

    def __init__(self, facts: Mapping[str, Any]):
        kind, cut = facts["tokenizer.ggml.model"], facts.get("tokenizer.ggml.pre")
        if kind != "gpt2" or cut not in CUTS:
            raise WeightsError(
                f"the vocabulary is of kind {kind}, cut as {cut}; known is gpt2, cut as {', '.join(CUTS)}"
            )
        texts, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
        control = {text: i for i, (text, type) in enumerate(zip(texts, types, strict=True)) if type == CONTROL}
        bytes_of = byte_letters()
        ranks = {bytes(bytes_of[c] for c in text): i for i, text in enumerate(texts) if text not in control}
        made = [ranks[bytes(bytes_of[c] for c in merge.replace(" ", ""))] for merge in facts["tokenizer.ggml.merges"]]
        if made != sorted(set(made)):
            raise WeightsError("the vocabulary does not number its merges in their order, by which tiktoken knows them")
        # Bytes that training never met have no token. They get numbers behind the last one, and become unknown.
        for byte in range(256):
            ranks.setdefault(bytes([byte]), len(ranks) + len(control))
        self.size = len(texts)
        self.end: int = facts["tokenizer.ggml.eos_token_id"]
        self._unknown: int = facts.get("tokenizer.ggml.unknown_token_id", self.end)
        self._coder = tiktoken.Encoding("gguf", pat_str=CUTS[cut], mergeable_ranks=ranks, special_tokens=control)
        self._names = {"bos_token": texts[facts["tokenizer.ggml.bos_token_id"]], "eos_token": texts[self.end]}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(facts["tokenizer.chat_template"])

    def encode(self, text: str, control: bool = False) -> np.ndarray:
        """The tokens of a text, int64. control: names of control tokens, such as <|im_end|>, become those tokens."""
        tokens = np.array(self._coder.encode(text, allowed_special="all" if control else set(), disallowed_special=()))
        tokens = tokens.astype(np.int64)
        return np.where(tokens < self.size, tokens, self._unknown)

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for: a part of a text in UTF-8, or a control token's name."""
        return self._coder.decode_single_token_bytes(token)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are no character show as U+FFFD."""
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def conversation(self, messages: Sequence[Mapping[str, str]], answer: bool = True) -> str:
        """Messages {"role", "content"} as the model was trained to read them, with the beginning of an answer."""
        return self._template.render(messages=messages, add_generation_prompt=answer, **self._names)


class Stream:
    """Text out of tokens that come one by one: a character of several tokens appears with its last one."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def text(self, token: int) -> str:
        """What this token completes."""
        return self._decoder.decode(self._tokenizer.bytes_of(token))

    def rest(self) -> str:
        """What was left open: a character that broke off, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def byte_letters() -> dict[str, int]:
    """Which byte each letter of a vocabulary of kind gpt2 stands for.

    Printable bytes of Latin-1 stand for themselves; the others follow behind U+0100, in their order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
