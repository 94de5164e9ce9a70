"""Small language models of transformers with random weights, and prompts that they continue without doubt."""

from __future__ import annotations

import copy
import zlib

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from kvit.transformers import prepare

VOCABULARY = 16  # few tokens lie further apart: more prompts have no close second
NEW_TOKENS = 12
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 1}),  # has biases of q, k and v
    "mistral": (MistralConfig, MistralForCausalLM, {"num_key_value_heads": 4, "sliding_window": None}),
}

# Families whose attention transformers computes by itself.
PREPARED = ("bloom", "mpt")

# Families that turn a part of the channels, or cut q, k and v out of one product: batches come with gaps in memory.
WITH_GAPS = ("glm", "gpt_neox", "nemotron", "persimmon", "phi", "phi3", "stablelm")


def make_model(family: str, device: str = "host", attention: str = "kvit", **changes: object) -> torch.nn.Module:
    """A model in bfloat16. The numbers come from numpy and the parameters' names: no release of transformers matters.

    Weights of 0.07, not transformers' 0.02: then attention decides what the logits are.
    """
    if family in FAMILIES:
        config_class, model_class, shape = FAMILIES[family]
        model = model_class(config_class(**{**SHAPE, **shape, **changes}))
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHAPE, **changes}))
    return with_weights(model, family, device, attention)


def with_weights(model: torch.nn.Module, family: str, device: str, attention: str) -> torch.nn.Module:
    """The model, with the weights of a family and in bfloat16."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = np.random.default_rng(zlib.crc32(f"{family} {name}".encode())).standard_normal(parameter.shape)
            is_norm = any(word in name for word in ("norm", "ln_"))
            deviation, mean = (0.5, 0.0) if name.endswith("bias") else (0.1, 1.0) if is_norm else (0.07, 0.0)
            parameter.copy_(torch.from_numpy(drawn * deviation + mean))
    if attention == "kvit" and family in PREPARED:
        prepare(model)
    else:
        model.set_attn_implementation(attention)
    return model.to(torch_device(device), torch.bfloat16).eval()


def in_float32(model: torch.nn.Module) -> torch.nn.Module:
    """The same function but for rounding: the same weights, all else in float32."""
    twin = copy.deepcopy(model).float()
    twin.set_attn_implementation("eager")
    return twin


def torch_device(device: str) -> str:
    """What PyTorch calls a device of kvit."""
    return "cpu" if device == "host" else device


def make_prompt(length: int, seed: int, device: str = "host") -> torch.Tensor:
    """Random tokens [1, length], none of them padding."""
    drawn = np.random.default_rng(seed).integers(2, VOCABULARY, (1, length))
    return torch.from_numpy(drawn).to(torch_device(device))


# Length of a prompt -> seed. Greedy decoding in float32 picks each of its NEW_TOKENS by a margin of at least 4.5 times
# what bfloat16 moves any logit, so rounding cannot change the text. Most seeds do not; test_models.py measures it.
PROMPTS = {
    "llama": {33: 73, 5: 25, 18: 42},
    "qwen2": {33: 64, 5: 29, 18: 36},
    "mistral": {33: 76, 5: 83, 18: 1},
}


def prompts(family: str, device: str = "host") -> list[torch.Tensor]:
    """The prompts [1, length] of a family."""
    return [make_prompt(length, seed, device) for length, seed in PROMPTS[family].items()]


def left_padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of any lengths as one batch: (tokens, attention_mask), both [batch, longest]."""
    longest = max(row.shape[1] for row in rows)
    tokens = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in rows])
    return tokens, (tokens != SHAPE["pad_token_id"]).long()
