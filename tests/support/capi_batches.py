"""A kvit_batch through the table of C, beside the kvit.Batch of which it must have the bits."""

from __future__ import annotations

from ctypes import byref, c_void_p
from typing import Any

import numpy as np

import kvit
from support import capi
from support.capi_layers import LayeredCache, given, numbers


class Batched(LayeredCache):
    """The two caches, with sequences 0 and 1 of 10 and 3 tokens, and a batch of them in both."""

    def __init__(
        self,
        api: capi.Api,
        rng: np.random.Generator,
        device: str = "host",
        fields: dict[str, Any] | None = None,
        words: dict[str, Any] | None = None,
        stream: kvit.Stream | None = None,
    ):
        super().__init__(api, fields or {"num_layers": 3}, words or {"layers": 3}, device)
        self.append_all(rng, [self.sequence(), self.sequence()], [10, 3])
        self.stream = stream
        self.batches: list[c_void_p] = []
        self.batch = self.make([0, 1])
        self.theirs_batch = kvit.Batch(self.python, self.theirs[:2])

    def make(self, indices: list[int], **fields: Any) -> c_void_p:
        """A kvit_batch."""
        stream = None if self.stream is None else self.stream.handle
        options, batch = capi.options(capi.BatchOptions, **({"stream": stream} | fields)), c_void_p()
        self.api.batch_create(*self.chosen(indices), byref(options), byref(batch))
        self.batches.append(batch)
        return batch

    def use(self, indices: list[int]) -> None:
        self.api.batch_use(self.batch, *self.chosen(indices)[1:])
        self.theirs_batch.use([self.theirs[i] for i in indices])

    def begin(self, new_tokens: list[int] | None = None) -> tuple[c_void_p, Any]:
        """A step of both batches."""
        step = c_void_p()
        self.api.batch_step(self.batch, numbers(new_tokens), byref(step))
        self.steps.append(step)
        return step, self.theirs_batch.step(new_tokens or 1)

    def batch_info(self) -> capi.BatchInfo:
        return self.api.ask("batch_query", self.batch, capi.BatchInfo)

    def close(self) -> None:
        for batch in self.batches:
            self.api.table.batch_destroy(batch)  # some are gone already
        super().close()


def write(
    cache: LayeredCache, step: tuple[c_void_p, Any], rng: np.random.Generator, layers: Any, count: int
) -> dict[int, Any]:
    """K and V of new tokens in layers of both steps; the rows."""
    rows = {}
    for layer in layers:
        rows[layer] = k, v = cache.rows(rng, layer, count)
        cache.api.step_append(step[0], layer, given(k), given(v), None, None)
        cache.python.layer(layer).append(step[1], k, v)
    return rows


def end(cache: LayeredCache, step: tuple[c_void_p, Any]) -> None:
    cache.api.step_commit(step[0])
    step[1].commit()
