"""The function that transformers calls in each attention layer, and what it refuses."""

from __future__ import annotations

from typing import Any

import torch

from kvit.errors import KernelMissing
from kvit.transformers.chosen import chosen_by
from kvit.transformers.latent import absorbed, expanded
from kvit.transformers.padding import HIDES, PADDING

NAME = "kvit"
"""Of the attention implementation."""

LAYER = "kvit_layer"
"""Attribute of the K that KvitLayer.update returns: transformers hands K on to attention, but not the cache. Of a model
that expands latent rows to K behind the cache, a keyword argument of attention.
"""

# What models say to every attention and what changes nothing in it. Anything else that is set is refused: it may be a
# new way to compute attention.
_IGNORED = frozenset(
    {
        "cache_position",
        "logits_to_keep",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "use_cache",
    }
)
_ADVICE = {"dropout": "call model.eval(), or "}


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Store the new K and V in the pages of a KvitCache, and attend the new queries to all its tokens.

    module          with layer_idx. One that stores no K and V of its own reads those that another layer has stored
    query           [batch, query_heads, tokens, head_dim]: the new tokens, after RoPE; of a module that reads, the last
                    of them may be all
    key, value      [batch, kv_heads, tokens, head_dim]: the same tokens, as KvitCache.update returned them; of latent
                    rows what the model made of those, which is not read
    attention_mask  what padding_mask made: None, or bool [batch, tokens so far and new], False for padding
    scaling         of the scores; head_dim ** -0.5 if absent
    others          sliding_window, softcap, s_aux (sinks, [query_heads]), indices and block_indices (what queries have
                    chosen) mean what they mean in transformers, and alibi (slopes, float32 [query_heads] in memory that
                    stays) what it means in kvit.attention; what kvit does not know is refused

    Returns ([batch, tokens, query_heads, head_dim], None): rows of padding are zeros, and there are no weights.
    Raises TypeError (K does not come from a KvitCache), KernelMissing (anything that kvit's attention does not do),
    and what PagedCache.append raises. Nothing is stored then.
    """
    place = f"layer {getattr(module, 'layer_idx', '?')} ({type(module).__name__})"
    told = others.pop(LAYER, None)  # by a layer behind which the model makes other K
    layer = getattr(key, LAYER, told)
    if layer is None:
        raise TypeError(
            f"{place} got K and V that no KvitCache holds; give the model or generate() "
            "past_key_values=kvit.transformers.KvitCache(model.config, pages=...). If it was given, and this is the "
            "layer of an assistant_model, give that one its own by kvit.transformers.AssistantCache"
        )
    attention_mask = getattr(attention_mask, PADDING, attention_mask)
    chosen = chosen_by(module, place, query, others)
    if layer.takes_entries:
        chosen = layer.entries_of(query, key, attention_mask)
        key, value, attention_mask = layer.take_rows()
    reader = layer.reader(getattr(module, "layer_idx", None))
    modifiers = dict(getattr(attention_mask, HIDES, {}) if reader is None else layer.hides)
    # Some models tell attention its window and some the mask alone. One that hides nothing yet need not be told.
    window, cap = others.pop("sliding_window", None), others.pop("softcap", None)
    if window is not None and layer.outgrows(int(window), key.shape[2]):
        modifiers["window"] = int(window)
    if cap is not None:
        modifiers["softcap"] = float(cap)
    sinks = others.pop("s_aux", None)
    if sinks is not None:
        modifiers["sinks"] = layer.sinks(sinks)
    alibi = others.pop("alibi", None)
    if alibi is not None:
        modifiers["alibi"] = alibi
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    wishes = {name: wish for name, wish in others.items() if name not in _IGNORED and wish is not False}
    for name, wish in {"dropout": dropout or None, "is_causal": None if is_causal else False, **wishes}.items():
        if wish is not None:
            raise KernelMissing(
                f"{place} asks for {name}={_words(wish)}, which kvit's attention does not do; "
                f"{_ADVICE.get(name, '')}use another attn_implementation for this model"
            )
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise KernelMissing(f"{place} wants gradients and kvit computes none; call the model under torch.no_grad()")
    if reader is not None and chosen is None:
        return layer.read(reader, query, scaling, modifiers), None
    layer.hides = dict(getattr(attention_mask, HIDES, {}))
    if told is None or layer.takes_entries:
        return layer.attend(query, key, value, attention_mask, scaling, modifiers, chosen=chosen), None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows, turned = layer.take_latent()
    query = absorbed(module, place, query)
    found = layer.attend(query, turned, rows, attention_mask, scaling, modifiers, chosen=chosen)
    return expanded(module, place, found), None


def _words(wish: Any) -> str:
    """A value as an error shows it: of a tensor, what it is and not its numbers."""
    return f"a tensor of shape {list(wish.shape)}" if isinstance(wish, torch.Tensor) else repr(wish)
