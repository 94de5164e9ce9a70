"""A GGUF file of a small Llama with random weights, written as llama.cpp's converters write them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from model import Config
from tokens import byte_letters

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = [letter for letter, byte in byte_letters().items() if byte < 0xF0]  # no bytes above: the model never met them
MERGES = ["h e", "l l", "he ll", "Ġ hell"]
WORDS = [*CONTROL, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
# Sizes that no axis shares with another; quantised rows are multiples of 32 long.
CONFIG = Config(
    vocab=len(WORDS), width=96, layers=2, query_heads=6, kv_heads=2, head_dim=64, ffn_width=64, context=200,
    rope_base=5e4, norm_eps=2.0**-10,
)  # fmt: skip


def interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of q or k as GGUF files of Llamas hold them: channel i of each half becomes channel 2 i, or 2 i + 1."""
    out = np.empty_like(rows)
    for row in range(len(rows)):
        head, channel = divmod(row, head_dim)
        half, i = divmod(channel, head_dim // 2)
        out[head * head_dim + 2 * i + half] = rows[row]
    return out


def write(path: Path, tensors: dict[str, np.ndarray], quantised: bool = False, **changes: object) -> Path:
    """A file of a Llama with these weights, named as model.py names them. changes: of metadata, dots as __."""
    writer = gguf.GGUFWriter(path, changes.pop("general__architecture", "llama"))
    facts = {
        "llama.embedding_length": CONFIG.width, "llama.block_count": CONFIG.layers,
        "llama.attention.head_count": CONFIG.query_heads, "llama.attention.head_count_kv": CONFIG.kv_heads,
        "llama.feed_forward_length": CONFIG.ffn_width, "llama.context_length": CONFIG.context,
        "llama.attention.layer_norm_rms_epsilon": CONFIG.norm_eps, "llama.rope.freq_base": CONFIG.rope_base,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(WORDS) - len(CONTROL)),
        "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.chat_template": "{{ messages[0]['content'] }}{{ eos_token }}",
        "llama.attention.key_length": CONFIG.head_dim,
    }  # fmt: skip
    for name, value in (facts | {name.replace("__", "."): value for name, value in changes.items()}).items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for name, tensor in stored(tensors).items():
        if quantised and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under GGUF's names, apart, and with q and k in its order."""
    q_size, k_size, _ = CONFIG.qkv_sizes
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.astype(np.float32)
        *_, layer, part, _ = ("", *name.split("."))
        if part == "qkv":
            q, k, v = np.split(tensor, [q_size, q_size + k_size])
            found |= {
                f"blk.{layer}.attn_{side}.weight": interleaved(x, CONFIG.head_dim) for side, x in (("q", q), ("k", k))
            }
            found[f"blk.{layer}.attn_v.weight"] = v
        elif part == "gate_up":
            gate, up = np.split(tensor, 2)
            found |= {f"blk.{layer}.ffn_gate.weight": gate, f"blk.{layer}.ffn_up.weight": up}
        else:
            theirs = {
                "embedding": "token_embd", "norm": "output_norm", "attention_norm": "attn_norm",
                "attention_out": "attn_output", "ffn_norm": "ffn_norm", "down": "ffn_down",
            }[part]  # fmt: skip
            found[f"{theirs}.weight" if part in ("embedding", "norm") else f"blk.{layer}.{theirs}.weight"] = tensor
    return found


def random_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights that keep activations of order 1, named as model.py names them."""
    return {
        name: (rng.normal(size=shape) / np.sqrt(shape[-1]) if len(shape) == 2 else rng.uniform(0.5, 1.5, shape)).astype(
            np.float32
        )
        for name, shape in CONFIG.shapes().items()
    }
