"""Code of the caller that runs inside of a call, __dlpack__ for one: before the cache is looked at, never between."""

import numpy as np
import pytest

import kvit
from support.caches import held, new_tokens


class Producer:
    """An array whose DLPack runs something of the caller's first."""

    def __init__(self, array, run):
        self.array, self.run = array, run

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **options):
        self.run()
        return kvit.Buffer.from_numpy(self.array, "host").__dlpack__(**options)


class Given:
    def __init__(self, rng):
        self.cache = kvit.PagedCache(12, 4, 1, 64, dtype="float16", device="host")
        self.rows = [new_tokens(rng, count, kv_heads=1, dtype=np.float16) for count in (6, 5)]
        self.first, self.second = self.cache.sequence(), self.cache.sequence()
        for seq, rows in zip((self.first, self.second), self.rows, strict=True):
            seq.append(*rows)
        self.new = new_tokens(rng, 4, kv_heads=1, dtype=np.float16)

    def check(self, *seqs):
        """Sequences own their pages, and nobody else owns any."""
        pages = [page for seq in seqs for page in seq.pages]
        assert [self.cache.pool.owners(page) for page in range(12)] == [pages.count(page) for page in range(12)]
        assert all(len(seq.pages) == -(-len(seq) // 4) for seq in seqs)


@pytest.fixture
def given(rng):
    return Given(rng)


def iterated(items, run):
    for item in items:
        run()
        yield item


# Where code of the caller runs in an append of `new` to both sequences.
APPENDS = {
    "k": lambda g, run: g.cache.append([g.first, g.second], Producer(g.new[0], run), g.new[1]),
    "v": lambda g, run: g.cache.append([g.first, g.second], g.new[0], Producer(g.new[1], run)),
    "seqs": lambda g, run: g.cache.append(iterated([g.first, g.second], run), *g.new),
    "counts": lambda g, run: g.cache.append([g.first, g.second], *g.new, iterated([1, 3], run)),
}


@pytest.mark.parametrize("where", APPENDS)
def test_a_sequence_that_is_freed_by_an_argument_of_its_append_stays_freed(given, where):
    with pytest.raises(kvit.SequenceFreed):
        APPENDS[where](given, given.second.free)
    assert given.second.is_freed and len(given.first) == 6
    given.check(given.first)


@pytest.mark.parametrize("where", APPENDS)
def test_a_sequence_that_is_truncated_by_an_argument_of_its_append_grows_from_there(given, where):
    APPENDS[where](given, lambda: given.second.truncate(1))
    k, _ = held(given.cache, [given.second])
    share = slice(1, 4) if where == "counts" else slice(2, 4)
    np.testing.assert_array_equal(k, np.concatenate([given.rows[1][0][:1], given.new[0][share]]))
    given.check(given.first, given.second)


def test_tokens_that_an_output_of_attention_frees_are_not_attended_to(given):
    q, out = np.zeros((2, 1, 64), np.float16), np.zeros((2, 1, 64), np.float16)
    with pytest.raises(kvit.SequenceFreed):
        kvit.attention(q, given.cache, [given.first, given.second], out=Producer(out, given.second.free))
    given.check(given.first)


def test_tokens_that_a_scale_appends_are_stored_anew_too(given):
    def append():
        given.first.append(*given.new)

    given.cache.requantise(k="float8_e4m3", v="float8_e4m3", k_scale=Producer(np.ones((), np.float32), append))
    k, _ = held(given.cache, [given.first])
    expected = np.concatenate([given.rows[0][0], given.new[0]])
    np.testing.assert_allclose(k.astype(np.float32), expected, atol=0.13, rtol=0.07)
    given.check(given.first, given.second)


def test_a_table_of_the_cache_is_the_callers_own(given):
    seqs = [given.first, given.second]
    before = held(given.cache, seqs)
    for _ in range(2):  # as made anew, and as it would be made for gather
        table = given.cache.table(seqs)
        for tensor in (table.lengths, table.indptr, table.pages):
            np.asarray(tensor)[...] = 0x7F7F7F7F
        for found, expected in zip(held(given.cache, seqs), before, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_order_of_a_defragmentation_is_one_of_two(given):
    with pytest.raises(ValueError, match='order is .sequence.; give "front" or "sequences"'):
        given.cache.defragment(order="sequence")
