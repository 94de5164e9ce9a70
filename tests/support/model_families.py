"""Small models of the families that people run, with random weights: what each asks of attention is there.

Windows and chunks have fewer tokens than the prompts. Mixtures of experts have as many experts as a token goes to:
which ones those are would else turn on roundings, whatever computes attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers

from support.language_models import SHAPE, make_model, with_weights


class Family(NamedTuple):
    """How a small model of a family is made, and a prompt that it continues without doubt.

    changes  of its configuration
    seed     of a prompt of 33 tokens after which each greedy token leads by more than rounding can change
    model    class of the model where AutoModelForCausalLM knows none; of a text_config where `nested`
    nested   the configuration holds that of the text model
    pieces   in which the prompt comes: prefill, steps, and several tokens at once
    tokens   that are generated. Of models that round much elsewhere few lead by enough
    """

    changes: dict[str, Any]
    seed: int = 0
    model: str | None = None
    nested: bool = False
    pieces: tuple[int, ...] = (20, 1, 1, 11)
    tokens: int = 8

    def make(self, name: str, device: str, attention: str = "kvit") -> torch.nn.Module:
        """The model in bfloat16."""
        if self.model is None:
            return make_model(name, device, attention, **self.changes)
        changes = {**SHAPE, **self.changes}
        if self.nested:
            changes = {"text_config": changes, "vision_config": VISION, "pad_token_id": 0}
        config = transformers.AutoConfig.for_model(name, **changes)
        return with_weights(getattr(transformers, self.model)(config), name, device, attention)


EXPERTS = {
    "num_local_experts": 2, "num_experts": 2, "n_routed_experts": 2, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 64, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 64, "q_lora_rank": 48, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "head_dim": 16, "num_key_value_heads": 4,
}  # fmt: skip
DEEPSEEK = {
    **LATENT,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "head_dim": 64,
}  # of one head what DeepSeek-V3 and Kimi K2 have
INDEXER = {"index_n_heads": 4, "index_head_dim": 64, "index_topk": 28, "layer_types": ["indexed_attention"] * 2}
WINDOW = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}
STATE = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_heads": 2, "linear_head_dim": 32,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 16, "shared_intermediate_size": 128}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 256,
          "deepstack_visual_indexes": [0]}  # fmt: skip

FAMILIES = {
    "llama4_text": Family({**EXPERTS, "attention_chunk_size": 9,
                           "layer_types": ["chunked_attention", "full_attention"]}, seed=35),
    "qwen3": Family({"num_attention_heads": 5, "num_key_value_heads": 1}, seed=9),
    "qwen3_moe": Family({**EXPERTS}, seed=23),
    "qwen3_vl": Family({}, seed=13, model="Qwen3VLForConditionalGeneration", nested=True),
    "qwen3_next": Family({**EXPERTS, **STATE, "head_dim": 256}, seed=4, tokens=2),
    "qwen3_5_text": Family({**STATE, "head_dim": 256}, seed=1, tokens=2),
    "deepseek_v3": Family({**EXPERTS, **DEEPSEEK}, seed=10),
    # Behind a prompt of 33 tokens a query leaves out 5 of 33 and more. Were it most of them, it would turn on roundings
    # which ones, and "eager" would lose as much as there is.
    "deepseek_v32": Family({**EXPERTS, **DEEPSEEK, **INDEXER}, seed=10, tokens=6),
    # A window, beside it 14 of the entries of 2 tokens (of which there are 16 behind the prompt), or all those of 8.
    "deepseek_v4": Family({**EXPERTS, "num_hidden_layers": 3, "head_dim": 512, "num_key_value_heads": 1,
                           "layer_types": ["sliding_attention", "compressed_sparse_attention",
                                           "heavily_compressed_attention"], "mlp_layer_types": ["moe"] * 3,
                           "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 8},
                           "index_topk": 14, "index_n_heads": 4, "index_head_dim": 64, "sliding_window": 9,
                           "q_lora_rank": 48, "o_groups": 2, "o_lora_rank": 32, "hc_mult": 2}, seed=3, tokens=4),
    "kimi_linear": Family({**EXPERTS, **LATENT, **STATE}, seed=2),
    "glm": Family({}, seed=2),
    "glm4_moe": Family({**EXPERTS, "num_attention_heads": 12, "num_key_value_heads": 1}, seed=8),
    "glm4_moe_lite": Family({**EXPERTS, **LATENT}, seed=18),
    "glm_moe_dsa": Family({**EXPERTS, **DEEPSEEK, **INDEXER, "indexer_types": ["full", "shared"]}, seed=6, tokens=6),
    "minimax_m2": Family({**EXPERTS, "num_attention_heads": 6, "num_key_value_heads": 1}, seed=12),
    # Queries read 4 of the 5 blocks of 8 tokens that there are from the 33rd token on.
    "minimax_m3_vl_text": Family({**EXPERTS, "layer_types": ["full_attention", "minimax_m3_sparse"], "head_dim": 128,
                                  "num_attention_heads": 6, "index_n_heads": 2, "index_head_dim": 64,
                                  "index_block_size": 8, "index_topk_blocks": 4, "index_local_blocks": 1},
                                 seed=20, tokens=6, model="MiniMaxM3VLForCausalLM"),
    "gpt_oss": Family({**EXPERTS, **WINDOW}, seed=19),
    "gemma2": Family({"sliding_window": 9, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 16,
                      "head_dim": 256}, seed=18),
    "gemma3_text": Family({**WINDOW, "head_dim": 256}, seed=19),
    # Two layers as the 31B has them, and two that read their K and V, as the last ones of E2B do.
    "gemma4_text": Family({"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 2,
                           "num_hidden_layers": 4, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 16,
                           "attention_k_eq_v": True, "head_dim": 256, "global_head_dim": 512,
                           "num_global_key_value_heads": 1}, seed=6, tokens=6),
    "mimo_v2_flash": Family({**EXPERTS, **WINDOW, "head_dim": 192, "v_head_dim": 128, "num_attention_heads": 4},
                            seed=23),
    "ministral3": Family({}, seed=2),
    "mistral4": Family({**EXPERTS, **LATENT, "head_dim": 48}, seed=11, model="Mistral4ForCausalLM"),
    "phi3": Family({"head_dim": 96, "hidden_size": 384}, seed=23, tokens=5),
    "nemotron_h": Family({**EXPERTS, "layer_types": ["linear_attention", "full_attention", "mlp"],
                          "num_hidden_layers": 3, "mamba_num_heads": 8, "mamba_head_dim": 32,
                          "ssm_state_size": 16, "n_groups": 2, "chunk_size": 16}, seed=3),
    "granitemoehybrid": Family({**EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"]}, seed=9, tokens=4),
    "falcon_h1": Family({"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_ssm": 256, "mamba_d_state": 16,
                         "mamba_n_groups": 1, "mamba_chunk_size": 16}, seed=11, tokens=3),
    "jamba": Family({**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}, seed=2,
                    tokens=2, pieces=(29, 1, 1, 1, 1)),  # its state takes one token at a time behind the prompt
    "cohere2": Family({**WINDOW, "num_attention_heads": 12, "num_key_value_heads": 1}, seed=13),
    "olmo2": Family({}, seed=13),
    "olmo3": Family({**WINDOW}, seed=12),
    "step3p7": Family({**EXPERTS, **WINDOW}, seed=8, model="Step3p7ForConditionalGeneration", nested=True, tokens=2),
    "smollm3": Family({"no_rope_layers": [1, 0]}, seed=13),
    "seed_oss": Family({"num_attention_heads": 10, "num_key_value_heads": 1}, seed=8),
    "ernie4_5": Family({"num_attention_heads": 8, "num_key_value_heads": 1}, seed=1),
    "bailing_hybrid": Family({**EXPERTS, **LATENT, **STATE}, seed=19),
    "hunyuan_v1_dense": Family({}, seed=2),
    "gpt_neox": Family({"hidden_size": 384}, seed=0),
    "stablelm": Family({"head_dim": None, "hidden_size": 320}, seed=2),
    # 6 heads: where they are no power of two, slopes of twice as many fill up.
    "bloom": Family({"hidden_size": 384, "num_attention_heads": 6, "tie_word_embeddings": False}, seed=7),
    "mpt": Family({"hidden_size": 384, "num_attention_heads": 6, "attn_config": {"clip_qkv": 2.0}}, seed=6),
}  # fmt: skip

CHOOSING = {"deepseek_v32", "deepseek_v4", "glm_moe_dsa", "minimax_m3_vl_text"}
"""Families whose queries choose what they attend to; DecodeGraphs refuses them."""
