"""A layer of a KvitCache that has a state beside its K and V, as those of Falcon-H1 have."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import LinearAttentionLayer

from kvit.transformers.layer import KvitLayer
from kvit.transformers.padding import Padding

_OF_STATE = tuple(vars(LinearAttentionLayer(number_of_states=1)))
"""What transformers keeps of a state."""


class KvitStateLayer(LinearAttentionLayer, KvitLayer):
    """K and V in pages, and the state as transformers keeps it: what is done to one is done to both.

    number_of_states  of the layer; the others as in KvitLayer
    """

    is_compileable = False

    def __init__(self, config: PretrainedConfig, options: dict[str, Any], padding: Padding, number_of_states: int = 1):
        KvitLayer.__init__(self, config, options, padding)
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

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens. Raises RuntimeError for a state that remembers no older ones."""
        LinearAttentionLayer.crop(self, tokens_to_remove)
        KvitLayer.crop(self, tokens_to_remove)

    def reset(self) -> None:
        """Forget all sequences."""
        LinearAttentionLayer.reset(self)
        KvitLayer.reset(self)

    def fork(self, padding: Padding) -> KvitStateLayer:
        """The same tokens in the same pages, and a copy of the state, for another cache."""
        twin = KvitStateLayer(self._config, self._options, padding, self.number_of_states)
        twin.take_over(self)
        for name in _OF_STATE:
            setattr(twin, name, copy.deepcopy(getattr(self, name)))
        return twin

    def offload(self) -> None:
        """Refused: kvit's pages stay on their device."""
        KvitLayer.offload(self)

    prefetch = offload

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequence i becomes a fork of sequence beam_idx[i]."""
        KvitLayer.reorder_cache(self, beam_idx)

    def _select(self, places: list[int]) -> None:
        if self.device is not None:
            LinearAttentionLayer.reorder_cache(self, torch.tensor(places, device=self.device))
        KvitLayer._select(self, places)
