"""One kind of step of a model: its tensors have their places in memory, and a CUDA graph repeats it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import ModelOutput

from kvit.errors import KvitError


class CudaGraph:
    """Work of one stream, captured once and repeated by replay().

    stream  torch.cuda.Stream that is captured; a replay goes to PyTorch's current stream
    pool    torch.cuda.graph_pool_handle(), of memory that graphs share which are not replayed side by side
    """

    def __init__(self, stream: Any, pool: Any):
        self._stream, self._pool = stream, pool
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, call: Callable[[], Any]) -> Any:
        """What `call` returns, whose tensors replays write anew. Nothing of the call runs before the first replay."""
        # Other threads may go on calling CUDA.
        with torch.cuda.graph(self._graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            return call()

    def replay(self) -> None:
        """Do the captured work once more."""
        self._graph.replay()


class StaticStep:
    """A call of a model with arguments of the same shapes each time: run once, then captured, then replayed.

    call    the model's forward, which takes the tensors by their names
    inputs  tensors of the first call: their names, shapes and dtypes
    device  of the model, as PyTorch calls it
    """

    def __init__(self, call: Callable[..., Any], inputs: dict[str, torch.Tensor], device: torch.device):
        self._call = call
        self._inputs = {name: torch.empty(x.shape, dtype=x.dtype, device=device) for name, x in inputs.items()}
        self._graph: Any = None
        self._outputs: Any = None
        self._is_warm = False  # libraries have made what they keep, and kvit its operations
        self._held: Any = None  # what the graph reads

    @property
    def is_captured(self) -> bool:
        """Whether a graph stands for the step."""
        return self._graph is not None

    def run(self, inputs: dict[str, torch.Tensor], new_graph: Callable[[], Any], kept: Callable[[], Any]) -> Any:
        """The model's output for these inputs, in memory that the next run writes anew.

        new_graph  makes a CudaGraph; returns None where there are no graphs
        kept       what kvit keeps for its calls, and a graph of them reads

        Raises KvitError (the step cannot be captured).
        """
        for name, x in inputs.items():
            self._inputs[name].copy_(x)
        if self._graph is None:
            graph = new_graph() if self._is_warm else None
            if graph is None:
                self._is_warm = True
                return self._call(**self._inputs)
            self._outputs = self._captured(graph)
            self._graph, self._held = graph, kept()
        self._graph.replay()
        return self._outputs

    def _captured(self, graph: Any) -> Any:
        try:
            return graph.capture(lambda: self._call(**self._inputs))
        except KvitError:
            raise
        except RuntimeError as error:
            raise KvitError(
                "this model's step cannot be captured into a CUDA graph, most often since it asks the GPU for a number "
                "on its way (experts that are chosen in Python do). Generate without DecodeGraphs, or, where experts "
                f"are the reason, try another experts_implementation of transformers. PyTorch says: {error}"
            ) from error


def copied(output: Any) -> Any:
    """What a model returned, with copies of its tensors in place of those that the next step writes anew."""
    if isinstance(output, torch.Tensor):
        return output.clone()
    if isinstance(output, ModelOutput):
        return type(output)(**{name: copied(part) for name, part in output.items()})
    if isinstance(output, dict):
        return {name: copied(part) for name, part in output.items()}
    if isinstance(output, tuple | list):
        return type(output)(copied(part) for part in output)
    return output
