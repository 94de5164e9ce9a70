"""Attention with split_tokens: a sequence gives the same bits in any batch, at any place in it, and on any grid."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvit
from kvit import reference
from kvit._native.context import Device
from kvit.ops import plan
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, make_case, make_table, poisoned, to_device
from support.quantised import Quantised
from support.tolerances import assert_within

# Every way to keep rows that both kinds of copies serve, and one that only cp.async does.
PAIRS = [(None, None), ("int8", "int8"), ("int4", "int4"), ("float8_e4m3",) * 2, ("int8", "int4")]
KERNELS = [(pair, copies) for pair in PAIRS for copies in ("cp_async", "tma")] + [(("float8_e5m2",) * 2, "cp_async")]
KERNELS += [(pair, "prefill") for pair in PAIRS[:4]]  # which computes row tiles whole
# Of tiles of 64 to 256 tokens: many splits and few, one that is full, a part of one, and none.
LENGTHS = [1300, 256, 0, 1, 700, 70]


def bits(*arrays):
    return [array.view(np.uint8).tolist() for array in arrays]


class Sequences:
    """A cache of sequences, each with a query of its own, of which batches are made in any order and number."""

    def __init__(self, rng, lengths, pair=(None, None), group=4, head_dim=64, device="host", dtype=BFLOAT16):
        self.case = Quantised(pair, lengths, head_dim=head_dim, dtype=dtype, device=device, rng=rng)
        self.case.append(rng)
        self.lengths, self.device, self.heads = lengths, device, 2 * group
        self.q = rng.standard_normal((len(lengths), self.heads, head_dim)).astype(dtype)

    def op(self, copies="cp_async", tiles=1, **options):
        """An Attention with splits of so many tiles."""
        kernel = {"rows": 128, "copies": "cp_async"} if copies == "prefill" else {"copies": copies}
        tile = kvit.Attention(self.case.view, self.heads, kernel=kernel).kernel.facts["tile_tokens"]
        return kvit.Attention(self.case.view, self.heads, kernel=kernel, split_tokens=tiles * tile, **options)

    def attend(self, op, batch):
        """(out, lse) of a batch of sequences, by their numbers; the same one may come several times."""
        pages = [self.case.table.pages[i] for i in batch]
        table = make_table(pages, [self.lengths[i] for i in batch], "dense", self.device)
        q = self.q[batch]
        out = to_device(poisoned(q.shape, q.dtype), self.device)
        lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), self.device)
        op(to_device(q, self.device), self.case.view, table, out=out, lse=lse)
        op.check()
        return out.numpy(), lse.numpy()

    def alone(self, op):
        """What each sequence gives in a batch of its own."""
        return [bits(*self.attend(op, [i])) for i in range(len(self.lengths))]

    def assert_same(self, op, batch, alone):
        """Every place of a batch has the bits of its sequence alone."""
        out, lse = self.attend(op, batch)
        for place, i in enumerate(batch):
            assert bits(out[place : place + 1], lse[place : place + 1]) == alone[i], (
                f"sequence {i} at {place} of {batch}"
            )

    def assert_right(self, op):
        """All sequences are what the reference says."""
        out, lse = self.attend(op, list(range(len(self.lengths))))
        counts = [1] * len(self.lengths)
        state = reference.paged_attention(self.q, self.case.cache, self.case.table, counts)
        assert_within(out, state.out, self.case.bound(self.q, counts))
        assert_within(lse, state.lse, tolerances.SCORE_QUANTISED)


# First, last and in the middle; each sequence more than once, empty ones between; and more of them than a warp's lanes.
BATCHES = [
    [0, 1, 2, 3, 4, 5],
    [5, 4, 3, 2, 1, 0],
    [3, 0, 3, 2, 4, 4, 0, 1],
    [2, 2, 0, 2],
    [3] * 17 + [0] + [5] * 20 + [4],
]


class Exactly(int):
    """So many CTAs in all, where others are counted for each multiprocessor."""

    def __rmul__(self, num_sms):
        return int(self)


@contextlib.contextmanager
def with_grid(ctas):
    """Operations made inside have so many CTAs, whatever their kernel and their device say."""
    choose = plan._choose_kernel

    def choice_of(*arguments):
        found = choose(*arguments)
        facts = {**found.kernel.facts, "ctas_per_sm": Exactly(ctas)}
        return found._replace(kernel=found.kernel._replace(facts=facts))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_choose_kernel", choice_of)
        yield


def need(copies, device):
    if copies == "tma" and device != "host" and Device.of(device).compute_capability < (9, 0):
        pytest.skip("no GPU with a tensor copy engine")


@pytest.mark.parametrize("group", [4, 16])
@pytest.mark.parametrize(("pair", "copies"), KERNELS, ids=str)
def test_a_sequence_gives_the_same_bits_in_any_batch(rng, device, pair, copies, group):
    need(copies, device)
    sequences = Sequences(rng, LENGTHS, pair, group, device=device)
    op = sequences.op(copies)
    sequences.assert_right(op)
    alone = sequences.alone(op)
    for batch in BATCHES:
        sequences.assert_same(op, batch, alone)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("copies", ["cp_async", "tma"])
def test_wide_heads_too(rng, device, copies, head_dim, dtype):
    need(copies, device)
    sequences = Sequences(rng, LENGTHS, head_dim=head_dim, device=device, dtype=dtype)
    sequences.assert_right(sequences.op(copies, tiles=2))
    with with_grid(45):  # heads that several CTAs have parts of, on a device of few multiprocessors too
        op = sequences.op(copies, tiles=2)
    sequences.assert_right(op)
    alone = sequences.alone(op)
    for batch in BATCHES[:3]:
        sequences.assert_same(op, batch, alone)


@pytest.mark.parametrize("copies", ["cp_async", "tma"])
def test_any_grid_gives_the_same_bits(rng, device, copies):
    # From one CTA that has whole heads alone to more than there are splits, so that each has one of its own.
    need(copies, device)
    sequences = Sequences(rng, LENGTHS, device=device)
    alone = sequences.alone(sequences.op(copies))
    for ctas in (1, 2, 3, 7, 16, 45, 300):
        with with_grid(ctas):
            op = sequences.op(copies)
        assert op.grid == ctas
        for batch in BATCHES[1:3]:
            sequences.assert_same(op, batch, alone)


@settings(max_examples=25, deadline=None)
@given(
    tiles=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    ctas=st.integers(2, 50),
    split_tiles=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_however_the_runs_of_ctas_lie_in_the_tree(tiles, ctas, split_tiles, seed):
    # Pages that many slots of a table name: as many tiles as the tree needs, from little memory.
    rng = np.random.default_rng(seed)
    case = make_case(rng, [64] * 3, page_size=64, kv_heads=1)
    with with_grid(1):
        single = kvit.Attention(case.view, 2, kernel={"copies": "cp_async"}, split_tokens=split_tiles * 128)
    with with_grid(ctas):
        op = kvit.Attention(case.view, 2, kernel={"copies": "cp_async"}, split_tokens=split_tiles * 128)
    lengths = [max(0, count * 128 - i) for i, count in enumerate(tiles)]
    pages = [np.arange(-(-length // 64), dtype=np.int32) % 3 for length in lengths]
    q = case.queries(rng, len(tiles), 2)
    out = op(to_device(q, "host"), case.view, make_table(pages, lengths, "ragged", "host")).numpy()
    for i in range(len(tiles)):
        alone = make_table(pages[i : i + 1], lengths[i : i + 1], "ragged", "host")
        assert bits(single(to_device(q[i : i + 1], "host"), case.view, alone).numpy()) == bits(out[i : i + 1])
    assert not op.workspace.numpy()[: left_bytes(op)].any()


def left_bytes(op):
    """Of the workspace, where CTAs leave parts for each other; behind it they hold some for themselves."""
    return op.workspace_bytes * 2 // 3


def test_a_new_token_gives_the_same_bits_alone_and_among_others_of_its_sequence(rng, device):
    # As when a guess of several tokens is checked in one call. The second sequence's new tokens lie in two splits, of
    # which the first query sees the first alone.
    tile = 128
    case = make_case(rng, [700, tile + 2, 5], device=device)
    each = 5
    q = case.queries(rng, 3 * each, 8)
    options = {"tokens_per_sequence": each, "split_tokens": tile, "kernel": {"copies": "cp_async", "rows": 8}}
    op = kvit.Attention(case.view, 8, **options)
    assert op.kernel.facts["tile_tokens"] == tile
    together = op(to_device(q, device), case.view, case.page_table).numpy().reshape(3, each, 8, 64)
    for i in range(each):
        lengths = [length - each + 1 + i for length in case.table.lengths]
        table = kvit.PageTable(case.page_table.pages, lengths=to_device(np.array(lengths, np.int32), device))
        single = np.ascontiguousarray(q.reshape(3, each, 8, 64)[:, i])
        assert bits(op(to_device(single, device), case.view, table).numpy()) == bits(together[:, i].copy())
    state, bound = case.expect(q, [each] * 3)
    assert_within(together.reshape(q.shape), state.out, bound)


def test_new_tokens_of_every_number_give_the_same_bits_in_any_batch(rng, device):
    counts, lengths = [3, 1, 40, 0, 2], [300, 700, 400, 9, 2]
    case = make_case(rng, lengths, device=device)
    q = case.queries(rng, sum(counts), 8)
    op = kvit.Attention(case.view, 8, tokens_per_sequence=3, kernel={"copies": "cp_async"}, split_tokens=256)
    starts = np.cumsum([0, *counts])

    def attend(order):
        table = make_table([case.table.pages[i] for i in order], [lengths[i] for i in order], "ragged", device)
        rows = np.concatenate([q[starts[i] : starts[i + 1]] for i in order])
        indptr = to_device(np.cumsum([0, *(counts[i] for i in order)]).astype(np.int32), device)
        out = op(to_device(rows, device), case.view, table, query_indptr=indptr).numpy()
        ends = np.cumsum([counts[i] for i in order])
        return {i: bits(part) for i, part in zip(order, np.split(out, ends[:-1]), strict=True)}

    whole = attend([0, 1, 2, 3, 4])
    assert attend([4, 2, 0, 3, 1]) == whole
    for i in range(5):
        if counts[i]:
            assert attend([i])[i] == whole[i]


def test_a_sequence_of_more_splits_than_the_tree_holds_is_cut_less_often(rng, device):
    # The same 64 pages over and over: 1025 tiles and a bit.
    case = make_case(rng, [1024], page_size=16, kv_heads=1, device=device)
    op = kvit.Attention(case.view, 2, kernel={"copies": "cp_async"}, split_tokens=128)
    assert op.kernel.facts["most_splits"] == 1024 and op.kernel.facts["tile_tokens"] == 128
    lengths = [1025 * 128 + 3, 500]
    pages = [np.resize(case.table.pages[0], -(-length // 16)) for length in lengths]
    q = case.queries(rng, 2, 2)
    out = op(to_device(q, device), case.view, make_table(pages, lengths, "ragged", device)).numpy()
    for i in (0, 1):
        alone = make_table(pages[i : i + 1], lengths[i : i + 1], "ragged", device)
        assert bits(op(to_device(q[i : i + 1], device), case.view, alone).numpy()) == bits(out[i : i + 1])
    state = reference.paged_attention(q, case.cache, reference.Table(pages, lengths))
    assert_within(out, state.out, tolerances.attention_bound(np.abs(state.out) + 4, BFLOAT16))
    assert "work       513 splits" in op.explain(lengths[:1])  # of two tiles each
    assert "work       1024 splits" in op.explain([1024 * 128])


# --- what is wrong with a call, and what a call leaves behind --------------------------------------------------------


@pytest.mark.parametrize("copies", ["cp_async", "tma"])
def test_a_wrong_table_hurts_its_sequence_alone_and_leaves_the_workspace_zero(rng, device, copies):
    need(copies, device)
    sequences = Sequences(rng, LENGTHS, ("int8", "int8"), device=device)
    op = sequences.op(copies)
    alone = sequences.alone(op)
    pages = [np.array(sequences.case.table.pages[i]) for i in (0, 4, 1)]
    for slot, length, wrong in ((30, 700, 10**6), (0, -3, None)):
        bad = pages[1].copy()
        if wrong is not None:
            bad[slot] = wrong
        table = make_table([pages[0], bad, pages[2]], [1300, length, 256], "dense", device)
        out = op(to_device(sequences.q[[0, 4, 1]], device), sequences.case.view, table).numpy()
        assert np.isnan(out[1].astype(np.float32)).all()
        with pytest.raises(kvit.PageTableError, match=f"sequence 1.* {wrong or length}"):
            op.check()
        assert bits(out[:1]) == alone[0][:1] and bits(out[2:]) == alone[1][:1]
        assert not op.workspace.numpy()[: left_bytes(op)].any()
        sequences.assert_same(op, BATCHES[2], alone)


def test_calls_one_after_the_other_leave_each_other_nothing(rng, device):
    sequences = Sequences(rng, LENGTHS, device=device)
    op = sequences.op()
    alone = sequences.alone(op)
    for batch in (BATCHES[0], [4], BATCHES[4], BATCHES[0], [0, 0]):
        sequences.assert_same(op, batch, alone)
        assert not op.workspace.numpy()[: left_bytes(op)].any()


def test_what_a_cta_holds_for_itself_may_begin_with_any_bytes(rng, device):
    sequences = Sequences(rng, LENGTHS, device=device)
    first = sequences.op()
    alone = sequences.alone(first)
    bytes_before = np.full(first.workspace_bytes, 0xFF, np.uint8)
    bytes_before[: left_bytes(first)] = 0
    second = sequences.op(workspace=to_device(bytes_before, device))
    sequences.assert_same(second, BATCHES[2], alone)
    assert not second.workspace.numpy()[: left_bytes(second)].any()


def test_the_workspace_is_exactly_what_it_says_and_none_other_is_taken(rng, device):
    sequences = Sequences(rng, [300], device=device)
    op, plain = sequences.op(), kvit.Attention(sequences.case.view, sequences.heads, kernel={"copies": "cp_async"})
    assert op.workspace_bytes == op.workspace.nbytes == 256 + op.grid * 30 * op.kernel.axes["rows"] * (64 + 2) * 4
    with pytest.raises(kvit.ShapeError, match=f"{plain.workspace_bytes} bytes .*needs {op.workspace_bytes}; .*split_t"):
        sequences.op(workspace=plain.workspace)
    shared = sequences.op(workspace=op.workspace, tiles=2)
    assert shared.workspace is op.workspace


@pytest.mark.parametrize(
    ("tokens", "nearest"), [(0, "128$"), (-128, "128$"), (100, "128$"), (129, "128, 256$"), (2**31, "2147483520$")]
)
def test_splits_of_no_whole_number_of_tiles_are_refused(rng, tokens, nearest):
    view = make_case(rng, [4]).view
    with pytest.raises(kvit.ShapeError, match=f"split_tokens is {tokens}; .* tiles .* have 128 tokens.* do: {nearest}"):
        kvit.Attention(view, 8, kernel={"copies": "cp_async"}, split_tokens=tokens)
    with pytest.raises(kvit.ShapeError, match="split_tokens is 128.0; it must be a whole number"):
        kvit.Attention(view, 8, split_tokens=128.0)


def test_splits_longer_than_any_sequence_leave_heads_whole(rng, device):
    sequences = Sequences(rng, LENGTHS, device=device)
    op = sequences.op(tiles=(2**31 - 1) // 128)
    sequences.assert_right(op)
    sequences.assert_same(op, BATCHES[0], sequences.alone(op))


def test_explain_says_how_the_work_is_cut(rng):
    sequences = Sequences(rng, [300])
    plain = kvit.Attention(sequences.case.view, 8, kernel={"copies": "cp_async"})
    assert "cut        evenly over the grid" in plain.explain() and plain.split_tokens is None
    op = sequences.op(tiles=2)
    assert op.split_tokens == 256
    assert "cut        after each 256 tokens of a sequence (2 tiles): the same bits in any batch" in op.explain()
    assert "work       10 splits on" in op.explain([1000, 0])  # two heads of four splits, and an empty one's of one
