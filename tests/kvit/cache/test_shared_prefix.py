"""kvit.attention(..., shared_prefix=True): pages that sequences begin with alike are read once for all of them."""

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit.cache.shared_prefix import Held, Run, runs_of
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, new_cache, new_tokens, to_device

PAGE = 4


@pytest.mark.parametrize(("held", "runs"), [
    ([], []),
    ([((3, 7), 8, 1)], [(1, 0)]),
    # Three that share a page, two of which share another one as well, and one that shares none.
    ([((3, 7, 1), 12, 1), ((3, 7, 9), 10, 1), ((3, 8), 8, 1), ((5, 2), 7, 1)], [(3, 1), (1, 0)]),
    # The same sequence twice: its last page has the query's own token.
    ([((3, 7), 8, 1), ((3, 7), 8, 1)], [(2, 1)]),
    ([((3, 7), 8, 1), ((3, 7), 8, 4)], [(2, 1)]),
    ([((3, 7), 8, 1), ((3, 7), 8, 5)], [(1, 0), (1, 0)]),
    ([((3, 7), 8, 0), ((3, 7), 8, 0)], [(2, 2)]),
    # More queries than tokens, and nothing at all.
    ([((3,), 2, 9), ((3,), 2, 1), ((), 0, 1), ((), 0, 0)], [(1, 0)] * 4),
    # Those that share are not next to each other.
    ([((3, 7), 8, 1), ((4,), 3, 1), ((3, 7), 8, 1)], [(1, 0)] * 3),
], ids=str)  # fmt: skip
def test_runs_share_what_all_of_them_see_whole(held, runs):
    assert runs_of([Held(*each) for each in held], PAGE) == [Run(*each) for each in runs]


def family(rng, device, **options):
    """A prompt of 21 tokens, three forks that grow differently, a stranger, and two forks of another prompt."""
    cache = new_cache(device, 60, PAGE, **options)
    first, stranger, other = (cache.sequence() for _ in range(3))
    contents = {}

    def grow(seq, count):
        rows = new_tokens(rng, count, dtype=options.get("dtype", BFLOAT16))
        seq.append(*(to_device(x, device) for x in rows))
        old = contents.get(id(seq))
        contents[id(seq)] = rows if old is None else tuple(map(np.concatenate, zip(old, rows, strict=True)))

    def fork(seq):
        twin = seq.fork()
        contents[id(twin)] = contents[id(seq)]
        return twin

    for seq, count in ((first, 21), (stranger, 9), (other, 40)):
        grow(seq, count)
    seqs = [first, fork(first), fork(first), stranger, other, fork(other)]
    for seq, count in zip(seqs, (1, 6, 14, 1, 3, 5), strict=True):
        grow(seq, count)
    return cache, seqs, [contents[id(seq)] for seq in seqs]


def check(cache, seqs, contents, q, counts, **options):
    found = kvit.attention(
        to_device(q, cache.device), cache, seqs, new_tokens=counts, return_lse=True, shared_prefix=True, **options
    )
    cache.check()
    out, lse = (x.numpy() for x in found)
    own = {name: x.numpy() if isinstance(x, kvit.Buffer) else x for name, x in options.items()}
    for tokens, (k, v) in zip(reference.token_ranges(counts), contents, strict=True):
        state = reference.attention(q[tokens], k, v, **own)
        magnitude = reference.attention(q[tokens], k, np.abs(v), **own).out
        # Two parts, each rounded before they are joined.
        tolerances.assert_within(out[tokens], state.out, 3 * tolerances.attention_bound(magnitude, q.dtype))
        tolerances.assert_within(lse[tokens], state.lse, 2 * tolerances.LSE)
    return out


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("counts", [[1] * 6, [1, 3, 9, 1, 2, 0]], ids=["one", "several"])
def test_the_result_is_that_of_each_sequence_alone(rng, device, counts, dtype):
    cache, seqs, contents = family(rng, device, dtype=dtype.name)
    q = rng.standard_normal((sum(counts), 6, 64)).astype(dtype)
    check(cache, seqs, contents, q, counts)


