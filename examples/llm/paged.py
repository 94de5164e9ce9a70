"""K and V of one conversation in kvit's pages, and a model that answers with them: on the host, or (gpu.py) on a GPU.

    tokens -> model.py, a layer -> q, k, v in float16
                                   kvit.Append      rotates q and k, writes k and v into the layer's pages
                                   kvit.Attention   attends q to all tokens of those pages
           -> model.py, the next layer

All layers share one pool of pages, of which each has its own part, and one length, which lies where the kernels read
it. So a step is the same calls with the same arguments each time, and on a GPU one graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from model import Config, Decoder

import kvit

PAGE_SIZE = 64  # tokens


class PagedLayers:
    """K and V of one sequence in all layers, and attention to them: a model.Attend that turns q and k itself.

    capacity  tokens that the pages must hold
    device    "host", "cuda:0", ...
    k, v      how K and V are stored, as kvit.PagedCache says; float16 if absent
    arrays    the module of arrays on the device: numpy, or cupy
    stream    of the calls; the device's default stream if absent

    `length`, int32 [1] on the device, counts the tokens in the pages, those of the running call among them.

    Raises kvit.NoGpuError, kvit.DeviceError: the device cannot be used; kvit.KernelMissing: k and v do not go together.
    """

    def __init__(
        self,
        config: Config,
        capacity: int,
        device: str,
        k: str | None = None,
        v: str | None = None,
        arrays: Any = np,
        stream: kvit.Stream | None = None,
    ):
        pages = -(-capacity // PAGE_SIZE)
        self.capacity, self.device = pages * PAGE_SIZE, device
        self._query_heads, self._arrays, self._stream = config.query_heads, arrays, stream
        memory = kvit.PagedCache(
            config.layers * pages,
            PAGE_SIZE,
            config.kv_heads,
            config.head_dim,
            dtype="float16",
            k=k,
            v=v,
            device=device,
        )
        self.nbytes, self._view = memory.nbytes, memory.view
        self.length = arrays.zeros(1, np.int32)
        ids = arrays.arange(config.layers * pages, dtype=np.int32).reshape(config.layers, 1, pages)
        self._tables = [kvit.PageTable(pages=own, lengths=self.length) for own in ids]
        self._append = kvit.Append(self._view, rope=kvit.Rope(config.head_dim, config.rope_base))
        self._attentions: dict[int, kvit.Attention] = {}

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.astype(np.float16) for x in (q, k, v))
        self._append(k, v, self._view, self._tables[layer], q=q, stream=self._stream)
        out = self._arrays.empty_like(q)
        attention = self._attention(len(q))
        attention(q, self._view, self._tables[layer], out=out, stream=self._stream)
        return out.astype(np.float32)

    def _attention(self, tokens: int) -> kvit.Attention:
        """The operation for calls of about so many new tokens: one for each power of two."""
        most = 1 << (tokens - 1).bit_length()
        if most not in self._attentions:
            self._attentions[most] = self._new_attention(most)
        return self._attentions[most]

    def _new_attention(self, tokens: int) -> kvit.Attention:
        sizes = {"query_heads": self._query_heads, "tokens_per_sequence": tokens}
        if self.device == "host":
            # Emulated, a kernel without asynchronous copies is the quickest. It is built for some codecs only.
            try:
                return kvit.Attention(self._view, kernel={"copies": "registers", "rows": 8}, **sizes)
            except kvit.KernelMissing:
                return kvit.Attention(self._view, kernel={"copies": "cp_async", "rows": 8}, **sizes)
        return kvit.Attention(self._view, **sizes)

    def memory(self) -> str:
        """The pages, as a sentence."""
        return f"K and V of {self.capacity:,} tokens in {self.nbytes:,} bytes: {self._view.holds}"

    def check(self) -> None:
        """Raise kvit.PageTableError if a kernel met a fault."""
        self._append.check()
        for attention in self._attentions.values():
            attention.check()


class HostEngine:
    """A model that reads tokens and says what may follow, in numpy. It remembers all tokens that it was given.

    capacity, k, v   as PagedLayers says
    """

    device = "host"

    def __init__(
        self, config: Config, tensors: dict[str, np.ndarray], capacity: int, k: str | None = None, v: str | None = None
    ):
        self._model = Decoder(config, tensors)
        self.layers = PagedLayers(config, capacity, self.device, k, v)
        self._length = 0

    def __len__(self) -> int:
        """How many tokens it remembers."""
        return self._length

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """Read more tokens [tokens], all in one pass. Returns logits [vocab], float32, of what follows the last one.

        Raises kvit.CacheFull beyond the capacity; nothing is read then, as after an exception on the way.
        """
        end = self._length + len(tokens)
        if end > self.layers.capacity:
            raise kvit.CacheFull(
                f"{end} tokens do not fit in pages of {self.layers.capacity}; make more of them, or forget some"
            )
        logits = self._scored(tokens)
        self._length = end
        return logits

    def _scored(self, tokens: np.ndarray) -> np.ndarray:
        self.layers.length[:] = self._length + len(tokens)
        return self._model.logits(self._model.hidden(tokens, None, self.layers)[-1:])[0]

    def forget(self, length: int = 0) -> None:
        """Remember only the first `length` tokens. What is behind them in the pages is written over."""
        self._length = min(self._length, length)
