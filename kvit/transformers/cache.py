"""transformers' Cache with K and V in kvit's pages: one kvit.PagedCache for all layers of a model."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from kvit import _checks
from kvit.cache.paged_cache import PagedCache
from kvit.codecs import codec_of
from kvit.errors import KernelMissing, KvitError, ShapeError, refuse_copy
from kvit.layouts.views import Layout
from kvit.transformers.batch import CachedBatch
from kvit.transformers.compressed_layer import KvitCompressedLayer
from kvit.transformers.indexed_layer import KvitIndexedLayer
from kvit.transformers.layer import KvitLayer
from kvit.transformers.padding import COMPRESSED
from kvit.transformers.pages import ModelPages
from kvit.transformers.state_layer import KvitStateLayer, select_states


class KvitCache(Cache):
    """K and V of a batch of sequences in one paged cache of all layers: past_key_values of a model or of generate().

    config            model.config itself, of a model with attn_implementation="kvit"
    pages, page_size  of the cache: a sequence of n tokens takes ceil(n / page_size) pages, each of all layers
    k, v              how K and V are stored: "int8", "int4", "float8_e4m3", "float8_e5m2", or the model's dtype if
                      absent; docs/codec_errors.md says which pair to use when
    k_scale, v_scale  of float8: float32 [layers] or [layers, kv_heads], on the device; 1 if absent
    layout            of pages: "HND" or "NHD"

    Layers of a hybrid model that keep a state (linear attention, convolutions), instead of K and V or beside them, keep
    it as they do in transformers' own caches; layers without attention keep nothing, nor do layers that attend to K and
    V of other layers. Of layers whose queries choose tokens or blocks, an indexer's keys are kept in PyTorch's memory,
    and of those that read entries of many tokens each (DeepSeek V4) the entries and what they are made of.

    Memory is taken on the device of a layer when its first K comes, and stays until the cache goes; reset() empties it
    for another batch. Layers on several devices have pages on each. Beams, forks and copies (copy.deepcopy) share
    pages and copy one when they write to it. A forward pass is whole or has not been: sequences grow when its last
    layer has attended. Calls run on torch's current stream. Not safe to use from several threads, nor in torch.compile.

    Raises KernelMissing (layers that are no attention), ShapeError (counts, scales), DtypeError (no way to store K or
    V), LayoutError; the first call raises what PagedCache raises of the model's own K, KernelMissing for a window or
    sinks over a way to store K and V that has no kernel for them, and DtypeError for a model in float32. A call that
    runs out of pages raises CacheFull.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        pages: int,
        page_size: int = 64,
        *,
        k: Any = None,
        v: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        layout: Layout = "HND",
    ):
        pages, page_size = _checks.require_counts(pages=pages, page_size=page_size)
        _checks.require_layout(layout)
        for stored in (k, v):
            if stored is not None:
                codec_of(stored)
        decoder = config.get_text_config(decoder=True)
        _refuse(decoder)
        count = decoder.num_hidden_layers
        for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if scale is not None and len(scale) != count:
                raise ShapeError(
                    f"{name} is for {len(scale)} layers and the model has {count}; give one for each layer"
                )
        scales = [
            (None if k_scale is None else k_scale[i], None if v_scale is None else v_scale[i]) for i in range(count)
        ]
        model_pages = ModelPages(
            decoder, {"pages": pages, "page_size": page_size, "k": k, "v": v, "layout": layout}, scales
        )
        layers = DynamicCache(config=decoder).layers
        paged = [i for i, layer in enumerate(layers) if isinstance(layer, CacheLayerMixin)]
        if not paged:
            raise KernelMissing("the model has no layer with K and V; give it transformers' own cache")
        # Windows and chunks that masks have: layers tell of others, as they attend.
        limits = {int(layers[i].sliding_window) for i in paged if getattr(layers[i], "sliding_window", None)}
        modes = getattr(decoder, "kv_sharing_modes", None) or ()
        self.batch = CachedBatch(
            model_pages, paged, limits, [i for i, mode in enumerate(modes) if mode == "reuse"],
            blocks=any(hasattr(layer, "update_index") for layer in layers),
        )  # fmt: skip
        for i in paged:
            layers[i] = _layer(layers[i], decoder, i, self.batch)
        super().__init__(layers=layers)

    @property
    def paged_layers(self) -> list[KvitLayer]:
        """The layers with K and V, in order: all of most models."""
        return [layer for layer in self.layers if isinstance(layer, KvitLayer)]

    @property
    def paged(self) -> PagedCache | None:
        """The pages of all layers; None before the first K. Raises KvitError (a model on several devices)."""
        caches = list(self.batch.pages.caches.values())
        if len(caches) > 1:
            raise KvitError(
                f"the model is on {len(caches)} devices, with pages on each; ask a layer: cache.layers[i].paged"
            )
        return caches[0] if caches else None

    @property
    def batch_size(self) -> int:
        """Sequences of the batch; -1 before the first call."""
        return self.batch.size or -1

    @property
    def nbytes(self) -> int:
        """Bytes of all pages of all layers, used or not. PyTorch's allocator does not count them."""
        return sum(paged.nbytes for paged in self.batch.pages.caches.values())

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens of each sequence, padding included; give pages back.

        Raises ShapeError (positive, or more than there are), KernelMissing (layers with entries of many tokens each),
        RuntimeError (layers whose state remembers no older ones).
        """
        self.batch.require_removable(tokens_to_remove)
        if tokens_to_remove and self.compressed_layers:
            raise KernelMissing(
                "the model makes entries of many tokens each and keeps no older ones, so that none can be removed; "
                "generate without assistants and prompt lookup, and fork() the cache where it may have to go back"
            )
        for layer in self.state_layers:
            layer.crop(tokens_to_remove)
        self.batch.crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget all sequences; the pages stay, for a batch of any size."""
        self.batch.reset()
        for layer in self.state_layers:
            layer.reset()
        for layer in self.paged_layers:
            layer.is_initialized = False
        for layer in self.indexed_layers:
            layer.indexer_keys = None
        for layer in self.compressed_layers:
            layer.forget_states()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequence i becomes a fork of sequence beam_idx[i]: no token moves until one of the forks grows."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times over, as forks."""
        self._select([i for i in range(self.batch.size) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the sequences at these indices, in this order."""
        self._select(torch.arange(self.batch.size)[indices.cpu()].tolist())

    def _select(self, places: list[int]) -> None:
        self.batch.select(places)
        for layer in self.state_layers:
            select_states(layer, places)
        for layer in self.indexed_layers:
            layer.select_keys(places)
        for layer in self.compressed_layers:
            layer.select_states(places)

    @property
    def compressed_layers(self) -> list[KvitCompressedLayer]:
        """The layers of a model whose queries read entries besides tokens, in order: none of most models."""
        return [layer for layer in self.layers if isinstance(layer, KvitCompressedLayer)]

    @property
    def indexed_layers(self) -> list[KvitIndexedLayer]:
        """The layers whose queries choose, with an indexer's keys, in order: none of most models."""
        return [layer for layer in self.layers if isinstance(layer, KvitIndexedLayer)]

    @property
    def state_layers(self) -> list[LinearAttentionCacheLayerMixin]:
        """The layers with a state, alone or beside K and V, in order: none of most models."""
        return [layer for layer in self.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]

    def fork(self) -> KvitCache:
        """A second cache of the same tokens, in the same pages: both may go on, and each copies what it changes.

        For a prompt that many requests begin with. Both draw on one pool of pages, if there is one yet.
        """
        twin = object.__new__(KvitCache)
        twin.batch = self.batch.fork()
        layers = [
            layer.fork(twin.batch) if isinstance(layer, KvitLayer) else copy.deepcopy(layer) for layer in self.layers
        ]
        Cache.__init__(twin, layers=layers)
        return twin

    def __copy__(self) -> KvitCache:
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> KvitCache:
        return self.fork()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "its pages are on a device; fork() and copy.deepcopy share them")

    def __repr__(self) -> str:
        return f"KvitCache({len(self.paged_layers)} layers of {self.paged_layers[0]!r})"


def _layer(theirs: Any, decoder: PretrainedConfig, index: int, batch: CachedBatch) -> KvitLayer:
    """Ours for a layer of transformers' own cache with K and V."""
    if isinstance(theirs, LinearAttentionCacheLayerMixin):
        return KvitStateLayer(decoder, index, batch, theirs.number_of_states)
    if COMPRESSED.intersection(getattr(decoder, "layer_types", None) or ()):
        return KvitCompressedLayer(decoder, index, batch, theirs)
    if hasattr(theirs, "update_indexer") or hasattr(theirs, "update_index"):
        return KvitIndexedLayer(decoder, index, batch)
    return KvitLayer(decoder, index, batch)


def _refuse(decoder: PretrainedConfig) -> None:
    """Raise KernelMissing for a model with layers whose attention kvit does not know."""
    known = {"full_attention", "sliding_attention", "chunked_attention"}
    choosing = {"indexed_attention", "minimax_m3_sparse", *COMPRESSED}
    with_states = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}
    others = sorted({*(getattr(decoder, "layer_types", None) or ())} - known - choosing - with_states - {"moe", "mlp"})
    if others:
        raise KernelMissing(
            f"the model has layers of {', '.join(others)}; kvit's attention does "
            f"{', '.join(sorted(known | choosing))}. Use another attn_implementation for this model"
        )
