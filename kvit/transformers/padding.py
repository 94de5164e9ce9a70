"""Which tokens of a batch are real: only those are stored and attended to, whichever side the padding is on."""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import causal_mask_function

from kvit.errors import KernelMissing, ShapeError

HIDES = "kvit_hides"
"""Attribute of a mask that hides more than padding: {"window": tokens} or {"chunk": tokens}, as in kvit.attention."""

PADDING = "kvit_padding"
"""Attribute of a mask that has the four axes which some models cut or read: the mask that attention takes, or None."""

ENTRIES_MASK = torch.float8_e5m2
"""Dtype of a mask of no keys, behind which models put what hides entries (0, or minus infinity). No caller's has it."""

COMPRESSED = {"compressed_sparse_attention", "heavily_compressed_attention"}
"""Types of layers whose queries read entries besides tokens."""


def padding_mask(
    *,
    kv_length: int,
    mask_function: Any,
    attention_mask: torch.Tensor | None = None,
    q_length: int | None = None,
    q_offset: int | torch.Tensor = 0,
    batch_size: int = 1,
    local_size: int | None = None,
    config: Any = None,
    device: torch.device | None = None,
    **_: Any,
) -> torch.Tensor | None:
    """What kvit's attention must know of a mask: transformers asks once for each forward pass and kind of mask.

    kv_length       tokens of each sequence after this pass, padding included
    mask_function   which keys a query sees, padding apart
    attention_mask  bool [batch, kv_length], False for padding
    q_length        new tokens; q_offset are those before them, in a cache that makes no room in advance
    local_size      tokens of a window
    config, device  of the model

    Returns a view of attention_mask, or None if it hides nothing; finding out waits for the GPU, unless it is None.
    A model whose last layers read K and V of others cuts its mask along queries: it gets [batch, 1, 1, kv_length]. One
    with an indexer of tokens shows it what each query may see: bool [batch, 1, q_length, kv_length]. One whose queries
    read entries besides puts those behind a mask of no keys, [batch, 1, q_length, 0]. MPT asks its mask for another
    dtype: it gets one that hides nothing where others get None.
    Raises KernelMissing (not plainly causal), ShapeError, TypeError (a cache that is no KvitCache).
    """
    hides = None
    if mask_function is not causal_mask_function:
        hides = None if local_size is None else _window_of(mask_function)
        if hides is None:
            name = getattr(mask_function, "__qualname__", repr(mask_function)).split(".")[0]
            raise KernelMissing(
                f"the model asks for a mask by {name} and kvit's attention is causal, with a window or chunks; "
                "use another attn_implementation for this model"
            )
    if q_length is not None and kv_length != int(q_offset) + q_length:
        raise TypeError(
            f"the model's cache has room for {kv_length} tokens where there are {int(q_offset) + q_length}: it is a "
            "static one, and attn_implementation='kvit' needs a KvitCache. Give the model or generate() "
            "past_key_values=kvit.transformers.KvitCache(model.config, pages=...), and no cache_implementation"
        )
    types = set(getattr(config, "layer_types", None) or ())
    if types & COMPRESSED:
        if _padding(attention_mask, kv_length) is not None:
            raise KernelMissing(
                "the model makes entries of so many tokens each, and counts padding as tokens, which kvit does not "
                "store; give sequences of as many tokens each, or one at a time"
            )
        return torch.empty(batch_size, 1, q_length or 0, 0, dtype=ENTRIES_MASK, device=device)
    if hides is not None and kv_length > local_size:
        found = _hiding(attention_mask, batch_size, kv_length, {hides: local_size})
    else:
        found = _padding(attention_mask, kv_length)
    if "indexed_attention" in types:
        at = torch.arange(kv_length, device=device)
        wide = (at <= at[kv_length - (q_length or 0) :, None]).expand(batch_size, 1, -1, -1)
        wide = wide if found is None else wide & found.to(wide.device)[:, None, None]
    elif getattr(config, "model_type", None) == "mpt":
        wide = _for_mpt(found)
    elif found is None or not reads_others(config):
        return found
    else:
        wide = found[:, None, None]
    setattr(wide, PADDING, found)
    return wide


def reads_others(config: Any) -> bool:
    """Whether layers of a model attend to K and V of other layers, and store none."""
    return "reuse" in (getattr(config, "kv_sharing_modes", None) or ())


def _for_mpt(found: torch.Tensor | None) -> torch.Tensor:
    """The mask of padding as MPT takes it. Raises KernelMissing for padding behind tokens: MPT counts it as tokens."""
    if found is None:
        return torch.zeros((), dtype=torch.bool)
    _require_none_behind(found, "MPT's ALiBi")
    return found.to(torch.bool).view(found.shape)  # a tensor that may carry an attribute of its own


