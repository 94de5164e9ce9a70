"""Models with multi-head latent attention (MLA): queries go into the space of the rows that are stored, outputs back.

transformers hands a cache the latent rows, and expands them to K and V of every head behind it:

    K of head h = [latent row  W_K[h]^T, rotary part]      V of head h = latent row  W_V[h]^T

Scores and outputs are the same where the query takes the matrix over (DeepSeek-AI, DeepSeek-V2, 2024):

    [q_nope W_K[h], q_rot] . [latent row, rotary part]     (weights . latent rows) W_V[h]^T

so attention reads one row of each token for all heads, and kv_b_proj's weight is W_K and W_V of every head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from kvit.errors import KernelMissing


def are_latent(config: PretrainedConfig, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether what a model gives its cache are latent rows and rotary parts, and no K and V."""
    sizes = getattr(config, "kv_lora_rank", None), getattr(config, "qk_rope_head_dim", None)
    return (key.shape[1], value.shape[1]) == (1, 1) and (key.shape[-1], value.shape[-1]) == sizes


def absorbed(module: Any, place: str, query: torch.Tensor) -> torch.Tensor:
    """Queries [batch, heads, tokens, nope + rope] as they score latent rows: [batch, heads, tokens, rank + rope].

    Raises KernelMissing for a kv_b_proj whose weight is not at hand.
    """
    to_keys, _ = _weights(module, place, query)
    q_nope, q_rot = query.split([to_keys.shape[1], query.shape[-1] - to_keys.shape[1]], dim=-1)
    return torch.cat((q_nope @ to_keys, q_rot), dim=-1)


def expanded(module: Any, place: str, found: torch.Tensor) -> torch.Tensor:
    """Sums of latent rows [batch, tokens, heads, rank] as outputs [batch, tokens, heads, v_head_dim]."""
    _, to_values = _weights(module, place, found)
    return (found.transpose(1, 2) @ to_values.transpose(1, 2)).transpose(1, 2)


def _weights(module: Any, place: str, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W_K [heads, nope, rank] and W_V [heads, v_head_dim, rank], views of kv_b_proj.weight."""
    layer = getattr(module, "kv_b_proj", None)
    weight = getattr(layer, "weight", None)
    if type(layer) is not torch.nn.Linear or layer.bias is not None or weight.dtype != like.dtype:
        what = type(layer).__name__ if weight is None else f"{type(layer).__name__} in {weight.dtype}"
        raise KernelMissing(
            f"{place} has latent rows, and its kv_b_proj is a {what}; kvit multiplies by the weight of a "
            f"torch.nn.Linear without bias in {like.dtype}: leave kv_b_proj out of quantisation and adapters, or use "
            "another attn_implementation for this model"
        )
    nope, values = module.qk_nope_head_dim, module.v_head_dim
    of_heads = weight.view(-1, nope + values, weight.shape[-1])
    return of_heads[:, :nope], of_heads[:, nope:]
