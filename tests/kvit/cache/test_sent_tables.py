"""Page tables of calls: one that is kept holds what a new one would, and graphs keep theirs as it was."""

import numpy as np
import pytest

import kvit
from kvit._native.sent_tables import SentTables
from support.caches import new_tokens, to_device


def grown(pool, *counts):
    seqs = tuple(pool.sequence() for _ in counts)
    pool.grow(seqs, counts).keep()
    return seqs


def test_whatever_calls_follow_one_another_their_tables_are_right(rng, device):
    pool, tables = kvit.PagePool(400, 3), SentTables(kvit.PageTable, 3)
    stream = kvit.Stream.default(device)
    seqs = list(grown(pool, *rng.integers(0, 20, 8).tolist()))
    for _ in range(300):
        i = int(rng.integers(len(seqs)))
        if rng.integers(4) == 0:
            seqs[i] = seqs[i].fork()
        if rng.integers(4) == 0:
            seqs[i].truncate(int(rng.integers(len(seqs[i]) + 1)))
        chosen = tuple(dict.fromkeys(seqs[j] for j in rng.permutation(8)[: int(rng.integers(1, 9))]))
        counts = rng.integers(0, 4, len(chosen)).tolist() if rng.integers(2) else int(rng.integers(3))
        growth = pool.grow(chosen, counts) if rng.integers(3) else None
        before = [(seq.pages, len(seq)) for seq in chosen]
        expected = before if growth is None else list(zip(growth.pages, growth.lengths, strict=True))
        sent = tables.take(pool, chosen, growth, counts, stream)
        of_each = [
            (tuple(sent.table.pages.numpy()[start : start + len(pages)].tolist()), int(n))
            for (pages, _), start, n in zip(
                expected, sent.table.indptr.numpy(), sent.table.lengths.numpy(), strict=False
            )
        ]
        assert of_each == expected
        each = counts if isinstance(counts, list) else [counts] * len(chosen)
        rows = None if sent.rows is None else sent.rows.numpy().tolist()
        assert rows == (None if len(set(each)) == 1 else np.cumsum([0, *each]).tolist())
        tables.give(sent)
        if growth is not None:
            growth.keep()
        if pool.num_free < 100:
            for seq in seqs:
                seq.truncate(min(len(seq), 5))
    assert len(tables.kept) <= 3


def test_a_table_that_is_the_same_is_not_sent_again(rng):
    pool, tables = kvit.PagePool(40, 4), SentTables(kvit.PageTable)
    seqs = grown(pool, 5, 6)
    sent = tables.take(pool, seqs, None, 1, kvit.Stream.default("host"))
    tables.give(sent)
    for tensor in (sent.table.lengths, sent.table.pages):
        np.asarray(tensor)[...] = 77  # nobody may; so it is seen what is written anew
    assert tables.take(pool, seqs, None, 1, kvit.Stream.default("host")) is sent
    assert set(sent.table.lengths.numpy().tolist()) == {77}
    tables.give(sent)
    seqs[1].truncate(5)
    assert tables.take(pool, seqs, None, 1, kvit.Stream.default("host")) is sent
    assert sent.table.lengths.numpy().tolist() == [77, 5] and set(sent.table.pages.numpy().tolist()) == {77}


def test_a_graph_keeps_the_table_that_it_was_captured_with(rng, device):
    cache = kvit.PagedCache(16, 4, 2, 64, dtype="float16", device=device)
    stream = kvit.Stream(device)
    seqs = [cache.sequence(), cache.sequence()]
    rows = [to_device(x, device) for x in new_tokens(rng, 9, dtype=np.float16)]
    cache.append(seqs, *rows, [5, 4], stream=stream)
    q = to_device(rng.standard_normal((2, 4, 64)).astype(np.float16), device)
    out = [kvit.Buffer.empty((2, 4, 64), "float16", device, stream) for _ in range(2)]
    expected = kvit.attention(q, cache, seqs, out=out[0], stream=stream).numpy()
    with kvit.Graph.capture(stream) as graph:
        for each in out:
            kvit.attention(q, cache, seqs, out=each, stream=stream)
        with pytest.raises(kvit.DriverError, match="a page table that differs from the last call's"):
            kvit.attention(q, cache, seqs[::-1], out=out[0], stream=stream)
    # Other calls of as many sequences: the graph's table is not theirs any more.
    kvit.attention(q, cache, seqs[::-1], out=out[0], stream=stream)
    graph.launch()
    stream.synchronize()
    for each in out:
        np.testing.assert_array_equal(each.numpy(), expected)
