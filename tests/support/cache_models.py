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
        first = list(_NEXT)[max(0, int(rng.integers(-2, 4)))]
        # One layer, several alike, or some that differ: two lie side by side in memory, and one apart.
        self.stored = [[first], [first] * 3, [first, list(_NEXT)[int(rng.integers(4))], first]][int(rng.integers(3))]
        self.cache = kvit.PagedCache(
            self.num_pages, self.page_size, 1, 64, layers=[kvit.LayerSpec(k=k, v=v) for k, v in self.stored],
            storage=str(rng.choice(["layers", "pages"])), device=device,
        )  # fmt: skip
        # With K and V as gather must give them: [layers, 2, tokens, 1, 64].
        self.live: list[tuple[kvit.Sequence, np.ndarray]] = []

    def new_rows(self, count: int) -> np.ndarray:
        """K and V of `count` tokens in every layer."""
        return np.stack([new_tokens(self.rng, count, kv_heads=1) for _ in self.stored])

    def of_layers(self, rows: np.ndarray) -> tuple[Any, Any]:
        """K and V as an append to all layers takes them: an array, or one for each layer."""
        k, v = ([to_device(x, self.cache.device) for x in rows[:, side]] for side in range(2))
        return (k, v) if len(k) > 1 else (k[0], v[0])

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
        self.live.append((made[0], self.new_rows(0)))
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
        new = self.new_rows(sum(counts))
        seqs = [self.live[i][0] for i in chosen]
        lengths, needed, free = [len(seq) for seq in seqs], self.pages_for(seqs, counts), self.cache.num_free_pages
        assert self.cache.pages_needed(seqs, counts) == needed
        k, v = self.of_layers(new)
        in_steps, is_full = bool(self.rng.integers(2)), False

        def append() -> None:
            if in_steps:
                with self.cache.step(seqs, counts) as step:
                    of_each = (k, v) if len(new) > 1 else ([k], [v])
                    for layer, *rows in zip(self.cache.layers, *of_each, strict=True):
                        layer.append(step, *rows)
            else:
                self.cache.append(seqs, k, v, new_tokens=counts)

        try:
            is_done = attempt(append)
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
            self.live[i] = seq, np.concatenate([rows, self.as_stored(new[:, :, part])], axis=2)
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
        found = np.empty_like(rows)
        for layer, names in enumerate(self.stored):
            for side, name in enumerate(names):
                codec = reference.codec_of(name)
                found[layer, side] = codec.decode(*codec.encode(rows[layer, side]), BFLOAT16)
        return found

    def truncate(self, attempt: Attempt) -> str:
        i = self.pick()
        seq, rows = self.live[i]
        length = int(self.rng.integers(0, rows.shape[2] + 1))
        is_done = attempt(lambda: seq.truncate(length))
        assert len(seq) == length or (not is_done and len(seq) == rows.shape[2])
        self.live[i] = seq, rows[:, :, : len(seq)]
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
        layer = self.cache.layer(int(self.rng.integers(len(self.stored))))
        return "read" if attempt(lambda: layer.gather(seqs)) else "broken off"

    def attend(self, attempt: Attempt) -> str:
        q = to_device(self.rng.standard_normal((len(self.live), 2, 64)).astype(BFLOAT16), self.cache.device)
        seqs = [seq for seq, _ in self.live]
        place = int(self.rng.integers(len(self.stored)))
        layer = self.cache.layer(place)
        is_done = attempt(lambda: kvit.attention(q, layer, seqs))
        if is_done and self.stored[place] == ("bfloat16", "bfloat16"):
            contents = [rows[place] for _, rows in self.live]
            assert_cache_attention(layer, seqs, contents, q.numpy(), [1] * len(seqs))
        return "attend" if is_done else "broken off"

    def requantise(self, attempt: Attempt) -> str:
        """Not among the steps that are drawn: it takes long."""
        if len(set(self.stored)) > 1:
            return "requantise of layers that differ"
        old, new = self.stored[0], _NEXT[self.stored[0]]
        is_done = attempt(lambda: self.cache.requantise(k=new[0], v=new[1]))
        kinds = {tuple(codec.name for codec in layer.view.codecs) for layer in self.cache.layers}
        assert kinds == {new} or (not is_done and kinds == {old})
        if kinds == {new}:
            self.stored = [new] * len(self.stored)
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
        assert [len(seq) for seq in seqs] == [rows.shape[2] for _, rows in self.live]
        assert len(self.cache.pool.all_pages()) == len(seqs)  # a step that is over has taken nothing along
        wanted = np.concatenate([rows for _, rows in self.live], axis=2) if seqs else ()
        for layer, of_layer in zip(self.cache.layers, wanted, strict=bool(seqs)):
            k, v, _ = layer.gather(seqs)
            self.cache.check()
            for found, rows in zip((k, v), of_layer, strict=True):
                np.testing.assert_array_equal(found.numpy().view(np.uint16), rows.view(np.uint16))
