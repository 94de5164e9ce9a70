"""From scores to text: how the next token is chosen, and how a text goes on, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Choose = Callable[[np.ndarray], int]
"""Picks a token from logits [vocab]."""


def continued(
    score: Callable[[np.ndarray], np.ndarray], prompt: np.ndarray, count: int, choose: Choose, end: int
) -> Iterator[int]:
    """Yield up to count tokens that follow the prompt, each as soon as it is known; fewer where `end` is chosen.

    score    takes the next tokens [tokens] of the text and returns logits [vocab] of what follows them. It is given the
             prompt, and then all that was yielded, but the last token
    """
    tokens = prompt
    for _ in range(count):
        token = choose(score(tokens))
        if token == end:
            return
        yield token
        tokens = np.array([token])


def greedy(logits: np.ndarray) -> int:
    """The most likely token; the lowest of equals."""
    return int(np.argmax(logits))


class Sampler:
    """Draws a token with probability softmax(logits / temperature). The same seed draws the same tokens."""

    def __init__(self, temperature: float, seed: int):
        self._temperature = temperature
        self._rng = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        scaled = logits.astype(np.float64) / self._temperature
        cumulative = np.cumsum(np.exp(scaled - scaled.max()))
        # random() is below 1, so the place found is below the last one.
        return int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
