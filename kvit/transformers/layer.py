"""One layer of a KvitCache: its K and V in the pages of the model, and the calls that its attention makes."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from kvit.cache.attention import attention
from kvit.cache.layer import CacheLayer
from kvit.cache.paged_cache import PagedCache
from kvit.cache.sequence import Sequence
from kvit.errors import KernelMissing, KvitError, ShapeError
from kvit.transformers.attention import LAYER, NAME
from kvit.transformers.batch import CachedBatch
from kvit.transformers.chosen import Chosen
from kvit.transformers.latent import are_latent
from kvit.transformers.padding import NewTokens


class KvitLayer(CacheLayerMixin):
    """K and V of one layer, in pages that are made when the first K comes.

    config  of the model's decoder
    index   of the layer in the model
    batch   the sequences, which all layers of a cache share
    """

    is_croppable = True
    takes_entries = False  # K that attention is given are not those of update alone

    def __init__(self, config: PretrainedConfig, index: int, batch: CachedBatch):
        super().__init__()
        self._config, self._index, self._batch = config, index, batch
        self._has_new = False  # K and V that update was given and attention has not stored
        self._latent: tuple[torch.Tensor, torch.Tensor] | None = None  # given by update, until attention takes it
        self._sinks: torch.Tensor | None = None  # of the model, in float32
        self.hides: dict[str, int] = {}  # what the mask hid besides padding, for layers that read this one

    @property
    def stored(self) -> CacheLayer | None:
        """The layer in its pages: kvit.attention and gather take it. None before the first K."""
        return self._batch.pages.find(self._index)

    @property
    def paged(self) -> PagedCache | None:
        """The pages of all layers on this layer's device. None before the first K."""
        return None if self.stored is None else self.stored.cache

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences of the batch, of `paged`; none before the first K, and after a reset."""
        return [] if self.paged is None else self._batch.sequences.get(self.paged, [])

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make pages for rows like these, unless there are some, and a sequence for each of the batch.

        Raises DtypeError, DeviceError, and what PagedCache raises.
        """
        layer = self._batch.pages.layer(self._index, key_states, value_states)
        self._batch.enter(layer, key_states.shape[0])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Send new K and V [batch, kv_heads, tokens, head_dim] on to attention, which stores them.

        Only there is known which tokens are padding. Returns the new tokens alone: the others are in the pages.
        Raises TypeError (the model uses another attention), ShapeError (another batch), KernelMissing (the layer before
        has not attended), and lazy_initialization's.
        """
        found = self._config._attn_implementation
        if found != NAME:
            raise TypeError(
                f"a KvitCache serves attn_implementation={NAME!r} and its config says {found!r}; load the model with "
                f"attn_implementation={NAME!r} and give the cache model.config itself. BLOOM and MPT take that by "
                "kvit.transformers.prepare(model)"
            )
        if self._batch.size and key_states.shape[0] != self._batch.size:
            raise ShapeError(
                f"a batch of {key_states.shape[0]} for a cache of {self._batch.size} sequences; "
                "reset() the cache for another batch"
            )
        self._batch.give(self._index)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._has_new = True
        if are_latent(self._config, key_states, value_states):
            # The model makes another K of this one. What it goes on to say to attention is in `kwargs`.
            self._latent = key_states, value_states
            kwargs["kwargs"][LAYER] = self
        else:
            setattr(key_states, LAYER, self)
        return key_states, value_states

    def take_latent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What update was given last: latent rows and their rotary parts, [batch, 1, tokens, channels] each."""
        found, self._latent = self._latent, None
        assert found is not None, "update comes before attention"
        return found

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        modifiers: dict[str, Any],
        *,
        chosen: Chosen | None = None,
    ) -> torch.Tensor:
        """Store K and V of the real tokens and attend their queries; arguments and result are those of `attend`.

        modifiers  what kvit.attention shall do besides: window, chunk, softcap, sinks
        chosen     what the queries shall read; all that they may see if absent

        K, V and queries are read where they are and the result is written where torch wants it, except in a pass with
        padding among its new tokens, and where _rows copies. Raises KernelMissing for K that were stored already, and
        what CachedBatch.begin_layer raises. An error ends the pass, and nothing of it is kept.
        """
        if not self._has_new:
            raise KernelMissing(
                "a layer of the model attends to K and V of another one, and the config says nothing of it in "
                "kv_sharing_modes; use another attn_implementation for this model"
            )
        try:
            return self._attend(query, key, value, mask, scaling, modifiers, chosen)
        except BaseException:
            self._batch.drop_pass()
            raise

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        modifiers: dict[str, Any],
        chosen: Chosen | None,
    ) -> torch.Tensor:
        stored = self.stored
        assert stored is not None, "update comes before attention"
        batch, _, new, _ = query.shape
        stream = torch.cuda.current_stream(query.device).cuda_stream if query.is_cuda else None
        step, tokens = self._batch.begin_layer(self._index, stored, mask, new, stream)
        rows = [_rows(states) for states in (query, key, value)]
        if tokens.index is not None:
            # Padding lies between the rows of one sequence and the next, and kvit reads them end to end.
            rows = [states.index_select(0, tokens.index) for states in rows]
        q, k, v = rows
        v = None if key is value else v  # rows are stored once
        out = torch.empty((*q.shape[:2], stored.v_dim), dtype=q.dtype, device=q.device)
        if chosen is None or chosen.are_all(self._batch.length + new):
            stored.append(step, k, v)
            attention(q, stored, step, out=out, scale=scaling, stream=stream, **modifiers)
        else:
            find = chosen.prepared(stored, step, q, tokens, scaling, modifiers)
            stored.append(step, k, v)
            find(out)
        self._batch.end_layer(self._index)
        self._has_new = False
        return _spread(out, tokens, batch, new)

    def reader(self, index: int | None) -> int | None:
        """`index`, of the layer that calls attention, if it is one that reads what this layer has stored; else None."""
        return None if self._has_new or index not in self._batch.readers else index

    def read(self, reader: int, query: torch.Tensor, scaling: float | None, modifiers: dict[str, Any]) -> torch.Tensor:
        """Attend queries of another layer of the model to the tokens of this one, in the pass that stored them.

        reader  the other layer's index
        query   [batch, query_heads, tokens, head_dim] of the last new tokens; the others as in `attend`

        Raises what CachedBatch.begin_reader raises, and an error ends the pass.
        """
        try:
            stored = self.stored
            assert stored is not None, "a layer is read behind its update"
            batch, _, new, _ = query.shape
            stream = torch.cuda.current_stream(query.device).cuda_stream if query.is_cuda else None
            step, tokens = self._batch.begin_reader(reader, stored, new)
            q = _rows(query)
            if tokens.index is not None:
                q = q.index_select(0, tokens.index)
            out = torch.empty((*q.shape[:2], stored.v_dim), dtype=q.dtype, device=q.device)
            attention(q, stored, step, tokens.counts, out=out, scale=scaling, stream=stream, **modifiers)
            self._batch.end_layer(reader)
            return _spread(out, tokens, batch, new)
        except BaseException:
            self._batch.drop_pass()
            raise

    def sinks(self, parameter: torch.Tensor) -> torch.Tensor:
        """The sinks of the layer's query heads in float32, as kvit reads them: always in the same memory, since an
        operation is made for it.
        """
        if self._sinks is None or self._sinks.shape != parameter.shape or self._sinks.device != parameter.device:
            self._sinks = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        return self._sinks.copy_(parameter.detach())

    def outgrows(self, window: int, new: int) -> bool:
        """Whether the sequences have more tokens than a window of this layer, with `new` ones to come."""
        self._batch.limits.add(window)
        return self._batch.length + new > window

    def get_seq_length(self) -> int:
        """Tokens of each sequence so far, padding included."""
        return self._batch.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens with those to come, index of the first)."""
        return self._batch.length + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that fit if one sequence has all pages."""
        options = self._batch.pages.options
        return options["pages"] * options["page_size"]

    def _refuse(self, *_: Any) -> NoReturn:
        """Refused: layers share their sequences. The cache has the same method."""
        raise KvitError("the layers of a KvitCache have one batch of sequences; call the method of the cache itself")

    crop = reset = reorder_cache = batch_repeat_interleave = batch_select_indices = _refuse

    def fork(self, batch: CachedBatch) -> KvitLayer:
        """The layer of another cache, which has these sequences."""
        twin = KvitLayer(self._config, self._index, batch)
        twin.is_initialized = self.is_initialized
        return twin

    def offload(self) -> None:
        """Refused: kvit's pages stay on their device."""
        raise KernelMissing("a KvitCache stays on its device; store K and V in fewer bits instead: k='int8', v='int4'")

    prefetch = offload

    def __repr__(self) -> str:
        if self.stored is None:
            return "KvitLayer(no pages yet)"
        return f"KvitLayer({self._batch.size} sequences of {self._batch.length} tokens in {self.stored!r})"


def _rows(states: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, head_dim] as the rows [batch * tokens, heads, head_dim] that kvit reads.

    In place, unless the tokens of one sequence and the next are not evenly spaced, as in a batch behind a rotation of
    some channels alone: those are copied.
    """
    rows = states.transpose(1, 2)
    return rows.reshape(-1, *rows.shape[2:])


def _spread(out: torch.Tensor, tokens: NewTokens, batch: int, new: int) -> torch.Tensor:
    """Outputs of the real tokens, [tokens, heads, channels], as [batch, new, heads, channels]: zeros for padding."""
    if tokens.index is not None:
        out = out.new_zeros(batch * new, *out.shape[1:]).index_copy_(0, tokens.index, out)
    return out.view(batch, new, *out.shape[1:])
