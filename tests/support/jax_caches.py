"""Caches of support.appends in JAX's arrays: the same bytes, for kvit.jax and the reference side by side."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvit.jax
from kvit import reference
from support.appends import Setup
from support.caches import NO_PAGE, parameters_of

ONE_NEW = [37, 3, 1, 20]  # lengths of sequences that each have a new token


class JaxCase(Setup):
    """A cache twice: in the reference's words, full of poison, and `arrays` of the same bytes in JAX."""

    def __init__(self, rng: np.random.Generator, pair: Any = (None, None), **shape: Any):
        super().__init__(rng, pair, **shape)
        self.place = jax.devices("cpu" if self.device == "host" else "gpu")[0]
        slots = np.full((len(self.table.lengths), 4), NO_PAGE, np.int32)
        for row, pages in zip(slots, self.table.pages, strict=True):
            row[: len(pages)] = pages
        lengths = np.array(self.table.lengths, np.int32)
        self.dense = kvit.jax.TableArrays(self.put(slots), self.put(lengths))
        self.ragged = kvit.jax.TableArrays(
            self.put(np.concatenate(self.table.pages).astype(np.int32)),
            self.put(lengths),
            self.put(np.cumsum([0, *map(len, self.table.pages)]).astype(np.int32)),
        )

    def put(self, array: np.ndarray) -> jax.Array:
        """A copy in JAX: it may read numpy's memory in place, which tests go on to write."""
        return jnp.array(jax.device_put(np.array(array), self.place), copy=True)

    @property
    def arrays(self) -> kvit.jax.CacheArrays:
        """New arrays of what the reference's cache holds now."""
        names = tuple(codec.name for codec in self.view.codecs)
        words = {word: self.put(array) for word, array in parameters_of(names, self.host).items()}
        return kvit.jax.CacheArrays(
            self.put(self.host["k"]), self.put(self.host["v"]), layout=self.cache.layout, kv=names, **words
        )

    def indptr(self, counts: Any) -> jax.Array:
        """Where each sequence's rows begin."""
        return self.put(np.cumsum([0, *counts]).astype(np.int32))

    def fill(self) -> None:
        """Random rows for all tokens of all sequences, by the reference."""
        k, v = self.rows(self.table.lengths)
        reference.append(self.cache, self.table, k, v, self.table.lengths)

    def assert_holds_the_references(self, arrays: kvit.jax.CacheArrays) -> None:
        """Every byte."""
        for name, want in self.host.items():
            found = getattr(arrays, name)
            found = getattr(arrays, name.replace("params", "scale")) if found is None else found
            np.testing.assert_array_equal(bits_of(found), want.view(np.uint8), err_msg=name)


def bits_of(array: jax.Array) -> np.ndarray:
    """Its bytes."""
    return np.asarray(array).view(np.uint8)
