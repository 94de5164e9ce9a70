"""What smooths the keys of a model: means and widths of the channels of every layer, measured on a text."""

from __future__ import annotations

import numpy as np
from model import Attend, Decoder
from scoring import causal_attention
from tqdm import tqdm

import kvit


def measured(model: Decoder, windows: np.ndarray) -> list[kvit.KeySmoothing]:
    """Of each layer, over windows [windows, tokens] of text; in the layers' order."""
    seen: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(model.config.layers)]
    for window in tqdm(windows, desc="measuring keys", unit="pass", disable=None, leave=False):
        model.hidden(window, 0, _watching(seen))
    return [kvit.KeySmoothing.measure(*(np.concatenate(rows) for rows in zip(*layer, strict=True))) for layer in seen]


def _watching(seen: list[list[tuple[np.ndarray, np.ndarray]]]) -> Attend:
    def attend(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        seen[layer].append((k, q))
        return causal_attention(q, k, v)

    return attend
