"""Entries that queries read beside tokens, in one softmax: two calls of attention, and a merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kvit.cache.beside import attend_beside
from kvit.cache.layer import CacheLayer
from kvit.cache.step import Step
from kvit.layouts.views import CacheView, PageTable
from kvit.transformers.padding import NewTokens
from kvit.transformers.pages import ModelPages


class Entries:
    """Entries of a layer, and which of them each query reads.

    rows    [batch, first + entries, channels], K and V in one, in PyTorch's memory: attention reads them there
    first   rows of each sequence that are no entries
    hidden  bool [batch, new tokens, entries]: which ones not; None: none of them
    most    entries that a query reads
    pages   of the model
    """

    def __init__(self, rows: torch.Tensor, first: int, hidden: torch.Tensor | None, most: int, pages: ModelPages):
        self._rows, self._first, self._hidden, self._most, self._pages = rows, first, hidden, most, pages

    def are_all(self, length: int) -> bool:
        """Never: tokens that queries see are not among the entries."""
        return False

    def prepared(
        self,
        stored: CacheLayer,
        step: Step,
        q: torch.Tensor,
        tokens: NewTokens,
        scaling: float | None,
        modifiers: dict[str, Any],
    ) -> Callable[[torch.Tensor], None]:
        """What writes attention of q to tokens and entries to a tensor, once K and V are appended.

        Arguments as in Chosen.prepared; sinks are counted once. Raises what kvit.SparseAttention raises.
        """
        batch, rows, channels = self._rows.shape
        pages = self._rows.view(batch * rows, 1, 1, channels)
        view = CacheView(pages, pages)
        indices = self._indices(q.shape[0] // batch)
        operations = self._pages.entry_operations(stored, view)
        op = operations.find_sparse(
            q.shape[1], q.shape[0], entry_tokens=1, entries=indices.shape[2], per_head=False, causal=False,
            scale=scaling,
        )  # fmt: skip
        # Queries are the last tokens of a sequence, which has at least as many: entries that nobody chooses make it up.
        length = max(rows - self._first, q.shape[0] // batch)
        places = torch.arange(length, dtype=torch.int32, device=q.device).add_(self._first).clamp_(max=rows - 1)
        first = torch.arange(0, batch * rows, rows, dtype=torch.int32, device=q.device)
        lengths = torch.full((batch,), length, dtype=torch.int32, device=q.device)
        table = PageTable(first[:, None] + places, lengths=lengths)

        return lambda out: attend_beside(
            q, stored, step, op, view, table, indices, out=out, scale=scaling, **modifiers
        )  # fmt: skip

    def _indices(self, new: int) -> torch.Tensor:
        """int32 [batch * new, 1, room]: the entries that each query reads, and -1 for none."""
        batch = self._rows.shape[0]
        room = 1 << (self._most - 1).bit_length()  # of powers of two are few, and so are the operations
        if self._hidden is None:
            found = torch.arange(self._most, device=self._rows.device).expand(batch * new, self._most)
        else:
            seen = (~self._hidden).flatten(0, 1).to(torch.int8)
            best, found = seen.topk(self._most, dim=1)
            found = found.masked_fill(best == 0, -1)
        found = torch.nn.functional.pad(found, (0, room - found.shape[1]), value=-1)
        return found.to(torch.int32)[:, None].contiguous()
