"""Graphs of PyTorch's and kvit's work on the CPU, as CUDA has them: what was captured is done again in the same memory.

Whatever Python decided or computed while it was captured stays as it was then, which is what a test wants to see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kvit.ops.append import Append
from kvit.ops.attention import Attention

# What gives Python a number of a tensor, or a shape that its numbers decide: an error in a capture of CUDA.
WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero",
         "aten::masked_select", "aten::_unique2"}  # fmt: skip


class HostGraph:
    """In place of kvit.transformers' CudaGraph. Made by a HostGraphs, whose calls of kvit it records."""

    def __init__(self, recorders: list[list[Callable[[], object]]]):
        self._recorders = recorders
        self._work: list[Callable[[], object]] = []

    def capture(self, call: Callable[[], Any]) -> Any:
        """What `call` returns. It runs, and leaves what was there before as it was."""
        mode = _Record(self._work)
        self._recorders.append(self._work)
        try:
            with mode:
                return call()
        finally:
            self._recorders.pop()
            mode.undo()

    def replay(self) -> None:
        """Do the recorded work once more."""
        with torch.no_grad():
            for work in self._work:
                work()


class _Record(TorchDispatchMode):
    def __init__(self, work: list[Callable[[], object]]):
        super().__init__()
        self._work = work
        self._made: set[int] = set()  # storages of the capture's own
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.name().split(".")[0] in WAITS:
            raise RuntimeError(f"{func} waits for the GPU: operation not permitted when stream is capturing")
        schema = func._schema
        written = [
            kwargs.get(argument.name, args[i] if i < len(args) else None)
            for i, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in written:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._made:
                self._before.append((tensor, tensor.clone()))
        out = func(*args, **kwargs)
        outs = out if isinstance(out, tuple | list) else [out]
        if written:
            self._work.append(lambda: func(*args, **kwargs))
        elif not any(returned.alias_info is not None for returned in schema.returns):
            self._made |= {x.untyped_storage().data_ptr() for x in outs if isinstance(x, torch.Tensor)}
            self._work.append(lambda: _again(func, args, kwargs, outs))
        return out

    def undo(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)


def _again(func: Any, args: Any, kwargs: Any, outs: Any) -> None:
    found = func(*args, **kwargs)
    for old, new in zip(outs, found if isinstance(found, tuple | list) else [found], strict=True):
        if isinstance(old, torch.Tensor):
            old.copy_(new)


class HostGraphs:
    """Records the calls of kvit that are made while a HostGraph is captured.

    made  the graphs so far
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.made: list[HostGraph] = []
        self._recorders: list[list[Callable[[], object]]] = []
        for operation in (Append, Attention):
            monkeypatch.setattr(operation, "__call__", self._recording(operation.__call__))

    def new(self, *_: object) -> HostGraph:
        """In place of DecodeGraphs._new_graph."""
        self.made.append(HostGraph(self._recorders))
        return self.made[-1]

    def _recording(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self._recorders:
                self._recorders[-1].append(lambda: call(*args, **kwargs))
            return call(*args, **kwargs)

        return recorded
