"""What the custom operators do: kvit's calls on the memory of PyTorch's tensors, on PyTorch's current stream."""

from __future__ import annotations

from typing import Any

import torch

from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.layouts.views import PageTable
from kvit.ops.kept import KeptOperations

kept = KeptOperations()
"""Every operator's operations, of all devices."""

Arguments = dict[str, Any]
"""Of an operator, by name. Tensors that are None may be missing; so may numbers and words that have their default."""

WRITTEN = ("k_cache", "v_cache", "k_params", "v_params", "q")
"""Tensors that append writes."""

_OF_CACHE = ("layout", "page_size", "k_codec", "v_codec")
_TENSORS_OF_CACHE = ("k_params", "v_params", "k_scale", "v_scale")


class Call:
    """One call: its arguments as kvit reads them, the cache and the table of these, and the stream.

    given  arguments of the operator
    dtype  of the rows that come with the call: what a cache of float8 is for
    """

    def __init__(self, given: Arguments, dtype: torch.dtype | None):
        self._given = given
        pool = given["k_cache"]
        if pool.is_cuda:
            self._handle = torch.cuda.current_stream(pool.device).cuda_stream
            self.stream = Stream.wrap(self._handle, f"cuda:{pool.device.index}")
        else:
            self._handle = 0
            self.stream = Stream.default("host")
        self.view = kept.view(
            self.tensor("k_cache"),
            self.tensor("v_cache"),
            dtype=dtype,
            **self.rest(*_OF_CACHE),
            **self.tensors(*_TENSORS_OF_CACHE),
        )
        indptr, numbers = self.tensor("indptr"), self.tensor("pages")
        of_pages = {"pages": numbers} if indptr is None else {"indices": numbers}
        self.table = PageTable(**of_pages, indptr=indptr, lengths=self.tensor("lengths"))

    def read(self, tensor: torch.Tensor) -> Tensor:
        """The tensor's memory. Who wants gradients was refused before."""
        return Tensor.wrap(tensor.detach() if tensor.requires_grad else tensor, stream=self._handle)

    def tensor(self, name: str) -> Any:
        """The memory of the argument of this name, which is used up; None where there is none."""
        tensor = self._given.pop(name, None)
        return None if tensor is None else self.read(tensor)

    def tensors(self, *names: str) -> dict[str, Any]:
        """The memory of several, by name."""
        return {name: self.tensor(name) for name in names}

    def rest(self, *names: str) -> dict[str, Any]:
        """Numbers and words of these names that were given, which are used up; all that are left without names."""
        found = {name: self._given.pop(name) for name in names or tuple(self._given) if name in self._given}
        return found


def attend(given: Arguments, wants_lse: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(out, lse) of kvit.Attention, in tensors that PyTorch allocates."""
    q = given.pop("q")
    call = Call(given, q.dtype)
    brought = call.tensors("query_indptr", "spans", "tree")
    kept_arrays = call.tensors("sinks", "alibi", "temperature")
    window = call.rest("window_left", "window_right")
    operation = kept.attention(
        call.view,
        q.shape[1] if q.ndim == 3 else 0,
        call.stream,
        window=(window.get("window_left"), window.get("window_right")),
        spans=brought["spans"] is not None,
        tree=brought["tree"] is not None,
        **kept_arrays,
        **call.rest(),
    )
    out = q.new_empty((*q.shape[:2], call.view.v_dim))
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if wants_lse else None
    into = {"out": call.read(out), "lse": None if lse is None else call.read(lse)}
    operation(call.read(q), call.view, call.table, stream=call.stream, **into, **brought)
    return out, lse


def append(given: Arguments) -> None:
    """kvit.Append into the cache; q is turned in place."""
    written = [tensor for name in WRITTEN if (tensor := given.get(name)) is not None and not tensor.is_inference()]
    call = Call(given, given["k"].dtype)
    k, v = call.tensor("k"), call.tensor("v")
    brought = call.tensors("query_indptr", "q", "k_bias", "v_bias", "q_bias", "prefix_lengths", "positions")
    operation = kept.append(call.view, call.stream, **call.tensors("k_norm", "q_norm"), **call.rest())
    operation(k, v, call.view, call.table, stream=call.stream, **brought)
    torch.autograd.graph.increment_version(written)  # so that autograd sees who overwrites what it has saved


def gather(given: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """(k, v) of kvit.Gather, in tensors that PyTorch allocates."""
    pool, tokens = given["k_cache"], given.pop("tokens")
    call = Call(given, given.pop("dtype", None))
    view = call.view
    dtype = getattr(torch, view.dtype.name)
    k, v = (pool.new_empty((tokens, view.kv_heads, channels), dtype=dtype) for channels in (view.k_dim, view.v_dim))
    kept.gather(view, call.stream)(
        view, call.table, out=(call.read(k), call.read(v)), stream=call.stream, **call.tensors("query_indptr")
    )
    return k, v