def test_caps_sinks_and_masks_of_all_keys(rng, device):
    cache, seqs, contents = family(rng, device)
    q = rng.standard_normal((12, 6, 64)).astype(BFLOAT16)
    sinks = to_device(rng.standard_normal(6).astype(np.float32) + 2, device)
    check(cache, seqs, contents, q, [2] * 6, softcap=3.0, sinks=sinks)
    check(cache, seqs, contents, q, [2] * 6, causal=False, scale=0.3)


def test_what_is_shared_is_read_by_the_call_s_first_part_alone(rng, device, monkeypatch):
    # Pages of the two families go to tables as prefixes, and no table of the second part has any of them.
    cache, seqs, _ = family(rng, device)
    seen = []
    real = kvit.cache.calls.table_of

    def table_of(of_each, layers, stream):
        seen.append([(tuple(pages), length) for pages, length in of_each])
        return real(seen[-1], layers, stream)

    monkeypatch.setattr("kvit.cache.shared_prefix.calls.table_of", table_of)
    q = to_device(np.zeros((6, 4, 64), BFLOAT16), device)
    kvit.attention(q, cache, seqs, shared_prefix=True)
    prefixes, rests = seen
    assert prefixes == [(seqs[0].pages[:5], 20), ((), 0), (seqs[4].pages[:10], 40)]
    assert [length for _, length in rests] == [2, 7, 15, 10, 3, 5]
    assert not {p for pages, _ in prefixes for p in pages} & {p for pages, _ in rests for p in pages}


def test_a_step_of_forks(rng, device):
    cache, seqs, contents = family(rng, device)
    k, v = new_tokens(rng, 6)
    q = rng.standard_normal((6, 4, 64)).astype(BFLOAT16)
    out = to_device(np.zeros_like(q), device)
    with cache.step(seqs, 1) as step:
        cache.layer(0).append(step, to_device(k, device), to_device(v, device))
        assert kvit.attention(to_device(q, device), cache, step, out=out, shared_prefix=True) is out
    for i, (of_k, of_v) in enumerate(contents):
        state = reference.attention(
            q[i : i + 1], *(np.concatenate([a, b[i : i + 1]]) for a, b in ((of_k, k), (of_v, v)))
        )
        assert np.abs(out.numpy()[i].astype(np.float64) - state.out[0]).max() < 0.03


def test_where_nothing_is_shared_the_call_is_the_usual_one(rng, device):
    cache = new_cache(device, 60, PAGE)
    seqs = [cache.sequence() for _ in range(3)]
    for seq in seqs:
        seq.append(*(to_device(x, device) for x in new_tokens(rng, 30)))
    q = to_device(rng.standard_normal((3, 4, 64)).astype(BFLOAT16), device)
    one, other = (kvit.attention(q, cache, seqs, shared_prefix=flag).numpy() for flag in (True, False))
    np.testing.assert_array_equal(one.view(np.uint16), other.view(np.uint16))


def test_refusals(rng, device):
    cache, seqs, _ = family(rng, device)
    q = to_device(np.zeros((6, 4, 64), BFLOAT16), device)
    with pytest.raises(kvit.ShapeError, match="chunk and window go by their positions"):
        kvit.attention(q, cache, seqs, shared_prefix=True, window=8, chunk=4)
    with pytest.raises(TypeError, match="shared_prefix"):
        kvit.attention(q, cache, seqs, shared_prefix=np.ones(2))
    stranger = new_cache(device, 60, PAGE).sequence()
    with pytest.raises(kvit.ShapeError, match="another cache"):
        kvit.attention(q, cache, [*seqs[:5], stranger], shared_prefix=True)
    batch = kvit.Batch(cache, seqs)
    with pytest.raises(kvit.ShapeError, match="kvit.Batch"):
        kvit.attention(q, cache, batch, shared_prefix=True)
    seqs[1].free()
    with pytest.raises(kvit.SequenceFreed):
        kvit.attention(q, cache, seqs, shared_prefix=True)
    with pytest.raises(kvit.ShapeError, match="6 tokens for 4 sequences"):
        kvit.attention(q, cache, seqs[2:], shared_prefix=True)
