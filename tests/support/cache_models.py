"""A PagedCache beside plain lists of its tokens: random calls that may be broken off, and what must hold then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import kvit
from kvit import reference
from support.caches import BFLOAT16, assert_cache_attention, new_tokens, to_device

# Makes a call and says whether it came to its end; what broke it off is its own.
Attempt = Callable[[Callable[[], Any]], bool]
_ACTIONS = ("start", "fork", "append", "append", "append", "truncate", "free", "forget", "defragment", "read", "attend")
# How K and V are stored, and how they are after a requantise.
_NEXT = {
    ("bfloat16", "bfloat16"): ("int8", "int4"),
    ("int8", "int8"): ("int8", "int4"),
    ("int8", "int4"): ("bfloat16", "bfloat16"),
    ("int4", "int4"): ("bfloat16", "bfloat16"),
}


def undisturbed(call: Callable[[], Any]) -> bool:
    """An attempt that nothing breaks off."""
    call()
    return True


class CacheModel:
    """A small pool of pages, nearly full most of the time, and what each of its sequences must hold."""

    def __init__(self, rng: np.random.Generator, device: str = "host"):
        self.rng = rng
        self.num_pages, self.page_size = int(rng.integers(3, 12)), int(rng.integers(1, 6))
        self.stored = list(_NEXT)[max(0, int(rng.integers(-2, 4)))]
        self.cache = kvit.PagedCache(
            self.num_pages, self.page_size, 1, 64, k=self.stored[0], v=self.stored[1], device=device
        )
        self.live: list[tuple[kvit.Sequence, np.ndarray]] = []  # with K and V as gather must give them

    def step(self, attempt: Attempt = undisturbed) -> str:
        """One call of a kind that is drawn; returns what came of it: the kind, with "full" or "broken off"."""
        kind = str(self.rng.choice(_ACTIONS))
        if kind not in ("start", "defragment") and not self.live:
            kind = "start"
        return getattr(self, kind)(attempt)

    def pick(self) -> int:
        return int(self.rng.integers(len(self.live)))

    def start(self, attempt: Attempt) -> str:
        made: list[kvit.Sequence] = []
        if not attempt(lambda: made.append(self.cache.sequence())) and not made:
            return "broken off"
        self.live.append((made[0], new_tokens(self.rng, 0, kv_heads=1)))
        return "start"

    def fork(self, attempt: Attempt) -> str:
        seq, rows = self.live[self.pick()]
        made: list[kvit.Sequence] = []
        if not attempt(lambda: made.append(seq.fork())) and not made:
            return "broken off"
        self.live.append((made[0], rows))
        return "fork"

    def append(self, attempt: Attempt) -> str:
        chosen = self.rng.permutation(len(self.live))[: int(self.rng.integers(1, 4))].tolist()
        counts = [int(self.rng.integers(0, 2 * self.page_size + 1)) for _ in chosen]
        new = new_tokens(self.rng, sum(counts), kv_heads=1)
        seqs = [self.live[i][0] for i in chosen]
        lengths, needed, free = [len(seq) for seq in seqs], self.pages_for(seqs, counts), self.cache.num_free_pages
        k, v = (to_device(x, self.cache.device) for x in new)
        is_full = False
        try:
            is_done = attempt(lambda: self.cache.append(seqs, k, v, new_tokens=counts))
        except kvit.CacheFull:
            is_done, is_full = False, True
        grown = [len(seq) - length for seq, length in zip(seqs, lengths, strict=True)]
        assert grown == counts or not any(grown), f"an append is half done: {grown} of {counts}"
        assert is_full or not is_done or grown == counts
        assert is_full <= (needed > free), f"CacheFull with {free} free pages, and {needed} are needed"
        assert needed <= free or not any(grown), f"{needed} pages came from {free}"
        if not any(grown):
            return "full" if is_full else "broken off" if not is_done else "append"
        for i, part in zip(chosen, reference.token_ranges(counts), strict=True):
            seq, rows = self.live[i]
            self.live[i] = seq, np.concatenate([rows, self.as_stored(new[:, part])], axis=1)
        return "append"

    def pages_for(self, seqs: list[kvit.Sequence], counts: list[int]) -> int:
        """Pages that an append takes: those of its tokens, and copies of shared pages that are part full."""
        needed, growing = 0, {}
        for seq, count in zip(seqs, counts, strict=True):
            length = len(seq)
            needed += -(-(length + count) // self.page_size) - -(-length // self.page_size)
            if count and length % self.page_size:
                growing[seq.pages[-1]] = growing.get(seq.pages[-1], 0) + 1
        return needed + sum(min(n, self.cache.pool.owners(page) - 1) for page, n in growing.items())

    def as_stored(self, rows: np.ndarray) -> np.ndarray:
        """Rows of K and of V as the cache gives them back."""
        found = []
        for x, name in zip(rows, self.stored, strict=True):
            codec = reference.codec_of(name)
            found.append(codec.decode(*codec.encode(x), BFLOAT16))
        return np.stack(found)

    def truncate(self, attempt: Attempt) -> str:
        i = self.pick()
        seq, rows = self.live[i]
        length = int(self.rng.integers(0, rows.shape[1] + 1))
        is_done = attempt(lambda: seq.truncate(length))
        assert len(seq) == length or (not is_done and len(seq) == rows.shape[1])
        self.live[i] = seq, rows[:, : len(seq)]
        return "truncate" if is_done else "broken off"

    def free(self, attempt: Attempt) -> str:
        i = self.pick()
        seq = self.live[i][0]
        is_done = attempt(seq.free)
        assert seq.is_freed or not is_done
        if seq.is_freed:
            self.live.pop(i)
        return "free" if is_done else "broken off"

    def forget(self, attempt: Attempt) -> str:
        """Drop the last reference: the sequence frees itself."""
        i = self.pick()
        return "forget" if attempt(lambda: self.live.pop(i) and None) else "broken off"

    def defragment(self, attempt: Attempt) -> str:
        order = str(self.rng.choice(["front", "sequences"]))
        is_done = attempt(lambda: self.cache.defragment(order=order))
        used = {page for seq, _ in self.live for page in seq.pages}
        assert not is_done or used == set(range(len(used)))
        return "defragment" if is_done else "broken off"

    def read(self, attempt: Attempt) -> str:
        seqs = [seq for seq, _ in self.live]
        return "read" if attempt(lambda: self.cache.gather(seqs)) else "broken off"

    def attend(self, attempt: Attempt) -> str:
        q = to_device(self.rng.standard_normal((len(self.live), 2, 64)).astype(BFLOAT16), self.cache.device)
        seqs = [seq for seq, _ in self.live]
        is_done = attempt(lambda: kvit.attention(q, self.cache, seqs))
        if is_done and self.stored == ("bfloat16", "bfloat16"):
            assert_cache_attention(self.cache, seqs, [rows for _, rows in self.live], q.numpy(), [1] * len(seqs))
        return "attend" if is_done else "broken off"

    def requantise(self, attempt: Attempt) -> str:
        """Not among the steps that are drawn: it takes long."""
        old, new = self.stored, _NEXT[self.stored]
        is_done = attempt(lambda: self.cache.requantise(k=new[0], v=new[1]))
        now = tuple(codec.name for codec in self.cache.view.codecs)
        assert now == new or (not is_done and now == old)
        if now == new:
            self.stored = new
            changes = np.array([a != b for a, b in zip(old, new, strict=True)]).reshape(2, 1, 1, 1)
            self.live = [(seq, np.where(changes, self.as_stored(rows), rows)) for seq, rows in self.live]
        return "requantise" if is_done else "broken off"

    def check(self) -> None:
        """Every sequence holds its own tokens, and every page has the owners that sequences tell of."""
        seqs = [seq for seq, _ in self.live]
        pages = [page for seq in seqs for page in seq.pages]
        owners = [self.cache.pool.owners(page) for page in range(self.num_pages)]
        assert owners == [pages.count(page) for page in range(self.num_pages)]
        assert self.cache.num_free_pages == self.num_pages - len(set(pages))
        assert all(len(seq.pages) == -(-len(seq) // self.page_size) for seq in seqs)
        assert [len(seq) for seq in seqs] == [rows.shape[1] for _, rows in self.live]
        if seqs:
            k, v, _ = self.cache.gather(seqs)
            self.cache.check()
            wanted = np.concatenate([rows for _, rows in self.live], axis=1)
            for found, rows in zip((k, v), wanted, strict=True):
                np.testing.assert_array_equal(found.numpy().view(np.uint16), rows.view(np.uint16))
