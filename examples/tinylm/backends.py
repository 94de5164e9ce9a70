"""Where the model's K and V live and who attends to them: kvit's pages and kernels, or kvit.reference.

Both are model.Attend callables and round q, k, v and the result to float16, so that they differ in nothing but the
order and precision of the sums between: the reference adds in float64. float16 and not bfloat16: after RMSNorm and
projection K and V are of order 1, far from float16's ends, and its three more bits of significand keep the two results
eight times closer, so that both find the same byte the most likely one.
"""

from __future__ import annotations

import numpy as np
from model import Config

import kvit
import kvit.reference

PAGE_SIZE = 16  # tokens


class PagedAttention:
    """A kvit.PagedCache of all layers, which holds one sequence.

    capacity   tokens that the pages must hold
    device     "host", "cuda:0", ...
    k, v       how K and V are stored, as kvit.PagedCache says; float16 if absent

    Raises kvit.NoGpuError, kvit.DeviceError: the device cannot be used; kvit.KernelMissing: k and v do not go together.
    Calls raise kvit.CacheFull beyond the capacity.
    """

    def __init__(self, config: Config, capacity: int, device: str, k: str | None = None, v: str | None = None):
        self.device = device
        self._cache = kvit.PagedCache(
            pages=-(-capacity // PAGE_SIZE),
            page_size=PAGE_SIZE,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            layers=config.layers,
            dtype="float16",
            k=k,
            v=v,
            device=device,
        )
        self._sequence = self._cache.sequence()
        self._step: kvit.Step | None = None  # through the layers of one call of the model

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        if layer == 0:
            self._step = None  # of a call that did not come to its end
            self._step = self._cache.step([self._sequence], len(q))
        place, step = self._cache.layer(layer), self._step
        place.append(step, self._place(k), self._place(v))
        out = kvit.attention(self._place(q), place, step).numpy().astype(np.float32)
        if layer == self._cache.num_layers - 1:
            step.commit()
        return out

    def _place(self, x: np.ndarray) -> kvit.Buffer:
        return kvit.Buffer.from_numpy(x.astype(np.float16), self.device)

    def memory(self) -> str:
        """The pages in use, as a sentence; pages hold K and V of PAGE_SIZE tokens."""
        tokens, pages, layers = len(self._sequence), len(self._sequence.pages), self._cache.num_layers
        page_bytes = self._cache.nbytes // self._cache.num_pages  # of all layers
        return (
            f"{tokens} tokens of K and V in {layers} layers x {pages} pages of {PAGE_SIZE} tokens: "
            f"{pages * page_bytes:,} bytes"
        )


class ReferenceAttention:
    """kvit.reference.attention over K and V in plain arrays: shares no page and no kernel with PagedAttention."""

    device = "kvit.reference"

    def __init__(self, config: Config):
        empty = np.empty((0, config.kv_heads, config.head_dim), np.float16)
        self._kv = [(empty, empty)] * config.layers

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        stored = tuple(
            np.concatenate([old, new.astype(np.float16)]) for old, new in zip(self._kv[layer], (k, v), strict=True)
        )
        self._kv[layer] = stored
        out, _ = kvit.reference.attention(q.astype(np.float16), *stored).rounded(np.float16)
        return out.astype(np.float32)

    def memory(self) -> str:
        """The arrays' size, as a sentence."""
        stored = sum(k.nbytes + v.nbytes for k, v in self._kv)
        return f"{len(self._kv[0][0])} tokens of K and V in {len(self._kv)} layers: {stored:,} bytes"
