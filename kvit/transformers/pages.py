"""The pages of all layers of a model: one kvit.PagedCache on each device, whose layers come as their first K does."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from kvit.cache.layer import CacheLayer
from kvit.cache.layers import LayerSpec
from kvit.cache.operations import CachedOperations
from kvit.cache.paged_cache import PagedCache
from kvit.errors import DeviceError, DtypeError
from kvit.layouts.views import CacheView
from kvit.transformers.latent import are_latent


class ModelPages:
    """K and V of a model's layers in pages: one page table for all layers of a device. Forks of a KvitCache share it.

    config   of the model's decoder
    options  of PagedCache, but for kv_heads, head_dim, dtype and device, which the first K of a layer tells
    scales   (k_scale, v_scale) of each layer of the model
    """

    def __init__(self, config: PretrainedConfig, options: dict[str, Any], scales: list[tuple[Any, Any]]):
        self.config, self.options = config, options
        self.caches: dict[tuple[str, str], PagedCache] = {}  # by device and dtype: one of each in most models
        self.scales = scales
        self._layers: dict[int, CacheLayer] = {}  # by their index in the model
        self._entry_operations: dict[int, CachedOperations] = {}  # by the group of layers whose queries they take

    def find(self, index: int) -> CacheLayer | None:
        """Layer `index` of the model in its pages, if it has any yet."""
        return self._layers.get(index)

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> CacheLayer:
        """Layer `index` of the model in its pages, which are made for rows like these unless there are some.

        key, value  [batch, kv_heads, tokens, channels]. Latent rows and their rotary parts, which models with MLA
                    give, lie side by side and are stored once; so is one tensor that is both

        Raises DtypeError, DeviceError, and what PagedCache and its add_layers raise.
        """
        found = self._layers.get(index)
        if found is None:
            found = self._layers[index] = self._new_layer(index, key, value)
        return found

    def entry_operations(self, stored: CacheLayer, view: CacheView) -> CachedOperations:
        """Operations of all layers like `stored` on entries that models keep beside tokens, in views like this one."""
        group = stored.place.group
        found = self._entry_operations.get(id(group))
        if found is None:
            found = self._entry_operations[id(group)] = CachedOperations(view, group.faults)
        return found

    def _new_layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> CacheLayer:
        if key.dtype not in (torch.bfloat16, torch.float16):
            raise DtypeError(
                f"the model computes in {key.dtype} and kvit in bfloat16 or float16; "
                "load the model with dtype=torch.bfloat16"
            )
        k_dim, v_dim = key.shape[-1], value.shape[-1]
        shares_kv = are_latent(self.config, key, value)
        if shares_kv:
            k_dim, v_dim = k_dim + v_dim, k_dim
        shares_kv = shares_kv or key is value
        k_scale, v_scale = self.scales[index]
        device = device_of(key)
        kind = device, str(key.dtype)
        if kind in self.caches:
            spec = LayerSpec(
                kv_heads=key.shape[1], head_dim=k_dim, v_dim=v_dim, shares_kv=shares_kv, k_scale=k_scale,
                v_scale=v_scale,
            )  # fmt: skip
            [layer] = self.caches[kind].add_layers([spec])
            return layer
        self.caches[kind] = PagedCache(
            kv_heads=key.shape[1], head_dim=k_dim, v_dim=v_dim, shares_kv=shares_kv, dtype=key.dtype, device=device,
            k_scale=k_scale, v_scale=v_scale, **self.options,
        )  # fmt: skip
        return self.caches[kind].layer(0)


def device_of(states: torch.Tensor) -> str:
    """The name of a tensor's device in kvit. Raises DeviceError."""
    if states.device.type == "cpu":
        return "host"
    if states.device.type == "cuda":
        return f"cuda:{states.device.index}"
    raise DeviceError(f"the model is on {states.device}; kvit computes on CUDA GPUs and on the CPU")
