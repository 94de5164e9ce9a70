"""kvit.PagedCache under any order of calls, next to plain lists of tokens."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import kvit
from kvit import reference
from support.caches import BFLOAT16, assert_cache_attention, held, new_cache, new_tokens


class Caches(RuleBasedStateMachine):
    """Sequences of a small cache, next to plain lists of their tokens."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.cache = new_cache(pages=8, page_size=3, kv_heads=1)
        self.sequences = []
        self.contents = []  # (k, v) of each

    def pick(self, data):
        return data.draw(st.sampled_from(range(len(self.sequences))))

    @rule()
    def start(self):
        self.sequences.append(self.cache.sequence())
        self.contents.append(new_tokens(self.rng, 0, kv_heads=1))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data):
        i = self.pick(data)
        self.sequences.append(self.sequences[i].fork())
        self.contents.append(self.contents[i])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def append(self, data):
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.sequences))), unique=True, min_size=1, max_size=3))
        counts = [data.draw(st.integers(0, 5)) for _ in chosen]
        new = new_tokens(self.rng, sum(counts), kv_heads=1)
        seqs = [self.sequences[i] for i in chosen]
        before = self.cache.num_free_pages, [(seq.pages, len(seq)) for seq in seqs]
        try:
            self.cache.append(seqs, *new, new_tokens=counts)
        except kvit.CacheFull:
            assert (self.cache.num_free_pages, [(seq.pages, len(seq)) for seq in seqs]) == before
            return
        for i, tokens in zip(chosen, reference.token_ranges(counts), strict=True):
            self.contents[i] = np.concatenate([self.contents[i], new[:, tokens]], axis=1)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def truncate(self, data):
        i = self.pick(data)
        length = data.draw(st.integers(0, len(self.sequences[i])))
        self.sequences[i].truncate(length)
        self.contents[i] = self.contents[i][:, :length]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def shift(self, data):
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.sequences))), unique=True, min_size=1, max_size=3))
        keeps = [data.draw(st.integers(0, len(self.sequences[i]))) for i in chosen]
        drops = [data.draw(st.integers(0, len(self.sequences[i]) - n)) for i, n in zip(chosen, keeps, strict=True)]
        try:
            self.cache.shift([self.sequences[i] for i in chosen], drops, keep=keeps, rotate=False)
        except kvit.CacheFull:
            return
        for i, keep, drop in zip(chosen, keeps, drops, strict=True):
            parts = [self.contents[i][:, :keep], self.contents[i][:, keep + drop :]]
            self.contents[i] = np.concatenate(parts, axis=1)

    @rule(order=st.sampled_from(["front", "sequences"]))
    def defragment(self, order):
        self.cache.defragment(order=order)
        used = {page for seq in self.sequences for page in seq.pages}
        assert used == set(range(len(used)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data):
        i = self.pick(data)
        self.sequences.pop(i).free()
        self.contents.pop(i)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def attend(self, data):
        counts = [data.draw(st.integers(0, 2)) for _ in self.sequences]
        q = self.rng.standard_normal((sum(counts), 2, 64)).astype(BFLOAT16)
        assert_cache_attention(self.cache, self.sequences, self.contents, q, counts)

    @invariant()
    def every_sequence_holds_its_own_tokens(self):
        if self.sequences:
            expected = np.concatenate(self.contents, axis=1)
            for ours, given in zip(held(self.cache, self.sequences), expected, strict=True):
                np.testing.assert_array_equal(ours, given)

    @invariant()
    def no_page_is_lost(self):
        pages = [page for seq in self.sequences for page in seq.pages]
        assert [self.cache.pool.owners(page) for page in range(8)] == [pages.count(page) for page in range(8)]
        assert self.cache.num_free_pages == 8 - len(set(pages))


TestCaches = Caches.TestCase
TestCaches.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
