"""Decode of ragged batches in every codec: the reference's result in any order, and the same bits each time.

How the line of work is cut depends on the whole batch, and which CTA is last to finish a head on chance: neither may
show.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit._native import host
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, make_table, poisoned, to_device
from support.tolerances import assert_within

PAIRS = [
    ("bfloat16", "bfloat16"),
    ("int8", "int8"),
    ("int4", "int4"),
    ("float8_e4m3", "float8_e4m3"),
    ("float8_e5m2", "float8_e5m2"),
    ("int8", "int4"),
    ("float8_e4m3", "int4"),
    ("bfloat16", "int8"),
]
GROUP, HEAD_DIM = 4, 64


def lognormal(count, mean):
    """Lengths as a server sees them: many short, a few long."""
    shares = np.exp(np.random.default_rng(3).standard_normal(count))
    return [int(share / shares.mean() * mean) for share in shares]


RAGGED = {
    "giant": [700, *[3] * 9],  # one sequence is nearly all of the work: every CTA has a part of it
    "lognormal": lognormal(16, 60),
    "hollow": [0, 0, 200, 0, 1, 0, 0, 65, 0],  # empty ones at both ends and side by side
    "many": [i % 5 for i in range(150)],  # more sequences than a CTA has threads to look at them
}


class Batch:
    """Sequences of random tokens in a cache of one codec pair, one KV head, and a query for each."""

    def __init__(self, rng, pair, lengths, *, device, page_size=16, dtype=BFLOAT16, kv_heads=1):
        self.pair, self.lengths, self.device = pair, lengths, device
        self.rows = [rng.standard_normal((2, length, kv_heads, HEAD_DIM)).astype(dtype) for length in lengths]
        self.q = rng.standard_normal((len(lengths), GROUP * kv_heads, HEAD_DIM)).astype(dtype)
        pages = sum(-(-length // page_size) for length in lengths) + 2
        self.cache = kvit.PagedCache(
            pages, page_size, kv_heads, HEAD_DIM, dtype=dtype.name, k=pair[0], v=pair[1], device=device
        )
        self.seqs = [self.cache.sequence() for _ in lengths]
        k, v = (to_device(np.concatenate([rows[side] for rows in self.rows]), device) for side in (0, 1))
        self.cache.append(self.seqs, k, v, new_tokens=lengths)
        self.cache.check()

    def attend(self, op, order=None):
        """(out, lse) of every sequence, computed in an order; where nothing is written NaN stays."""
        order = np.arange(len(self.lengths)) if order is None else order
        pages, lengths = zip(*((self.seqs[i].pages, self.lengths[i]) for i in order), strict=True)
        table = make_table([np.array(ids, np.int32) for ids in pages], list(lengths), "dense", self.device)
        q = self.q[order]
        out = to_device(poisoned(q.shape, q.dtype), self.device)
        lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), self.device)
        op(to_device(q, self.device), self.cache.view, table, out=out, lse=lse)
        op.check()
        place = np.argsort(order)
        return out.numpy()[place], lse.numpy()[place]

    def assert_right(self, out, lse):
        """Every sequence is what the reference says of the rows that its codecs keep."""
        k_codec, v_codec = map(reference.codec_of, self.pair)
        for i, (k, v) in enumerate(self.rows):
            q, rest = self.q[i : i + 1], 0.0
            if len(k):
                stored = v_codec.encode(v)
                k, v = k_codec.decode(*k_codec.encode(k)), v_codec.decode(*stored)
                if v_codec.param_bytes(v.shape[-1]):
                    # scale * code and zero are rounded apart, and either may be the larger
                    rest = stored.params[..., 1:].astype(np.float64)
            state = reference.attention(q, k, v)
            magnitude = reference.attention(q, k, np.abs(v - rest) + np.abs(rest)).out
            coded = tolerances.SCORE_QUANTISED if k_codec.bits + v_codec.bits < 32 else 0
            bound = tolerances.attention_bound(magnitude, self.q.dtype) + 2 * coded * magnitude
            assert_within(out[i : i + 1], state.out, bound)
            assert_within(lse[i : i + 1], state.lse, coded or tolerances.LSE)


@pytest.fixture
def workers():
    """Sets how many CTAs the host runs side by side: with one they finish in order, with more as it happens."""
    before = host.configure()
    yield lambda count: host.configure(workers=count)
    host.configure(workers=before["workers"])


def assert_same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


# Where a sequence begins on the line does not depend on the codec: two show it for many sequences.
@pytest.mark.parametrize(
    ("pair", "kind"),
    [(pair, kind) for pair in PAIRS for kind in RAGGED if kind != "many" or pair in PAIRS[:2]],
    ids=str,
)
def test_ragged_batches_are_the_reference_in_any_order(rng, device, pair, kind):
    batch = Batch(rng, pair, RAGGED[kind], device=device)
    op = kvit.Attention(batch.cache.view, GROUP)
    for order in (None, rng.permutation(len(batch.lengths))):
        batch.assert_right(*batch.attend(op, order))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_repetitions_give_the_same_bits_whoever_finishes_last(rng, workers, pair):
    batch = Batch(rng, pair, [300, 0, 70, 5], device="host", kv_heads=2)
    other = Batch(rng, pair, [40, 200], device="host", kv_heads=2)
    op = kvit.Attention(batch.cache.view, 2 * GROUP)
    workers(1)
    expected = batch.attend(op)
    for count in (8, 3, 8):
        workers(count)
        other.attend(op)  # leaves other partial results in the workspace
        assert_same_bits(batch.attend(op), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_hundred_repetitions_give_the_same_bits_on_a_gpu(rng, pair, dtype):
    names = tuple(dtype.name if name == "bfloat16" else name for name in pair)
    # Enough tiles that heads are cut between CTAs of the largest GPU, and enough heads that many finish at once.
    batch = Batch(rng, names, [9000, 0, *lognormal(30, 900), 1], device="cuda:0", page_size=64, dtype=dtype, kv_heads=8)
    other = Batch(rng, names, [5000, 333], device="cuda:0", page_size=64, dtype=dtype, kv_heads=8)
    op = kvit.Attention(batch.cache.view, 8 * GROUP)
    expected = batch.attend(op)
    for repetition in range(100):
        if repetition % 10 == 0:
            other.attend(op)
        assert_same_bits(batch.attend(op), expected)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_same_sequences_in_another_cache_of_the_same_codecs_give_the_same_bits(rng, device, pair):
    # Other pages, of another size: what a sequence gives depends on its tokens, not on where they lie.
    seed = int(rng.integers(2**31))
    first, second = (
        Batch(np.random.default_rng(seed), pair, [130, 7, 64], device=device, page_size=size) for size in (16, 64)
    )
    op = kvit.Attention(first.cache.view, GROUP)
    same = kvit.Attention(second.cache.view, GROUP, kernel=op.kernel.symbol)  # other kernels may add up in other orders
    assert_same_bits(first.attend(op), second.attend(same))


# Every group, and every size of a page that a model or an engine uses; both go through all codecs.
@pytest.mark.parametrize("group", range(1, 17))
def test_any_group_over_any_page_size_is_the_reference(rng, device, group):
    for i, page_size in enumerate((1, 2, 8, 32, 128, 256)):
        batch = Batch(rng, PAIRS[(group + i) % len(PAIRS)], [70, 33], device=device, page_size=page_size)
        batch.q = rng.standard_normal((2, group, HEAD_DIM)).astype(BFLOAT16)
        batch.assert_right(*batch.attend(kvit.Attention(batch.cache.view, group)))
