"""The model of examples/tinylm a second time, from its formulas alone: float64, loops, complex numbers, no cache.

Shares no code with examples/tinylm/model.py, so that a slip in a reshape, a slice or a sign there shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from model import Config


def logits(config: Config, weights: Mapping[str, np.ndarray], tokens: Sequence[int]) -> np.ndarray:
    """[tokens, vocab] of the whole text at once."""
    w = {name.removesuffix(".weight"): tensor.astype(np.float64) for name, tensor in weights.items()}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return w[name] * x / (x @ x / len(x) + config.norm_eps) ** 0.5

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        half = config.head_dim // 2
        pairs = [
            complex(x[i], x[i + half]) * np.exp(1j * position * config.rope_base ** (-i / half)) for i in range(half)
        ]
        return np.array([pair.real for pair in pairs] + [pair.imag for pair in pairs])

    stream = [w["embedding"][token] for token in tokens]
    for layer in range(config.layers):
        name, size = f"layers.{layer}", config.head_dim
        q, k, v = {}, {}, {}
        for position, x in enumerate(stream):
            heads = iter((w[f"{name}.qkv"] @ norm(f"{name}.attention_norm", x)).reshape(-1, size))
            q |= {(position, head): turn(next(heads), position) for head in range(config.query_heads)}
            k |= {(position, head): turn(next(heads), position) for head in range(config.kv_heads)}
            v |= {(position, head): next(heads) for head in range(config.kv_heads)}
        for position in range(len(stream)):
            out = []
            for head in range(config.query_heads):
                shared = head // (config.query_heads // config.kv_heads)
                past = range(position + 1)
                weight = np.exp([q[position, head] @ k[earlier, shared] / size**0.5 for earlier in past])
                out.append(sum(weight[earlier] * v[earlier, shared] for earlier in past) / weight.sum())
            x = stream[position] + w[f"{name}.attention_out"] @ np.concatenate(out)
            both = w[f"{name}.gate_up"] @ norm(f"{name}.ffn_norm", x)
            gate, up = both[: config.ffn_width], both[config.ffn_width :]
            stream[position] = x + w[f"{name}.down"] @ (gate / (1 + np.exp(-gate)) * up)
    return np.array([w["embedding"] @ norm("norm", x) for x in stream])
