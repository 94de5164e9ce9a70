"""kvit/cache/beside.py: tokens of a step and entries that lie elsewhere are in one softmax, and sinks count once."""

import numpy as np

import kvit
from kvit import reference
from kvit.cache.beside import attend_beside
from support.caches import BFLOAT16, to_device
from support.tolerances import assert_within, attention_bound


def test_a_step_reads_its_window_and_what_it_chose_elsewhere(rng, device):
    """Sequences of 14 and 10 tokens, 4 of them new, and 8 and 5 entries, in pages of one in disorder. One query has
    chosen nothing; entries that nobody chose are NaN.
    """
    cache = kvit.PagedCache(8, 4, 1, 64, shares_kv=True, v_dim=64, dtype="bfloat16", device=device)
    seqs = cache.sequence(), cache.sequence()
    rows = [(rng.standard_normal((count, 1, 64)) / 2).astype(BFLOAT16) for count in (14, 10)]
    cache.append(list(seqs), to_device(np.concatenate([rows[0][:10], rows[1][:6]]), device), new_tokens=[10, 6])
    entries = (rng.standard_normal((16, 1, 1, 64)) / 2).astype(BFLOAT16)
    pages = np.array([[3, 9, 1, 15, 0, 7, 12, 5], [2, 11, 4, 8, 6, 2, 2, 2]], np.int32)
    of_first = [[7, 0, -1], [2, 3, 7], [-1, -1, -1], [1, 0, 2]]
    indices = np.array([*of_first, [0, 4, -1], [4, -1, 1], [3, 1, 0], [1, 3, 4]])
    unchosen = np.setdiff1d(np.arange(16), [*pages[0, [0, 1, 2, 3, 7]], *pages[1, [0, 1, 3, 4]]])
    entries[unchosen] = np.nan
    q = rng.standard_normal((8, 4, 64)).astype(BFLOAT16)
    sinks = rng.standard_normal(4).astype(np.float32)
    elsewhere = to_device(entries, device)
    view = kvit.CacheView(elsewhere, elsewhere)
    op = cache.layer(0).operations.find_sparse(
        4, 8, entry_tokens=1, entries=3, per_head=False, causal=False, scale=0.1
    )  # fmt: skip
    table = kvit.PageTable(to_device(pages, device), lengths=to_device(np.array([8, 5], np.int32), device))
    out = kvit.Buffer.empty((8, 4, 64), "bfloat16", device)
    with cache.step(list(seqs), [4, 4]) as step:
        layer = cache.layer(0)
        layer.append(step, to_device(np.concatenate([rows[0][10:], rows[1][6:]]), device))
        attend_beside(
            to_device(q, device), layer, step, op, view, table,
            to_device(indices[:, None].astype(np.int32), device), out=out, scale=0.1, window=5,
            sinks=to_device(sinks, device),
        )  # fmt: skip
    cache.check()

    def states(values):
        for i in range(8):
            sequence, last = divmod(i, 4)
            seen = rows[sequence][: len(rows[sequence]) - 3 + last]
            near = reference.attention(q[i : i + 1], seen, values(seen), scale=0.1, window=5, sinks=sinks)
            chosen = entries[pages[sequence, indices[i][indices[i] >= 0]], 0]
            yield reference.merge_state(
                near, reference.attention(q[i : i + 1], chosen, values(chosen), causal=False, scale=0.1)
            )

    want = np.concatenate([state.out for state in states(lambda v: v)])
    magnitude = np.concatenate([state.out for state in states(np.abs)])
    # Each part is rounded before they are merged, and the sum once more.
    assert_within(out.numpy(), want, 2 * attention_bound(magnitude, q.dtype))
