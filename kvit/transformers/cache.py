"""transformers' Cache with K and V in kvit's pages: one kvit.PagedCache for each layer of a model."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from kvit import _checks
from kvit.codecs import codec_of
from kvit.errors import KernelMissing, ShapeError, refuse_copy
from kvit.layouts.views import Layout
from kvit.transformers.layer import KvitLayer
from kvit.transformers.padding import Padding


class KvitCache(Cache):
    """K and V of a batch of sequences in a paged cache for each layer: past_key_values of a model or of generate().

    config            model.config itself, of a model with attn_implementation="kvit"
    pages, page_size  of each layer: a sequence of n tokens takes ceil(n / page_size) pages, and all share the pool
    k, v              how K and V are stored: "int8", "int4", "float8_e4m3", "float8_e5m2", or the model's dtype if
                      absent; docs/quantisation.md says which pair to use when
    k_scale, v_scale  of float8: float32 [layers] or [layers, kv_heads], on the device; 1 if absent
    layout            of pages: "HND" or "NHD"

    Layers of a hybrid model that keep a state (linear attention, convolutions), instead of K and V or beside them, keep
    it as they do in transformers' own caches; layers without attention keep nothing.

    Pages are taken from the device of a layer when its first K comes, and stay until the cache goes; reset() empties
    them for another batch. Beams, forks and copies (copy.deepcopy) share pages and copy one when they write to it.
    Calls run on torch's current stream. Not safe to use from several threads, nor in torch.compile.

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
        padding = Padding()
        layers = DynamicCache(config=decoder).layers
        for i in (i for i, layer in enumerate(layers) if isinstance(layer, CacheLayerMixin)):
            scales = {
                "k_scale": None if k_scale is None else k_scale[i],
                "v_scale": None if v_scale is None else v_scale[i],
            }
            options = {"pages": pages, "page_size": page_size, "k": k, "v": v, "layout": layout, **scales}
            layers[i] = _layer(layers[i], decoder, options, padding)
        super().__init__(layers=layers)
        if not self.paged_layers:
            raise KernelMissing("the model has no layer with K and V; give it transformers' own cache")

    @property
    def paged_layers(self) -> list[KvitLayer]:
        """The layers with K and V, in order: all of most models."""
        return [layer for layer in self.layers if isinstance(layer, KvitLayer)]

    @property
    def batch_size(self) -> int:
        """Sequences of the batch; -1 before the first call."""
        return len(self.paged_layers[0].sequences) or -1

    @property
    def nbytes(self) -> int:
        """Bytes of all pages of all layers, used or not. PyTorch's allocator does not count them."""
        return sum(layer.paged.nbytes for layer in self.paged_layers if layer.paged is not None)

    def fork(self) -> KvitCache:
        """A second cache of the same tokens, in the same pages: both may go on, and each copies what it changes.

        For a prompt that many requests begin with. Both draw on one pool of pages, if there is one yet.
        """
        twin = object.__new__(KvitCache)
        padding = Padding()
        layers = [
            layer.fork(padding) if isinstance(layer, KvitLayer) else copy.deepcopy(layer) for layer in self.layers
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


def _layer(theirs: Any, decoder: PretrainedConfig, options: dict[str, Any], padding: Padding) -> KvitLayer:
    """Ours for a layer of transformers' own cache with K and V."""
    if not hasattr(theirs, "update_recurrent_state"):
        return KvitLayer(decoder, options, padding)
    from kvit.transformers.state_layer import KvitStateLayer  # which few models have

    return KvitStateLayer(decoder, options, padding, theirs.number_of_states)


def _refuse(decoder: PretrainedConfig) -> None:
    """Raise KernelMissing for a model with layers whose attention kvit does not know."""
    known = {"full_attention", "sliding_attention", "chunked_attention"}
    with_states = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}
    others = sorted({*(getattr(decoder, "layer_types", None) or ())} - known - with_states - {"moe", "mlp"})
    if others:
        raise KernelMissing(
            f"the model has layers of {', '.join(others)}; kvit's attention does {', '.join(sorted(known))}. "
            "Use another attn_implementation for this model"
        )
    if "reuse" in (getattr(decoder, "kv_sharing_modes", None) or ()):
        raise KernelMissing(
            "the model has layers that attend to K and V of other layers; kvit's cache for transformers stores those "
            "of each layer for itself. Use another attn_implementation for this model"
        )
