"""Layers whose queries read a window of tokens and, behind it, entries that the model makes of many tokens each."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from kvit.errors import KernelMissing
from kvit.transformers.attention import LAYER
from kvit.transformers.batch import CachedBatch
from kvit.transformers.entries import Entries
from kvit.transformers.layer import KvitLayer
from kvit.transformers.padding import ENTRIES_MASK

_STATES = ("buffer_kv", "buffer_gate", "compressed_kv", "overlap_kv", "overlap_gate", "entry_count")
"""What transformers' layers keep, by name of what made it: tensors [batch, ...], replaced and never changed."""


class KvitCompressedLayer(KvitLayer):
    """K and V of DeepSeek V4: rows of tokens in pages, where K and V are one, and entries as transformers keeps them.

    theirs  the layer of transformers' own cache, of whose states this one makes use; the others as in KvitLayer

    The states are those of the pass before, if a pass ends early. They remember no older ones: such a layer cannot be
    cropped.
    """

    is_croppable = False
    takes_entries = True

    def __init__(self, config: PretrainedConfig, index: int, batch: CachedBatch, theirs: CacheLayerMixin):
        super().__init__(config, index, batch)
        self._theirs = theirs
        self._before: dict[str, dict[str, Any]] = {}  # the states when the pass began
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None  # given by update, until attention takes them
        self._began_at = -1  # tokens of each sequence then; a pass that was whole has left more

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As in KvitLayer. What the model says to attention next names this layer, for K that it makes of these."""
        found = super().update(key_states, value_states, *args, **kwargs)
        self._settle()
        self._before = {name: dict(getattr(self._theirs, name)) for name in _STATES if hasattr(self._theirs, name)}
        self._began_at = self._batch.length
        kwargs["kwargs"][LAYER] = self
        self._rows = found
        return found

    def take_rows(self) -> tuple[torch.Tensor, torch.Tensor, None]:
        """(K, V, mask) of the new tokens, without entries: what update was given last. Padding there is none."""
        found, self._rows = self._rows, None
        assert found is not None, "update comes before attention"
        return *found, None

    def store_compression_weights(
        self, name: str, kv: torch.Tensor, gate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Of the model's compressor: as in transformers' layer."""
        return self._theirs.store_compression_weights(name, kv, gate)

    def update_compressor_states(self, name: str, compressed: torch.Tensor) -> torch.Tensor:
        """Of the model's compressor: as in transformers' layer."""
        return self._theirs.update_compressor_states(name, compressed)

    def update_overlap_state(
        self, name: str, chunk_kv: torch.Tensor, chunk_gate: torch.Tensor, head_dim: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of the model's compressor: as in transformers' layer."""
        return self._theirs.update_overlap_state(name, chunk_kv, chunk_gate, head_dim)

    def entries_of(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> Entries | None:
        """What queries [batch, heads, new, channels] shall read besides their window; None: nothing.

        key   [batch, 1, new + entries, channels]: the new tokens, and all entries behind them
        mask  of the model: made by padding_mask with no keys, and what a compressor and the model put behind them

        Raises KernelMissing for a mask that the caller made.
        """
        new, count = query.shape[2], key.shape[2] - query.shape[2]
        shape = None if mask is None or mask.dtype is not ENTRIES_MASK else tuple(mask.shape[1:])
        hides = shape == (1, new, count)
        if not hides and (shape != (1, new, new + count) or (new > 1 and count > 0)):
            self._batch.drop_pass()
            raise KernelMissing(
                f"layer {self._index} has a mask of its own; kvit's attention makes the masks of this model, without "
                "padding: give no attention_mask, and sequences of as many tokens each"
            )
        if count == 0:
            return None
        hidden = mask[:, 0].view(torch.uint8) != 0 if hides and mask is not None else None
        most = getattr(self._config, "index_topk", count) if hasattr(self._theirs, "overlap_kv") else count
        return Entries(key[:, 0], new, hidden, min(most, count), self._batch.pages)

    def select_states(self, places: list[int]) -> None:
        """Have the states of the sequences at these places."""
        self._settle()
        for name in _STATES[:-1]:
            states = getattr(self._theirs, name, {})
            for key, state in states.items():
                states[key] = None if state is None else state[places]

    def forget_states(self) -> None:
        """Have none, as before the first pass."""
        self._theirs.reset()
        self._before, self._began_at = {}, -1

    def fork(self, batch: CachedBatch) -> KvitCompressedLayer:
        """The layer of another cache, which has these sequences; the states are shared until either goes on."""
        self._settle()
        theirs = copy.copy(self._theirs)
        for name in _STATES:
            if hasattr(theirs, name):
                setattr(theirs, name, dict(getattr(theirs, name)))
        twin = KvitCompressedLayer(self._config, self._index, batch, theirs)
        twin.is_initialized = self.is_initialized
        return twin

    def _settle(self) -> None:
        """Undo what a pass that ended early has done to the states."""
        if self._batch.length == self._began_at:
            for name, states in self._before.items():
                setattr(self._theirs, name, dict(states))
            self._before, self._began_at = {}, -1
