"""The model of model.py in PyTorch, for training: same tensors, same names, plus dropout."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from model import Config
from torch import Tensor, nn


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: Config, dropout: float):
        super().__init__()
        self.config = config
        self.attention_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.qkv = nn.Linear(config.width, sum(config.qkv_sizes), bias=False)
        self.attention_out = nn.Linear(config.query_heads * config.head_dim, config.width, bias=False)
        self.ffn_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.gate_up = nn.Linear(config.width, 2 * config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, tokens, width]; cos, sin [tokens, head_dim / 2]."""
        qkv = self.qkv(self.attention_norm(x))
        # Each to [batch, heads, tokens, head_dim].
        q, k, v = (
            part.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for part in qkv.split(self.config.qkv_sizes, dim=-1)
        )
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        group = self.config.query_heads // self.config.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.attention_out(out.transpose(1, 2).flatten(2)))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(F.silu(gate) * up))


class TorchTinyLM(nn.Module):
    """The whole model; forward gives logits [batch, tokens, vocab] for tokens [batch, tokens]."""

    def __init__(self, config: Config, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        half = config.head_dim // 2
        frequencies = config.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(config.context)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Layers that write to the residual stream start smaller, so that its variance does not grow with depth.
                residual = name.endswith(("attention_out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.layers) ** 0.5 if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        x = self.dropout(self.embedding(tokens))
        for block in self.layers:
            x = block(x, self.cos[:count], self.sin[:count])
        return F.linear(self.norm(x), self.embedding.weight)

    def export(self) -> dict[str, np.ndarray]:
        """Copy the weights to numpy, float32, named as Config.shapes names them."""
        return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in self.state_dict().items()}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary positions, as model.rotate; x [batch, heads, tokens, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
