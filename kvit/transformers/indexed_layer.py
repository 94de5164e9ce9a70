"""Layers whose queries choose what they attend to, and the keys that the model's indexer scores for it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from kvit.errors import KernelMissing, ShapeError
from kvit.transformers.batch import CachedBatch
from kvit.transformers.layer import KvitLayer

GROWTH = 256
"""Tokens for which memory of an indexer's keys is taken at once; later ones double it."""


class KvitIndexedLayer(KvitLayer):
    """K and V in pages, and beside them the keys of an indexer, in PyTorch's memory.

    indexer_keys  [batch, room, channels] in the model's dtype: a key for each token, padding included. Those behind
                  the tokens of the batch are of nobody: a pass that failed, and crop, leave them there. None before the
                  first

    Arguments as in KvitLayer. DeepSeek V3.2 and GLM-5 call update_indexer, MiniMax M3 calls update_index.
    """

    def __init__(self, config: PretrainedConfig, index: int, batch: CachedBatch):
        super().__init__(config, index, batch)
        self.indexer_keys: torch.Tensor | None = None

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Keep the keys of new tokens, [batch, tokens, channels]; returns those of all tokens, a view.

        Raises ShapeError (another batch, other channels).
        """
        batch, new, channels = indexer_key_states.shape
        past, kept = self._batch.length, self.indexer_keys
        if kept is not None and (batch, channels) != (kept.shape[0], kept.shape[2]):
            raise ShapeError(
                f"layer {self._index} has indexer keys of {batch} sequences and {channels} channels, and keeps "
                f"{kept.shape[2]} channels of {kept.shape[0]} sequences; reset() the cache for another batch"
            )
        if kept is None or kept.shape[1] < past + new:
            room = max(GROWTH, past + new, 2 * past)
            self.indexer_keys = indexer_key_states.new_empty(batch, room, channels)
            if kept is not None:
                self.indexer_keys[:, :past] = kept[:, :past]
            kept = self.indexer_keys
        kept[:, past : past + new] = indexer_key_states
        return kept[:, : past + new]

    def update_index(self, idx_k: torch.Tensor) -> torch.Tensor:
        """update_indexer of [batch, 1, tokens, channels], which MiniMax M3 has."""
        return self.update_indexer(idx_k[:, 0])[:, None]

    @property
    def indexer_position_ids(self) -> torch.Tensor:
        """Refused: positions of an indexer's keys, which some models keep in their cache."""
        raise KernelMissing(
            f"the indexer of layer {self._index} keeps positions in its cache, which kvit's cache does not; use "
            "another attn_implementation for this model"
        )

    def select_keys(self, places: list[int]) -> None:
        """Have the keys of the sequences at these places."""
        if self.indexer_keys is not None:
            self.indexer_keys = self.indexer_keys[places]

    def fork(self, batch: CachedBatch) -> KvitIndexedLayer:
        """The layer of another cache, which has these sequences, and a copy of the indexer's keys."""
        twin = KvitIndexedLayer(self._config, self._index, batch)
        twin.is_initialized = self.is_initialized
        twin.indexer_keys = None if self.indexer_keys is None else self.indexer_keys.clone()
        return twin

    def attend(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in KvitLayer. Raises KernelMissing for a model that does not say what its queries have chosen."""
        if kwargs.get("chosen") is None:
            self._batch.drop_pass()
            raise KernelMissing(
                f"layer {self._index} has an indexer, and tells attention nothing of what its queries have chosen; use "
                "another attn_implementation for this model"
            )
        return super().attend(*args, **kwargs)
