"""A Llama out of a GGUF file: sizes, weights, vocabulary and chat template, all as the file says.

Quantised weights are widened to float32 once. Projections of q and k are brought from GGUF's order of channels, where
neighbours turn together, to that of model.py, where halves do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from model import Config
from tokens import Tokenizer
from weights import WeightsError

Step = Callable[[float, str], None]
"""Told how far the reading is, from 0 to 1, and what comes next."""


class Model(NamedTuple):
    """What a file holds."""

    name: str  # of the file
    config: Config
    tensors: dict[str, np.ndarray]  # float32, named as config.shapes() names them
    tokenizer: Tokenizer


def read(path: Path, step: Step = lambda fraction, label: None) -> Model:
    """Read the whole file.

    Raises WeightsError: no such file, no GGUF file, or a model that model.py does not compute.
    """
    if not path.is_file():
        raise WeightsError(f"no model at {path}; name a GGUF file, or leave --model out for SmolLM2-135M-Instruct")
    step(0.0, "reading the vocabulary")
    try:
        file = gguf.GGUFReader(path)
        facts = {name: field.contents() for name, field in file.fields.items()}
    except ValueError as error:
        raise WeightsError(f"{path} is not a GGUF file ({error})") from error
    config = _config(path, facts)
    tensors = _weights(path, {tensor.name: tensor for tensor in file.tensors}, config, step)
    return Model(path.stem, config, tensors, Tokenizer(facts))


def _config(path: Path, facts: dict[str, Any]) -> Config:
    """The sizes. What model.py would compute wrongly is refused."""
    architecture = facts.get("general.architecture")
    if architecture != "llama":
        raise WeightsError(f"{path} holds a model of architecture {architecture}; only llama is computed here")
    try:
        wanted = {name: facts[f"llama.{key}"] for name, key in _SIZES.items()}
        vocab = len(facts["tokenizer.ggml.tokens"])
    except KeyError as error:
        raise WeightsError(f"{path} has no {error.args[0]} in its metadata") from error
    head_dim = facts.get("llama.attention.key_length", wanted["width"] // wanted["query_heads"])
    turning = facts.get("llama.rope.dimension_count", head_dim)
    scaling = facts.get("llama.rope.scaling.type", "none")
    if turning != head_dim or scaling != "none":
        raise WeightsError(
            f"{path} turns {turning} of {head_dim} channels, with scaling {scaling}; only plain ropes of whole rows "
            "are computed here"
        )
    return Config(vocab=vocab, head_dim=head_dim, rope_base=facts.get("llama.rope.freq_base", 10000.0), **wanted)


_SIZES = {
    "width": "embedding_length",
    "layers": "block_count",
    "query_heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "ffn_width": "feed_forward_length",
    "context": "context_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
}


def _weights(path: Path, stored: dict[str, gguf.ReaderTensor], config: Config, step: Step) -> dict[str, np.ndarray]:
    """The tensors under model.py's names. Raises WeightsError where there are others, or some are missing."""
    left, total = dict(stored), len(stored)

    def take(name: str) -> np.ndarray:
        if name not in left:
            raise WeightsError(f"{path} has no tensor {name}")
        tensor = left.pop(name)
        step(1 - len(left) / total, name)
        return np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)

    found = {"embedding.weight": take("token_embd.weight"), "norm.weight": take("output_norm.weight")}
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"blk.{layer}"
        q, k = (halved(take(f"{theirs}.attn_{side}.weight"), config.head_dim) for side in "qk")
        found |= {
            f"{ours}.attention_norm.weight": take(f"{theirs}.attn_norm.weight"),
            f"{ours}.qkv.weight": np.concatenate([q, k, take(f"{theirs}.attn_v.weight")]),
            f"{ours}.attention_out.weight": take(f"{theirs}.attn_output.weight"),
            f"{ours}.ffn_norm.weight": take(f"{theirs}.ffn_norm.weight"),
            f"{ours}.gate_up.weight": np.concatenate([take(f"{theirs}.ffn_{side}.weight") for side in ("gate", "up")]),
            f"{ours}.down.weight": take(f"{theirs}.ffn_down.weight"),
        }
    if left:
        raise WeightsError(f"{path} has a tensor {next(iter(left))}, which only other kinds of models have")
    return found


def halved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows [heads * head_dim, inputs] of a projection: each head's channels 0, 2, 4, ... and then 1, 3, 5, ..."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
