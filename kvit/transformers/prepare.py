"""Models whose attention transformers computes by itself, and no attn_implementation reaches: BLOOM and MPT.

Both have ALiBi (Press et al., Train Short, Test Long, 2022): a score loses a slope of its head times the distance.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from transformers import Cache
from transformers.models.bloom.modeling_bloom import (
    BloomAttention,
    BloomPreTrainedModel,
    build_alibi_tensor,
    dropout_add,
)
from transformers.models.mpt.modeling_mpt import MptAttention, MptBlock, MptPreTrainedModel

from kvit.errors import KernelMissing
from kvit.transformers.attention import NAME, attend

Model = TypeVar("Model", bound=torch.nn.Module)


class KvitBloomAttention(BloomAttention):
    """BLOOM's attention through kvit: the same parameters, and the slopes of ALiBi instead of a bias for each key."""

    _slopes: torch.Tensor | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        alibi: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layer_past: Cache | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """As BloomAttention has it; `alibi` is not read. Raises what `attend` raises."""
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        if self._slopes is None or self._slopes.device != query.device:
            self._slopes = slopes_of(self.num_heads).to(query.device)
        found, _ = attend(
            self, query, key, value, attention_mask, scaling=self.inv_norm_factor, alibi=self._slopes,
            dropout=self.attention_dropout.p if self.training else 0.0, output_attentions=output_attentions, **kwargs,
        )  # fmt: skip
        return dropout_add(self.dense(found.flatten(2)), residual, self.hidden_dropout, self.training), None


class KvitMptAttention(MptAttention):
    """MPT's attention through kvit: the same parameters, and the slopes of ALiBi instead of a bias for each key."""

    _slopes: torch.Tensor | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """As MptAttention has it, whose cache was called past_key_values; `position_bias` is not read.

        Raises what `attend` raises.
        """
        mixed = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        heads = mixed.unflatten(2, (3, self.n_heads, self.head_dim))
        query, key, value = (heads[:, :, i].transpose(1, 2) for i in range(3))
        cache = past_key_values if cache is None else cache
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        if self._slopes is None or self._slopes.device != query.device:
            self._slopes = slopes_of(self.n_heads).to(query.device)
        found, _ = attend(
            self, query, key, value, attention_mask, scaling=self.softmax_scale, alibi=self._slopes,
            dropout=self.attn_dropout_p if self.training else 0.0, **kwargs,
        )  # fmt: skip
        return self.out_proj(found.flatten(2)), None


class KvitMptBlock(MptBlock):
    """A block of MPT that does not promise weights of attention: MPT's own says nothing of them to its attention."""

    def forward(self, *args: Any, output_attentions: bool = False, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """As MptBlock has it. Raises KernelMissing (output_attentions)."""
        if output_attentions:
            raise KernelMissing(
                "the model is asked for output_attentions, which kvit's attention does not do; load it anew, without "
                "kvit.transformers.prepare, for these"
            )
        return super().forward(*args, **kwargs)


_OURS: dict[type, type] = {
    BloomAttention: KvitBloomAttention,
    MptAttention: KvitMptAttention,
    MptBlock: KvitMptBlock,
}


def slopes_of(heads: int) -> torch.Tensor:
    """What scores of BLOOM and MPT lose for each position between query and key: float32 [heads], in host memory.

    MPT says otherwise how they come about where `heads` is no power of two, and has the same.
    """
    return build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1].contiguous()


def prepare(model: Model) -> Model:
    """Have a BLOOM or an MPT ask for kvit's attention, as other models do for attn_implementation="kvit".

        model = prepare(AutoModelForCausalLM.from_pretrained("bigscience/bloom-560m", dtype=torch.bfloat16))
        model.generate(**tokens, past_key_values=KvitCache(model.config, pages=512))

    Returns the model itself: its attention layers are of other classes now, its parameters stay where they are, and its
    config says attn_implementation="kvit" and use_cache=True. There is no way back but to load it anew.
    Raises KernelMissing (another model; a BLOOM whose attention is cut by pretraining_tp); nothing is changed then.
    """
    modules = list(model.modules())
    if not any(isinstance(module, BloomAttention | MptAttention) for module in modules):
        raise KernelMissing(
            f"prepare() has no attention layers for a {type(model).__name__}, only for BLOOM and MPT; load the model "
            f"with attn_implementation={NAME!r}"
        )
    for module in modules:
        if isinstance(module, BloomAttention) and module.pretraining_tp > 1 and module.slow_but_exact:
            raise KernelMissing(
                f"the model adds up its outputs in {module.pretraining_tp} parts, which kvit's layer does not do; set "
                "slow_but_exact=False in its config"
            )
    for module in modules:
        module.__class__ = _OURS.get(type(module), type(module))
        if isinstance(module, BloomPreTrainedModel | MptPreTrainedModel):
            module.config._attn_implementation = NAME
            # MPT's says no, and generate() would give a cache that it was handed all tokens again in every step.
            for config in (module.config, getattr(module, "generation_config", None)):
                if config is not None:
                    config.use_cache = True
    return model
