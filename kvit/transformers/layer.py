"""One layer of a KvitCache: a kvit.PagedCache, and a Sequence of it for each sequence of the batch."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from kvit.cache.attention import attention
from kvit.cache.paged_cache import PagedCache
from kvit.cache.sequence import Sequence
from kvit.errors import DeviceError, DtypeError, KernelMissing, ShapeError
from kvit.transformers.attention import LAYER, NAME
from kvit.transformers.latent import are_latent
from kvit.transformers.padding import Padding


class KvitLayer(CacheLayerMixin):
    """K and V of one layer, in pages that are made when the first K comes.

    config   of the model's decoder
    options  of PagedCache, but for kv_heads, head_dim, dtype and device, which the first K tells
    padding  shared by the layers of a cache
    """

    is_croppable = True

    def __init__(self, config: PretrainedConfig, options: dict[str, Any], padding: Padding):
        super().__init__()
        self._config, self._options, self._padding = config, options, padding
        self.paged: PagedCache | None = None
        self.sequences: list[Sequence] = []
        self._length = 0  # tokens of each sequence, padding included: what transformers counts
        self._has_new = False  # K and V that update was given and attention has not stored
        self._latent: tuple[torch.Tensor, torch.Tensor] | None = None  # given by update, until attention takes it
        self._sinks: torch.Tensor | None = None  # of the model, in float32
        self._mask: torch.Tensor | None = None  # bool [batch, length] in host memory; None without padding

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make pages for rows like these, unless there are some, and a sequence for each of the batch.

        Latent rows and their rotary parts, which models with MLA give, lie side by side and are stored once.
        Raises DtypeError, DeviceError, and what PagedCache raises.
        """
        (batch, kv_heads, _, head_dim), v_dim = key_states.shape, value_states.shape[-1]
        if self.paged is None:
            if key_states.dtype not in (torch.bfloat16, torch.float16):
                raise DtypeError(
                    f"the model computes in {key_states.dtype} and kvit in bfloat16 or float16; "
                    "load the model with dtype=torch.bfloat16"
                )
            shares_kv = are_latent(self._config, key_states, value_states)
            if shares_kv:
                head_dim, v_dim = head_dim + v_dim, head_dim
            self.paged = PagedCache(
                kv_heads=kv_heads, head_dim=head_dim, v_dim=v_dim, shares_kv=shares_kv, dtype=key_states.dtype,
                device=_device_of(key_states), **self._options,
            )  # fmt: skip
        self.sequences = [self.paged.sequence() for _ in range(batch)]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Send new K and V [batch, kv_heads, tokens, head_dim] on to attention, which stores them.

        Only there is known which tokens are padding. Returns the new tokens alone: the others are in the pages.
        Raises TypeError (the model uses another attention), ShapeError (another batch), and lazy_initialization's.
        """
        found = self._config._attn_implementation
        if found != NAME:
            raise TypeError(
                f"a KvitCache serves attn_implementation={NAME!r} and its config says {found!r}; load the model with "
                f"attn_implementation={NAME!r} and give the cache model.config itself"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != len(self.sequences):
            raise ShapeError(
                f"a batch of {key_states.shape[0]} for a cache of {len(self.sequences)} sequences; "
                "reset() the cache for another batch"
            )
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
    ) -> torch.Tensor:
        """Store K and V of the real tokens and attend their queries; arguments and result are those of `attend`.

        modifiers  what kvit.attention shall do besides: window, chunk, softcap, sinks

        K, V and queries are read where they are and the result is written where torch wants it, except in a pass with
        padding among its new tokens, and where _rows copies. Raises KernelMissing for K that were stored already.
        """
        if not self._has_new:
            raise KernelMissing(
                "a layer of the model attends to K and V of another one; kvit's cache for transformers stores those of "
                "each layer for itself. Use another attn_implementation for this model"
            )
        batch, heads, new, _ = query.shape
        tokens = self._padding.tokens(mask, batch, new)
        tokens.check_past(self._mask, self._length)
        rows = [_rows(states) for states in (query, key, value)]
        if tokens.index is not None:
            # Padding lies between the rows of one sequence and the next, and kvit reads them end to end.
            rows = [states.index_select(0, tokens.index) for states in rows]
        q, k, v = rows
        v_dim = self.paged.places[0].view.v_dim
        out = torch.empty((*q.shape[:2], v_dim), dtype=q.dtype, device=q.device)
        stream = torch.cuda.current_stream(q.device).cuda_stream if q.is_cuda else None
        self.paged.append(self.sequences, k, v, new_tokens=tokens.counts, stream=stream)
        attention(q, self.paged, self.sequences, tokens.counts, out=out, scale=scaling, stream=stream, **modifiers)
        self._length, self._mask, self._has_new = self._length + new, tokens.mask, False
        if tokens.index is not None:
            out = out.new_zeros(batch * new, heads, v_dim).index_copy_(0, tokens.index, out)
        return out.view(batch, new, heads, v_dim)

    def sinks(self, parameter: torch.Tensor) -> torch.Tensor:
        """The sinks of the layer's query heads in float32, as kvit reads them: always in the same memory, since an
        operation is made for it.
        """
        if self._sinks is None or self._sinks.shape != parameter.shape or self._sinks.device != parameter.device:
            self._sinks = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        return self._sinks.copy_(parameter.detach())

    def get_seq_length(self) -> int:
        """Tokens of each sequence so far, padding included."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens with those to come, index of the first)."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that fit if one sequence has all pages."""
        return self._options["pages"] * self._options["page_size"]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens of each sequence, padding included; give pages back.

        Raises ShapeError (positive, or more than there are).
        """
        if not -self._length <= tokens_to_remove <= 0:
            raise ShapeError(
                f"crop({tokens_to_remove}) of {self._length} tokens; give minus the number of tokens to remove, "
                f"0 to {-self._length}"
            )
        kept = self._length + tokens_to_remove
        for i, sequence in enumerate(self.sequences):
            dropped = -tokens_to_remove if self._mask is None else int(self._mask[i, kept:].sum())
            sequence.truncate(len(sequence) - dropped)
        self._length, self._mask = kept, None if self._mask is None else self._mask[:, :kept]

    def reset(self) -> None:
        """Forget all sequences; the pages stay, for a batch of any size."""
        self.sequences, self._length, self._mask = [], 0, None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequence i becomes a fork of sequence beam_idx[i]: no token moves until one of the forks grows."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times over, as forks."""
        self._select([i for i in range(len(self.sequences)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the sequences at these indices, in this order."""
        self._select(torch.arange(len(self.sequences))[indices.cpu()].tolist())

    def fork(self, padding: Padding) -> KvitLayer:
        """The same tokens in the same pages, for another cache."""
        twin = KvitLayer(self._config, self._options, padding)
        twin.take_over(self)
        return twin

    def take_over(self, other: KvitLayer) -> None:
        """Have the tokens of another layer, in the same pages."""
        self.paged, self.is_initialized = other.paged, other.is_initialized
        self.sequences = [sequence.fork() for sequence in other.sequences]
        self._length, self._mask = other._length, other._mask

    def offload(self) -> None:
        """Refused: kvit's pages stay on their device."""
        raise KernelMissing("a KvitCache stays on its device; store K and V in fewer bits instead: k='int8', v='int4'")

    prefetch = offload

    def _select(self, places: list[int]) -> None:
        if not self.sequences:
            return  # as transformers' own caches do
        self.sequences = [self.sequences[place].fork() for place in places]
        self._mask = None if self._mask is None else self._mask[places]

    def __repr__(self) -> str:
        if self.paged is None:
            return "KvitLayer(no pages yet)"
        return f"KvitLayer({len(self.sequences)} sequences of {self._length} tokens in {self.paged!r})"


def _rows(states: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, head_dim] as the rows [batch * tokens, heads, head_dim] that kvit reads.

    In place, unless the tokens of one sequence and the next are not evenly spaced, as in a batch behind a rotation of
    some channels alone: those are copied.
    """
    rows = states.transpose(1, 2)
    return rows.reshape(-1, *rows.shape[2:])


def _device_of(states: torch.Tensor) -> str:
    """The name of a tensor's device in kvit. Raises DeviceError."""
    if states.device.type == "cpu":
        return "host"
    if states.device.type == "cuda":
        return f"cuda:{states.device.index}"
    raise DeviceError(f"the model is on {states.device}; kvit computes on CUDA GPUs and on the CPU")
