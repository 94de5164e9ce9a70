"""Questions and answers in turns: what was said stays in the engine's pages, and each turn reads only what is new."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from paged import HostEngine
from sampling import Choose, continued
from tokens import Stream, Tokenizer

import kvit


class Conversation:
    """Turns of a user and a model.

    longest  tokens of an answer
    choose   picks a token from logits [vocab]
    system   what the model is told to be; the chat template's own words if absent
    """

    def __init__(
        self, tokenizer: Tokenizer, engine: HostEngine, longest: int, choose: Choose, system: str | None = None
    ):
        self._tokenizer, self._engine = tokenizer, engine
        self._longest, self._choose = longest, choose
        self._messages = [{"role": "system", "content": system}] if system else []
        self._turns = len(self._messages)  # where they begin
        self._read = ""  # the text of what the engine has read, and of `pending`
        self._pending: list[int] = []  # the last token of an answer that was cut off: said, and not read
        self.read_tokens = self.said_tokens = 0
        self.read_seconds = self.said_seconds = 0.0

    def ask(self, question: str, show: Callable[[str], None]) -> str:
        """Answer, and hand the text to `show` piece by piece. Ctrl-C ends the answer, not the conversation.

        Where the pages are full, the oldest turns are forgotten.
        Raises kvit.CacheFull: the question alone is too long for the pages; it is not part of the conversation then.
        """
        self._messages.append({"role": "user", "content": question})
        begin = time.perf_counter()
        try:
            text, prompt, first = self._first_logits()
        except BaseException:
            del self._messages[-1]
            raise
        self.read_tokens, self.read_seconds = self.read_tokens + len(prompt), self.read_seconds + _since(begin)
        answer, said, is_over, stream, begin = [], "", False, Stream(self._tokenizer), time.perf_counter()

        def score(tokens: np.ndarray) -> np.ndarray:
            return self._engine.score(tokens) if answer else first

        try:
            for token in continued(score, prompt, self._longest, self._choose, self._tokenizer.end):
                answer.append(token)
                piece = stream.text(token)
                said += piece
                show(piece)
            is_over = len(answer) < self._longest
        except (KeyboardInterrupt, kvit.CacheFull):
            pass  # cut off, as by its length
        rest = stream.rest()
        show(rest)
        said += rest
        self.said_tokens, self.said_seconds = self.said_tokens + len(answer), self.said_seconds + _since(begin)
        self._messages.append({"role": "assistant", "content": said})
        self._read, self._pending = text + said, [] if is_over else answer[-1:]
        return said

    def _first_logits(self) -> tuple[str, np.ndarray, np.ndarray]:
        """Let the engine read what it has not. Returns the text up to the answer, the tokens read, and logits."""
        while True:
            text = self._tokenizer.conversation(self._messages)
            if not text.startswith(self._read):  # turns were forgotten, or the template rewrites what was said
                self._engine.forget()
                self._read, self._pending = "", []
            new = self._tokenizer.encode(text[len(self._read) :], control=True)
            prompt = np.concatenate([np.array(self._pending, np.int64), new])
            try:
                return text, prompt, self._engine.score(prompt)
            except kvit.CacheFull:
                if len(self._messages) <= self._turns + 2:
                    raise
                del self._messages[self._turns : self._turns + 2]

    def summary(self) -> str:
        """How fast it was, and what it took, as a sentence."""
        return (
            f"{self.read_tokens} tokens read in {self.read_seconds:.1f} s, {self.said_tokens} written in "
            f"{self.said_seconds:.1f} s on {self._engine.device}: "
            f"{self.said_tokens / max(self.said_seconds, 1e-9):.1f} tokens/s"
        )


def _since(begin: float) -> float:
    return time.perf_counter() - begin
