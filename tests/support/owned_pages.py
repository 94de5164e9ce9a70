"""A PagedCache with sequences that share pages, for tests of calls that do not come to their end."""

import numpy as np

import kvit
from support.caches import new_tokens

PAGES, PAGE_SIZE = 10, 4


class Given:
    """A cache of several sequences, some of which share pages, and the tokens of each."""

    def __init__(self, **stored):
        rng = np.random.default_rng(0)
        self.cache = kvit.PagedCache(PAGES, PAGE_SIZE, 1, 64, device="host", **stored)
        self.new = new_tokens(rng, 6, kv_heads=1)
        gone = self.cache.sequence()
        gone.append(*new_tokens(rng, 5, kv_heads=1))
        self.first, self.second = (self.grown(new_tokens(rng, count, kv_heads=1)) for count in (6, 7))
        self.third = self.second.fork()
        gone.free()  # so that there is something to defragment
        self.before = [self.read(seq) for seq in (self.first, self.second, self.third)]

    def grown(self, rows):
        seq = self.cache.sequence()
        seq.append(*rows)
        return seq

    def read(self, seq):
        k, v, _ = self.cache.gather([seq])
        return np.stack([k.numpy(), v.numpy()])

    def check(self, seqs, expected):
        """Sequences hold `expected`, own their pages, and nobody else owns any."""
        for seq, rows in zip(seqs, expected, strict=True):
            np.testing.assert_array_equal(self.read(seq), rows)
        pages = [page for seq in seqs for page in seq.pages]
        assert [self.cache.pool.owners(page) for page in range(PAGES)] == [pages.count(page) for page in range(PAGES)]
        assert self.cache.num_free_pages == PAGES - len(set(pages))
        assert len(self.cache.pool.all_pages()) == len(seqs)  # one that nobody has would keep its pages for ever
        assert all(len(seq.pages) == -(-len(seq) // PAGE_SIZE) for seq in seqs)

    def is_whole(self):
        """Check that every sequence is as before or as an append, a truncation or a free in full leaves it."""
        seqs = [seq for seq in (self.first, self.second, self.third) if not seq.is_freed]
        has_grown = len(self.first) > 6
        expected = []
        for i, seq in enumerate((self.first, self.second, self.third)):
            rows, share = self.before[i], self.new[:, 2 * i : 2 * i + 2]
            if not seq.is_freed:
                expected.append(np.concatenate([rows, share], axis=1) if has_grown else rows[:, : len(seq)])
        self.check(seqs, expected)