def _require_none_behind(mask: torch.Tensor, what: str) -> None:
    """Raise KernelMissing for padding behind tokens. Waits for the GPU."""
    if bool((mask.to(torch.int8).diff(dim=-1) < 0).any()):
        raise KernelMissing(
            f"the model has {what} and a padded batch has padding behind tokens, which counts as tokens there and not "
            "in kvit's pages; pad on the left"
        )


def _padding(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """The mask, or None if it hides nothing. Raises ShapeError."""
    if attention_mask is None:
        return None
    if attention_mask.shape[-1] != length:
        raise ShapeError(
            f"attention_mask is for {attention_mask.shape[-1]} tokens, and there are {length} with those in the "
            "cache; give a mask of all of them"
        )
    return None if attention_mask.all() else attention_mask.detach()


def _hiding(attention_mask: torch.Tensor | None, batch: int, length: int, hides: dict[str, int]) -> torch.Tensor:
    """The mask of padding, with the word of what else is hidden. Raises ShapeError.

    Chunks of a padded sequence begin where its tokens do, as they do in transformers; a mask of tokens that are not of
    one block says nothing that kvit could do, and is refused.
    """
    if attention_mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool)
    else:
        mask = attention_mask.detach().to(torch.bool).clone()
        if mask.shape[-1] == length:
            _require_none_behind(mask, str(hides))
    if mask.shape[-1] != length:
        raise ShapeError(
            f"attention_mask is for {mask.shape[-1]} tokens, and there are {length} with those in the cache; give a "
            "mask of all of them"
        )
    setattr(mask, HIDES, hides)
    return mask


def _window_of(mask_function: Any) -> str | None:
    """ "window" or "chunk" of transformers' causal mask cut down to that, and nothing else; else None.

    transformers makes it by and_masks(window, causal_mask_function), and such functions have no other sign than what
    they close over.
    """
    if not getattr(mask_function, "__qualname__", "").startswith("and_masks."):
        return None
    (parts,) = [cell.cell_contents for cell in mask_function.__closure__ or ()] or [()]
    windows = [part for part in parts if part is not causal_mask_function]
    names = [getattr(part, "__qualname__", "").split(".")[0] for part in windows]
    if len(parts) != 2 or len(windows) != 1:
        return None
    return {"sliding_window_overlay": "window", "chunked_overlay": "chunk"}.get(names[0])


class NewTokens:
    """The real ones among the new tokens of one forward pass; the same for all layers.

    mask    bool [batch, tokens so far and new] in host memory; None where every token is real
    counts  new real tokens of each sequence
    index   int64, places of the real tokens among [batch * new]; None where all are real
    """

    def __init__(self, mask: torch.Tensor | None, batch: int, new: int):
        self.mask: torch.Tensor | None = None
        self.counts = [new] * batch
        self.index: torch.Tensor | None = None
        if mask is None:
            return
        if mask.ndim != 2 or mask.shape[0] != batch:
            raise ShapeError(
                f"attention_mask has shape {list(mask.shape)}; kvit is causal by itself and takes the mask of padding, "
                f"[batch = {batch}, tokens]"
            )
        found = mask.to("cpu", torch.bool)
        if found.all():
            return  # a mask that says no more than which window there is
        self.mask = found
        fresh = found[:, found.shape[1] - new :]
        if not fresh.all():
            self.counts = fresh.sum(1).tolist()
            self.index = fresh.flatten().nonzero().flatten().to(mask.device)

    def last(self, new: int, kept: int) -> NewTokens:
        """Those among the last `kept` of the `new` positions; `index` counts among [batch * kept]."""
        if kept == new:
            return self
        twin = NewTokens(None, len(self.counts), kept)
        if self.index is not None:
            assert self.mask is not None, "padding among new tokens comes from a mask"
            fresh = self.mask[:, self.mask.shape[1] - kept :]
            twin.counts = fresh.sum(1).tolist()
            twin.index = fresh.flatten().nonzero().flatten().to(self.index.device)
        return twin

    def require_none_before(self) -> None:
        """Raise KernelMissing for padding in front of a token."""
        if self.mask is not None and bool((self.mask.to(torch.int8).diff(dim=1) > 0).any()):
            raise KernelMissing(
                "queries of the model choose blocks of tokens, which it counts from the padding of a sequence on and "
                "kvit from its first token; give sequences of as many tokens each, or one at a time"
            )

    def check_past(self, past: torch.Tensor | None, length: int) -> None:
        """Raise ShapeError unless the mask says of the `length` tokens in the cache what `past` said of them."""
        if self.mask is None:
            agrees = past is None
        else:
            before = self.mask[:, :length]
            agrees = bool(before.all()) if past is None else torch.equal(before, past)
        if not agrees:
            raise ShapeError(
                f"attention_mask does not hide the same of the {length} tokens in the cache as when they were stored; "
                "give one mask of all tokens so far and new, in every call"
            )
