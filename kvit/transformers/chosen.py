"""What queries have chosen, from the words of models into entries of sequences as kvit counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from kvit.cache.layer import CacheLayer
from kvit.cache.step import Step
from kvit.errors import KernelMissing, ShapeError
from kvit.transformers.padding import NewTokens


class Chosen(NamedTuple):
    """Entries that the queries of a layer have chosen.

    indices       int [batch, new tokens, choosers, entries]: entry i of a sequence is its tokens, padding included,
                  [i * entry_tokens, (i + 1) * entry_tokens); -1 for none
    entry_tokens  of an entry
    """

    indices: torch.Tensor
    entry_tokens: int

    def are_all(self, length: int) -> bool:
        """Whether each query has chosen every entry of `length` tokens that it may see: as many as there are."""
        return self.indices.shape[3] >= -(-length // self.entry_tokens)

    def rows(self, tokens: NewTokens) -> torch.Tensor:
        """int32 [real new tokens, choosers, entries], with entries of the real tokens alone, as pages hold them.

        Of entries of several tokens only padding behind all tokens may be left out: CachedBatch refuses any other.
        """
        indices = self.indices
        if tokens.mask is not None and self.entry_tokens == 1:
            mask = tokens.mask.to(indices.device)
            places = (mask.cumsum(1) - 1).masked_fill(~mask, -1)  # of each token among the real ones
            found = places.gather(1, indices.flatten(1).clamp(min=0).long()).view(indices.shape)
            indices = found.masked_fill(indices < 0, -1)
        rows = indices.flatten(0, 1)
        if tokens.index is not None:
            rows = rows.index_select(0, tokens.index)
        return rows.to(torch.int32).contiguous()

    def prepared(
        self,
        stored: CacheLayer,
        step: Step,
        q: torch.Tensor,
        tokens: NewTokens,
        scaling: float | None,
        modifiers: dict[str, Any],
    ) -> Callable[[torch.Tensor], Any]:
        """What writes attention of q to the chosen entries of a step to a tensor, once K and V are appended.

        q          [real new tokens, query_heads, head_dim]
        modifiers  softcap and sinks

        Raises KernelMissing (a window or chunks besides), ShapeError (choices for neither all heads nor each KV head,
        blocks that are no parts of pages nor whole ones), LayoutError (scales of each head, where heads choose apart).
        """
        hidden = sorted({"window", "chunk"} & modifiers.keys())
        if hidden:
            raise KernelMissing(
                f"a layer has queries that choose, and a {hidden[0]} besides, which kvit's attention does not do "
                "together; use another attn_implementation for this model"
            )
        indices = self.rows(tokens)
        _, choosers, entries = indices.shape
        if choosers not in (1, stored.kv_heads):
            raise ShapeError(
                f"a query makes {choosers} choices and the layer has {stored.kv_heads} KV heads; kvit takes one choice "
                "for all heads, or one for each KV head"
            )
        op = stored.operations.find_sparse(
            q.shape[1], q.shape[0], entry_tokens=self.entry_tokens, entries=entries, per_head=choosers > 1,
            scale=scaling, **modifiers,
        )  # fmt: skip
        table, rows, _ = step.rows_of(q.shape[0], None)
        if choosers > 1:
            q = q.contiguous()  # the rows of a KV head's queries must be evenly spaced
        return lambda out: op(q, stored.view, table, indices, query_indptr=rows, out=out, stream=step.stream)


def chosen_by(module: torch.nn.Module, place: str, query: torch.Tensor, others: dict[str, Any]) -> Chosen | None:
    """What the queries of an attention layer have chosen, taken out of what it says to attention; None: nothing.

    query   [batch, query_heads, tokens, head_dim]
    others  indices [batch, tokens, entries] are tokens for all heads (DeepSeek V3.2, GLM-5), and block_indices
            [batch, choosers, tokens, entries] blocks of module.indexer.block_size tokens (MiniMax M3)

    Raises ShapeError, KernelMissing (blocks whose size the module does not tell).
    """
    tokens, blocks = others.pop("indices", None), others.pop("block_indices", None)
    if tokens is None and blocks is None:
        return None
    batch, _, new, _ = query.shape
    if tokens is not None:
        if tokens.ndim != 3 or tokens.shape[:2] != (batch, new):
            raise ShapeError(
                f"{place} has indices of shape {list(tokens.shape)}; give [batch = {batch}, tokens = {new}, entries]"
            )
        return Chosen(tokens[:, :, None], 1)
    size = getattr(getattr(module, "indexer", None), "block_size", None)
    if size is None:
        raise KernelMissing(
            f"{place} has chosen blocks and no indexer.block_size says how many tokens a block has; use another "
            "attn_implementation for this model"
        )
    if blocks.ndim != 4 or (blocks.shape[0], blocks.shape[2]) != (batch, new):
        raise ShapeError(
            f"{place} has block_indices of shape {list(blocks.shape)}; give [batch = {batch}, choosers, "
            f"tokens = {new}, entries]"
        )
    return Chosen(blocks.transpose(1, 2), int(size))
