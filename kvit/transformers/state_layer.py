"""Layers that keep a state, alone or beside K and V, as those of Falcon-H1 have."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import LinearAttentionCacheLayerMixin, LinearAttentionLayer

from kvit.transformers.batch import CachedBatch
from kvit.transformers.layer import KvitLayer

_OF_STATE = tuple(vars(LinearAttentionLayer(number_of_states=1)))
"""What transformers keeps of a state."""


class KvitStateLayer(LinearAttentionLayer, KvitLayer):
    """K and V in pages, and the state as transformers keeps it: crop, reset and reorder_cache are those of the state.

    number_of_states  of the layer; the others as in KvitLayer
    """

    is_compileable = False

    def __init__(self, config: PretrainedConfig, index: int, batch: CachedBatch, number_of_states: int = 1):
        KvitLayer.__init__(self, config, index, batch)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *key_and_value: torch.Tensor, **states: Any) -> None:
        """Of K and V, as KvitLayer.update asks for it, or of a state, as update_conv_state does."""
        if key_and_value:
            KvitLayer.lazy_initialization(self, *key_and_value)
        else:
            LinearAttentionLayer.lazy_initialization(self, **states)

    def get_max_length(self) -> int:
        """Tokens that fit if one sequence has all pages."""
        return KvitLayer.get_max_length(self)

    def fork(self, batch: CachedBatch) -> KvitStateLayer:
        """The layer of another cache, which has these sequences, and a copy of the state."""
        twin = KvitStateLayer(self._config, self._index, batch, self.number_of_states)
        twin.is_initialized = self.is_initialized
        for name in _OF_STATE:
            setattr(twin, name, copy.deepcopy(getattr(self, name)))
        return twin

    def offload(self) -> None:
        """Refused: kvit's pages stay on their device."""
        KvitLayer.offload(self)

    prefetch = offload


def states_of(layer: LinearAttentionCacheLayerMixin) -> list[torch.Tensor]:
    """The states that a layer keeps, [batch, ...] each."""
    return [state for of_kind in (layer.conv_states, layer.recurrent_states) for state in of_kind.values()
            if state is not None]  # fmt: skip


def select_states(layer: LinearAttentionCacheLayerMixin, places: list[int]) -> None:
    """Have the states of the sequences at these places: in the same memory, where as many sequences stay."""
    for of_kind in (layer.conv_states, layer.recurrent_states):
        for i, state in of_kind.items():
            if state is not None:
                chosen = state.index_select(0, torch.tensor(places, device=state.device))
                of_kind[i] = state.copy_(chosen) if chosen.shape == state.shape else chosen
