"""Needles in haystacks: a number that is named once in a long text, and asked for at its end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from model import Attend, Decoder
from tokens import Tokenizer

SHORTEST = 128  # tokens of a text: what is around the needle, and more
SEED = 5  # of the numbers
THINGS = ("Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Quito", "Delhi", "Paris")


class Haystack(NamedTuple):
    """A question about a long text."""

    tokens: np.ndarray  # the text, the question, and the right answer at the end
    answer: int  # tokens of the answer

    def is_found(self, model: Decoder, attend: Attend) -> bool:
        """Whether the model, choosing the most likely token each time, gives the right answer.

        One pass tells: up to the first wrong token, it would have read what stands here.
        """
        hidden = model.hidden(self.tokens[:-1], 0, attend)
        choices = model.logits(hidden[-self.answer :]).argmax(axis=1)
        return bool((choices == self.tokens[-self.answer :]).all())


def hide(tokenizer: Tokenizer, text: str, count: int, length: int) -> list[Haystack]:
    """count haystacks of about `length` tokens out of the text, with needles from near their beginnings to near their
    ends.
    """
    rng, tokens = np.random.default_rng(SEED), tokenizer.encode(text)
    found = []
    for i in range(count):
        thing, number = THINGS[i % len(THINGS)], int(rng.integers(1000, 10000))
        needle = f"\n\nThe secret number of {thing} is {number}.\n\n"
        question = f"\n\nWhat is the secret number of {thing}?"
        answer = f"The secret number of {thing} is"
        hay = length - sum(len(tokenizer.encode(part)) for part in (needle, question, answer)) - 32
        begin = int(rng.integers(max(1, len(tokens) - hay)))
        cut = begin + int(hay * (i + 0.5) / count)
        before, after = tokenizer.decode(tokens[begin:cut]), tokenizer.decode(tokens[cut : begin + hay])
        asked = tokenizer.conversation([{"role": "user", "content": before + needle + after + question}]) + answer
        told = tokenizer.encode(f" {number}")
        found.append(Haystack(np.concatenate([tokenizer.encode(asked, control=True), told]), len(told)))
    return found
