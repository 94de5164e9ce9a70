"""A kvit_cache of the host with sequences that share pages, as C sees it, for tests of calls that do not end well."""

from __future__ import annotations

from ctypes import byref, c_int32, c_int64, c_void_p, pointer
from itertools import starmap
from typing import Any

import numpy as np

from support import capi
from support.caches import BFLOAT16, new_tokens

PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM = 10, 4, 1, 64


class SharedPages:
    """Three sequences of which two have pages in common, what each held, and arguments of calls that change them."""

    def __init__(self, api: capi.Api):
        rng = np.random.default_rng(0)
        self.api, self.table = api, api.table
        options = capi.options(
            capi.CacheOptions, pages=PAGES, page_size=PAGE_SIZE, kv_heads=KV_HEADS, head_dim=HEAD_DIM, device_type=1
        )
        self.cache = api.make("cache_create", options)
        self.place = c_void_p()  # of a handle that a call gives
        self.first, self.second = self.grown(new_tokens(rng, 6, KV_HEADS)), self.grown(new_tokens(rng, 7, KV_HEADS))
        self.third = api.make("sequence_fork", self.second)
        self.sequences = [self.first, self.second, self.third]
        self.new = new_tokens(rng, 6, KV_HEADS)
        self.q, self.out = np.zeros((3, 2, HEAD_DIM), BFLOAT16), np.zeros((3, 2, HEAD_DIM), BFLOAT16)
        self.memory = {name: capi.tensor(rows) for name, rows in
                       (("k", self.new[0]), ("v", self.new[1]), ("q", self.q), ("out", self.out))}  # fmt: skip
        self.before = [self.read(sequence) for sequence in self.sequences]

    def grown(self, rows: np.ndarray) -> c_void_p:
        sequence = self.api.make("sequence_create", self.cache)
        k, v = (pointer(capi.tensor(side)) for side in rows)
        self.api.cache_append(self.cache, byref(sequence), 1, k, v, None, None)
        return sequence

    def arguments(self, name: str) -> tuple[Any, ...]:
        """What the function of the table of that name is given."""
        all_three = (c_void_p * 3)(*[sequence.value for sequence in self.sequences])
        k, v, q, out = (byref(self.memory[name]) for name in ("k", "v", "q", "out"))
        return {
            "cache_append": (self.cache, all_three, 3, k, v, None, None),
            "cache_attention": (self.cache, all_three, 3, q, out, None, None, 0.0, 0, None),
            "sequence_fork": (self.first, byref(self.place)),
            "sequence_create": (self.cache, byref(self.place)),
            "sequence_truncate": (self.second, 3),
            "sequence_destroy": (self.second,),
        }[name]

    def call(self, name: str, statuses: list[int]) -> None:
        """Call a function of the table. Its status is in the list before Python looks at signals again."""
        statuses.extend(starmap(getattr(self.table, name), [self.arguments(name)]))

    def read(self, sequence: c_void_p) -> np.ndarray:
        """K and V of a sequence, through cache_gather."""
        count = self.api.ask("sequence_query", sequence, capi.SequenceInfo).length
        rows = np.zeros((2, count, KV_HEADS, HEAD_DIM), BFLOAT16)
        k, v = (pointer(capi.tensor(side)) for side in rows)
        self.api.cache_gather(self.cache, byref(sequence), 1, k, v, None)
        return rows

    def pages_of(self, sequence: c_void_p) -> list[int]:
        pages, count = (c_int32 * PAGES)(), c_int64()
        self.api.sequence_pages(sequence, pages, PAGES, byref(count))
        return list(pages[: count.value])

    def is_live(self, sequence: c_void_p) -> bool:
        return self.table.sequence_query(sequence, byref(capi.SequenceInfo(24))) == 0

    def check(self) -> dict[str, bool]:
        """Every sequence holds what it held before a call or what it holds after it, and no page is lost.

        Returns which calls are to be seen.
        """
        seqs = [sequence for sequence in (*self.sequences, self.place) if sequence.value and self.is_live(sequence)]
        has = [self.read(sequence) for sequence in seqs]
        seen = {
            "cache_append": has[0].shape[1] > 6,
            "cache_attention": False,
            "sequence_truncate": self.is_live(self.second) and has[1].shape[1] == 3,
            "sequence_destroy": not self.is_live(self.second),
            "sequence_fork": bool(self.place.value),
            "sequence_create": bool(self.place.value),
        }
        shares = np.split(self.new, 3, axis=1) if seen["cache_append"] else [self.new[:, :0]] * 3
        expected = [np.concatenate([rows, share], axis=1) for rows, share in zip(self.before, shares, strict=True)]
        if seen["sequence_truncate"]:
            expected[1] = self.before[1][:, :3]
        if seen["sequence_destroy"]:
            del expected[1]
        for rows, wanted in zip(has, expected, strict=False):  # the place's own is empty, or the first's copy
            np.testing.assert_array_equal(rows, wanted)
        pages = [self.pages_of(sequence) for sequence in seqs]
        assert all(len(ids) == -(-rows.shape[1] // PAGE_SIZE) for ids, rows in zip(pages, has, strict=True))
        free = self.api.ask("cache_query", self.cache, capi.CacheInfo).num_free_pages
        assert free == PAGES - len(set().union(*pages))
        return seen

    def close(self) -> None:
        for sequence in (*self.sequences, self.place):
            if sequence.value and self.is_live(sequence):
                self.api.sequence_destroy(sequence)
        assert self.api.ask("cache_query", self.cache, capi.CacheInfo).num_free_pages == PAGES
        self.api.cache_destroy(self.cache)
