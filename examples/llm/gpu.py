"""The model on a GPU: weights and activations in CuPy, K and V in kvit's pages, a step for one token as one graph."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from model import Config, Decoder
from paged import HostEngine, PagedLayers

import kvit

SCRATCH = 256 << 20  # bytes in which the captured step computes; its arrays are never given back to others

# A row of weights times the one token: a sum for each output. CuPy has no other product that a graph may hold, since
# it calls no cuBLAS while a stream is being captured.
_times_token = cupy.ReductionKernel("T w, T x", "T y", "w * x", "a + b", "y = a", "0", "times_token")


class CupyDecoder(Decoder):
    """Decoder whose arrays are CuPy's."""

    def project(self, x: cupy.ndarray, name: str) -> cupy.ndarray:
        """x [tokens, inputs] through the weights [outputs, inputs] of that name."""
        weights = self.weights[name]
        return _times_token(weights, x, axis=1)[None] if len(x) == 1 else x @ weights.T


class GpuEngine(HostEngine):
    """HostEngine on a GPU. The second single token in a row captures its step in a graph, and later ones launch it."""

    def __init__(
        self,
        config: Config,
        tensors: dict[str, np.ndarray],
        capacity: int,
        k: str | None = None,
        v: str | None = None,
        device: str = "cuda:0",
    ):
        kvit.Device.of(device)  # says what is wrong with a device before CuPy does
        self.device = device
        self._ordinal = cupy.cuda.Device(int(device.partition(":")[2]))
        self._ordinal.use()
        self._stream = kvit.Stream(device)
        self._current = cupy.cuda.ExternalStream(self._stream.handle)
        self._pool = cupy.cuda.MemoryPool()
        self._graph: kvit.Graph | None = None
        self._has_stepped = False
        with self._current:
            self._model = CupyDecoder(config, {name: cupy.asarray(tensor) for name, tensor in tensors.items()})
            self.layers = PagedLayers(config, capacity, device, k, v, cupy, self._stream)
            self._token = cupy.zeros(1, np.int64)
        self._length = 0

    def _scored(self, tokens: np.ndarray) -> np.ndarray:
        self._ordinal.use()
        with self._current:
            if len(tokens) == 1:
                return self._stepped(tokens)
            self.layers.length.fill(self._length + len(tokens))
            hidden = self._model.hidden(cupy.asarray(tokens), None, self.layers)
            return self._model.logits(hidden[-1:])[0].get(stream=self._current)

    def _stepped(self, tokens: np.ndarray) -> np.ndarray:
        """The step of one token, which the graph holds: it reads the token and the length from memory."""
        self._token.set(np.asarray(tokens, np.int64), stream=self._current)
        self.layers.length.fill(self._length + 1)
        if self._graph is None and self._has_stepped:
            self._graph = self._captured()
        if self._graph is not None:
            self._graph.launch(self._stream)
            return self._logits[0].get(stream=self._current)
        # The first step runs as it is: it compiles CuPy's kernels and loads kvit's, which a capture does not allow.
        self._has_stepped = True
        return self._step()[0].get(stream=self._current)

    def _step(self) -> cupy.ndarray:
        return self._model.logits(self._model.hidden(self._token, None, self.layers))

    def _captured(self) -> kvit.Graph:
        with cupy.cuda.using_allocator(self._pool.malloc):
            # Nothing may be allocated during a capture. What is freed here stays in the pool, in one piece.
            cupy.empty(SCRATCH, np.uint8)
            with kvit.Graph.capture(self._stream) as graph:
                self._logits: Any = self._step()
        return graph
