"""A language model in numpy: everything but attention, which the caller hands in (see backends.py).

A decoder in the manner of Llama: RMSNorm before each half of a block, rotary positions, grouped-query attention,
SwiGLU, and one embedding table for input and output. It computes in float32; tinylm's file holds float16. examples/llm
runs a larger model of the same form by the same class.

    tokens -> embedding -> layers x [ + attention(norm), + ffn(norm) ] -> norm -> embedding^T -> logits
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import weights
from weights import WeightsError

# attend(layer, q, k, v) -> out: stores k and v [tokens, kv_heads, head_dim] as this layer's newest tokens, then attends
# q [tokens, query_heads, head_dim] causally to all that the layer has stored. All float32; out is like q.
Attend = Callable[[int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# Files were joined by this byte in training; no Python source holds it. Generated, it means "the file ends here".
END_OF_FILE = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model. The defaults are the committed weights: 3.75 M parameters, 7.5 MB in float16."""

    vocab: int = 256
    width: int = 256  # of the residual stream
    layers: int = 5
    query_heads: int = 4
    kv_heads: int = 2  # each serves a group of query_heads / kv_heads
    head_dim: int = 64
    ffn_width: int = 704
    context: int = 512  # tokens; rotary angles beyond it were never trained
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Rows of the fused projection that make q, k and v, in this order."""
        return self.query_heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the weights file. A projection is [outputs, inputs], as in torch.nn.Linear."""
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab, self.width)}
        for layer in range(self.layers):
            shapes |= {
                f"layers.{layer}.attention_norm.weight": (self.width,),
                f"layers.{layer}.qkv.weight": (sum(self.qkv_sizes), self.width),
                f"layers.{layer}.attention_out.weight": (self.width, self.query_heads * self.head_dim),
                f"layers.{layer}.ffn_norm.weight": (self.width,),
                f"layers.{layer}.gate_up.weight": (2 * self.ffn_width, self.width),  # gate rows, then up rows
                f"layers.{layer}.down.weight": (self.width, self.ffn_width),
            }
        return shapes | {"norm.weight": (self.width,)}


class Decoder:
    """The model, ready to run.

    config    Config
    tensors   named and shaped as config.shapes() says; any float dtype, widened to float32 here. Arrays of numpy, or of
              CuPy, which numpy's functions call by themselves
    """

    def __init__(self, config: Config, tensors: Mapping[str, np.ndarray]):
        wanted, found = config.shapes(), {name: tensor.shape for name, tensor in tensors.items()}
        if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
            name = wrong[0]
            raise WeightsError(
                f"tensor {name} is {found.get(name, 'missing')}; the config wants {wanted.get(name, 'no such tensor')}"
            )
        self.config = config
        self.weights = {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}
        # Angle of channel pair i at position p is p * base^(-i / (head_dim / 2)).
        half = config.head_dim // 2
        frequencies = config.rope_base ** (-np.arange(half) / half)
        angles = np.arange(config.context)[:, None] * frequencies
        self._cos, self._sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def forward(self, tokens: np.ndarray, position: int | None, attend: Attend) -> np.ndarray:
        """Run new tokens through the model.

        tokens     [tokens] integers below vocab
        position   of tokens[0] in the text: how many tokens attend has stored before. None: attend knows it, and turns
                   q and k itself
        attend     where K and V live; called once per layer, in order

        Returns logits [tokens, vocab], float32: row i scores what follows tokens[i].
        Raises ValueError where the text would outgrow the context.
        """
        return self.logits(self.hidden(tokens, position, attend))

    def hidden(self, tokens: np.ndarray, position: int | None, attend: Attend) -> np.ndarray:
        """The residual stream [tokens, width] behind the last layer; the rest is as forward says."""
        x = self.weights["embedding.weight"][tokens]
        angles = None if position is None else self._angles(position, position + len(tokens))
        for layer in range(self.config.layers):
            x = x + self._attention(layer, x, angles, attend)
            x = x + self._ffn(layer, x)
        return x

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """The scores [tokens, vocab] that rows of the residual stream give to each next token."""
        return self.project(self._norm("norm", hidden), "embedding.weight")

    def project(self, x: np.ndarray, name: str) -> np.ndarray:
        """x [tokens, inputs] through the weights [outputs, inputs] of that name."""
        return x @ self.weights[name].T

    def _angles(self, position: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        if end > self.config.context:
            raise ValueError(f"token {end} is past the model's context of {self.config.context} tokens")
        return self._cos[position:end, None], self._sin[position:end, None]

    def _attention(
        self, layer: int, x: np.ndarray, angles: tuple[np.ndarray, np.ndarray] | None, attend: Attend
    ) -> np.ndarray:
        qkv = self.project(self._norm(f"layers.{layer}.attention_norm", x), f"layers.{layer}.qkv.weight")
        q_size, k_size, _ = self.config.qkv_sizes
        q, k, v = (
            part.reshape(len(x), -1, self.config.head_dim) for part in np.split(qkv, [q_size, q_size + k_size], axis=1)
        )
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        return self.project(attend(layer, q, k, v).reshape(len(x), -1), f"layers.{layer}.attention_out.weight")

    def _ffn(self, layer: int, x: np.ndarray) -> np.ndarray:
        gate_up = self.project(self._norm(f"layers.{layer}.ffn_norm", x), f"layers.{layer}.gate_up.weight")
        gate, up = np.split(gate_up, 2, axis=1)
        # silu(gate) is gate * sigmoid(gate); sigmoid by tanh, which cannot overflow as exp(-gate) can.
        return self.project(gate * (0.5 + 0.5 * np.tanh(0.5 * gate)) * up, f"layers.{layer}.down.weight")

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return (
            x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + self.config.norm_eps) * self.weights[f"{name}.weight"]
        )


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary positions (Su et al., RoFormer, 2021), half-split: channel i turns with channel i + head_dim / 2.

    x          [tokens, heads, head_dim]
    cos, sin   [tokens, 1, head_dim / 2] of each token's angles
    """
    first, second = np.split(x, 2, axis=2)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)


def save(path: Path, config: Config, tensors: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Write weights, config and facts about the training into one file, for load."""
    weights.write(path, tensors, {"config": json.dumps(dataclasses.asdict(config)), **facts})


def load(path: Path) -> tuple[Decoder, dict[str, str]]:
    """Read what save wrote: the model, and the facts about its training.

    Raises WeightsError: no such file, not a safetensors file, or none that save wrote.
    """
    tensors, facts = weights.read(path)
    if "config" not in facts:
        raise WeightsError(f"{path} has no config in its metadata; make one that has: python train.py --out {path}")
    return Decoder(Config(**json.loads(facts.pop("config"))), tensors), facts
