"""What `kvit selfcheck` runs: each check compares a device with kvit.reference, on random inputs of one shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import kvit
from kvit import reference
from kvit._cli.codec_checks import check_quantised
from kvit._cli.compare import LSE_BOUND, attention_bound, expect, expect_close, expect_same, merge_bound
from kvit._cli.modifier_checks import check_modifiers
from kvit._cli.rope_checks import check_shift, check_turned_append
from kvit._cli.trial import RawCache, Trial, pool_shape, raw_cache

_GROUPS = (1, 2, 3, 4, 5, 7, 8, 16)


def _attend(trial: Trial, cache: RawCache, counts: list[int] | None, causal: bool, kv_heads: int) -> None:
    """Attention on raw buffers, twice: close to the reference, and the same bits again."""
    group = trial.choose("group", _GROUPS)
    query_heads = group * kv_heads
    tokens = len(cache.lengths) if counts is None else sum(counts)
    q = trial.random(tokens, query_heads, trial.shape.head_dim)
    op = kvit.Attention(cache.view, query_heads, causal=causal, tokens_per_sequence=max(counts or [1]))
    trial.chosen["kernel"] = op.kernel.symbol
    table, held = cache.page_table(trial), trial.upload(q)
    indptr = None if counts is None else trial.upload(np.cumsum([0, *counts]).astype(np.int32))
    results = []
    for _ in range(2):
        out, lse = trial.poisoned(q.shape, trial.dtype), trial.poisoned(q.shape[:2], np.float32)
        op(held, cache.view, table, out=out, lse=lse, query_indptr=indptr)
        op.check()
        results.append((out.numpy(), lse.numpy()))
    (out, lse), again = results
    state = reference.paged_attention(q, cache.plain, cache.table, counts, causal=causal)
    positive = reference.Cache(cache.plain.k, np.abs(cache.plain.v), cache.plain.layout)
    magnitude = reference.paged_attention(q, positive, cache.table, counts, causal=causal).out
    expect_close("out", out, state.out, attention_bound(magnitude, trial.dtype))
    expect_close("lse", lse, state.lse, LSE_BOUND)
    expect_same("out of the same call again", again[0], out)
    expect_same("lse of the same call again", again[1], lse)


def check_decode(trial: Trial) -> None:
    """One new token per sequence."""
    kv_heads = trial.choose("kv_heads", (1, 2, 3))
    cache = raw_cache(trial, trial.choose_lengths(trial.choose("sequences", (1, 2, 3, 5))), kv_heads)
    _attend(trial, cache, None, True, kv_heads)


def check_several_tokens(trial: Trial) -> None:
    """Several new tokens per sequence, in some more than it is long, in some none; causal or not."""
    kv_heads = trial.choose("kv_heads", (1, 2))
    lengths = trial.choose_lengths(trial.choose("sequences", (1, 2, 3)))
    counts = [int(trial.rng.integers(0, 6)) for _ in lengths]
    counts[0] += 1
    trial.chosen["new tokens"] = counts
    _attend(trial, raw_cache(trial, lengths, kv_heads), counts, trial.choose("causal", (True, False)), kv_heads)


def check_prompts(trial: Trial) -> None:
    """Prompts and chunks, and a single new token among them; causal or not."""
    kv_heads = trial.choose("kv_heads", (1, 2))
    lengths = trial.choose_lengths(trial.choose("sequences", (1, 2, 3)))
    counts = [int(trial.rng.integers(1, length + 1)) if length else 0 for length in lengths]
    counts[0] = 50
    trial.chosen["new tokens"] = counts
    _attend(trial, raw_cache(trial, lengths, kv_heads), counts, trial.choose("causal", (True, False)), kv_heads)


def _paged_cache(trial: Trial, tokens: int, sequences: int) -> kvit.PagedCache:
    """A cache with room for the tokens, full of NaN."""
    shape = trial.shape
    pages = -(-tokens // shape.page_size) + sequences + 2
    kv_heads = trial.choose("kv_heads", (1, 2, 3))
    cache = kvit.PagedCache(
        pages, shape.page_size, kv_heads, shape.head_dim, dtype=shape.dtype, layout=shape.layout, device=trial.device
    )
    for pool in (cache.view.k, cache.view.v):
        pool.fill_bytes(0xFF)
    return cache


def _tokens(trial: Trial, cache: kvit.PagedCache, count: int) -> NDArray:
    """Random K and V [2, count, kv_heads, head_dim]."""
    return trial.random(2, count, cache.kv_heads, cache.head_dim)


def check_append(trial: Trial) -> None:
    """Tokens go where the page table says, and no other byte of the pool changes."""
    first, second = (trial.choose_lengths(3) for _ in range(2))
    trial.chosen["lengths"] = [first, second]
    cache = _paged_cache(trial, sum(first) + sum(second), 3)
    sequences = [cache.sequence() for _ in first]
    pools = [np.empty(pool_shape(trial.shape, cache.num_pages, cache.kv_heads), trial.dtype) for _ in range(2)]
    for pool in pools:
        pool.view(np.uint8)[...] = 0xFF
    for counts in (first, second):
        k, v = _tokens(trial, cache, sum(counts))
        cache.append(sequences, trial.upload(k), trial.upload(v), counts)
        table = reference.Table([np.array(seq.pages, np.int32) for seq in sequences], list(map(len, sequences)))
        reference.append(reference.Cache(*pools, trial.shape.layout), table, k, v, counts)
    cache.check()
    for name, found, expected in zip("kv", (cache.view.k, cache.view.v), pools, strict=True):
        expect_same(f"pool of {name}", found.numpy(), expected)


def check_gather(trial: Trial) -> None:
    """What was appended comes back, end to end, in the order that was asked for."""
    lengths = trial.choose_lengths(3)
    cache = _paged_cache(trial, sum(lengths), 3)
    sequences = [cache.sequence() for _ in lengths]
    new = _tokens(trial, cache, sum(lengths))
    cache.append(sequences, trial.upload(new[0]), trial.upload(new[1]), lengths)
    order = [int(i) for i in trial.rng.permutation(3)]
    k, v, indptr = cache.gather([sequences[i] for i in order])
    cache.check()
    ranges = reference.token_ranges(lengths)
    expected = np.concatenate([new[:, ranges[i]] for i in order], axis=1)
    expect_same("k", k.numpy(), expected[0])
    expect_same("v", v.numpy(), expected[1])
    expect_same("indptr", indptr.numpy(), np.cumsum([0, *(lengths[i] for i in order)]).astype(np.int32))


def check_fork(trial: Trial) -> None:
    """Two sequences that share tokens grow apart: a part-full page is copied, full ones stay shared."""
    prefix, *more = trial.choose_lengths(3)
    cache = _paged_cache(trial, prefix + sum(more) + trial.shape.page_size, 2)
    ours = cache.sequence()
    shared = _tokens(trial, cache, prefix)
    ours.append(trial.upload(shared[0]), trial.upload(shared[1]))
    theirs = ours.fork()
    grown = []
    for sequence, count in zip((ours, theirs), more, strict=True):
        new = _tokens(trial, cache, count)
        sequence.append(trial.upload(new[0]), trial.upload(new[1]))
        grown.append(np.concatenate([shared, new], axis=1))
    k, v, _ = cache.gather([ours, theirs])
    cache.check()
    full = prefix // trial.shape.page_size
    expect(ours.pages[:full] == theirs.pages[:full], f"full pages are not shared: {ours.pages}, {theirs.pages}")
    for name, found, i in (("k", k, 0), ("v", v, 1)):
        expect_same(name, found.numpy(), np.concatenate([tokens[i] for tokens in grown]))


def check_merge(trial: Trial) -> None:
    """The union of attention results, empty ones among them, whose outputs are NaN."""
    tokens, heads = trial.choose("tokens", (1, 3, 17)), trial.choose("query_heads", (1, 5, 8))
    parts = trial.choose("parts", (2, 1, 5, 19))
    outs = trial.random(parts, tokens, heads, trial.shape.head_dim)
    lses = (4 * trial.rng.standard_normal((parts, tokens, heads))).astype(np.float32)
    is_empty = trial.rng.integers(4, size=lses.shape) == 0
    lses[is_empty], outs[is_empty] = trial.rng.choice([-np.inf, np.inf], is_empty.sum()), np.nan
    out, lse = trial.poisoned(outs[0].shape, trial.dtype), trial.poisoned(lses[0].shape, np.float32)
    if trial.choose("parts are", ("a list", "stacked")) == "stacked":
        kvit.merge_states(trial.upload(outs), trial.upload(lses), out=out, lse=lse)
    else:
        kvit.merge_states(*([trial.upload(part) for part in array] for array in (outs, lses)), out=out, lse=lse)
    state = reference.merge_states(zip(outs, lses, strict=True))
    bound = merge_bound(np.nan_to_num(outs.astype(np.float64)), trial.dtype)
    expect_close("out", out.numpy(), state.out, bound)
    expect_close("lse", lse.numpy(), state.lse, LSE_BOUND)


def _break_table(trial: Trial, cache: RawCache) -> tuple[int, int, int]:
    """Give a sequence a page that does not exist, or a length that none can have: (sequence, slot, value)."""
    wrong, slot = int(trial.rng.integers(len(cache.lengths))), 0
    if trial.choose("fault", ("page", "length")) == "page":
        slot = int(trial.rng.integers(len(cache.pages[wrong])))
        value = trial.choose("value", (-1, cache.plain.num_pages, 2**31 - 1, -(2**31)))
        cache.pages[wrong] = cache.pages[wrong].copy()
        cache.pages[wrong][slot] = value
    else:
        value = trial.choose("value", (-1, -(2**31), 2**31 - 1))
        cache.lengths[wrong] = value
    trial.chosen["wrong"] = {"sequence": wrong, "slot": slot}
    return wrong, slot, value


def _expect_fault(trial: Trial, op: kvit.Attention | kvit.Append, expected: tuple[int, int, int]) -> None:
    """The operation reports this (sequence, slot, value), once. A length has no slot."""
    try:
        op.check()
    except kvit.PageTableError as fault:
        found = (fault.sequence, fault.slot if trial.chosen["fault"] == "page" else 0, fault.value)
        expect(found == expected, f"reported (sequence, slot, value) {found}, not {expected}")
    else:
        expect(False, f"nothing was reported of (sequence, slot, value) {expected}")
    op.check()


def check_bad_table(trial: Trial) -> None:
    """A page id or a length that cannot be is reported when it is read, and nobody else's output suffers."""
    kv_heads = trial.choose("kv_heads", (1, 2))
    cache = raw_cache(trial, [length + 1 for length in trial.choose_lengths(3)], kv_heads)
    expected = _break_table(trial, cache)
    query_heads = kv_heads * trial.choose("group", _GROUPS)
    q = trial.random(3, query_heads, trial.shape.head_dim)
    op = kvit.Attention(cache.view, query_heads)
    out, lse = trial.poisoned(q.shape, trial.dtype), trial.poisoned(q.shape[:2], np.float32)
    op(trial.upload(q), cache.view, cache.page_table(trial), out=out, lse=lse)
    _expect_fault(trial, op, expected)
    state = reference.paged_attention(q, cache.plain, cache.table)
    positive = reference.Cache(cache.plain.k, np.abs(cache.plain.v), cache.plain.layout)
    magnitude = reference.paged_attention(q, positive, cache.table).out
    expect_close("out", out.numpy(), state.out, attention_bound(np.nan_to_num(magnitude), trial.dtype))


def check_bad_append(trial: Trial) -> None:
    """Tokens whose page or length cannot be are reported and not written; all others are."""
    kv_heads = trial.choose("kv_heads", (1, 2))
    counts = [length + 1 for length in trial.choose_lengths(3)]
    cache = raw_cache(trial, counts.copy(), kv_heads)
    expected = _break_table(trial, cache)
    k, v = trial.random(2, sum(counts), kv_heads, trial.shape.head_dim)
    op = kvit.Append(cache.view)
    starts = trial.upload(np.cumsum([0, *counts]).astype(np.int32))
    op(trial.upload(k), trial.upload(v), cache.view, cache.page_table(trial), query_indptr=starts)
    _expect_fault(trial, op, expected)
    # An impossible length leaves a sequence without places, whatever its number: the reference need not count that far.
    lengths = [0 if length != count else count for length, count in zip(cache.lengths, counts, strict=True)]
    reference.append(cache.plain, reference.Table(cache.pages, lengths), k, v, counts)
    for name, pool, plain in (("k", cache.view.k, cache.plain.k), ("v", cache.view.v, cache.plain.v)):
        expect_same(f"pool of {name}", pool.numpy(), plain)


CHECKS: dict[str, Callable[[Trial], None]] = {
    "decode": check_decode,
    "several tokens": check_several_tokens,
    "prompts": check_prompts,
    "append": check_append,
    "append, turned": check_turned_append,
    "gather": check_gather,
    "shift": check_shift,
    "fork": check_fork,
    "merge": check_merge,
    "bad page table": check_bad_table,
    "append to a bad page table": check_bad_append,
    "quantised": check_quantised,
    "masks and scores": check_modifiers,
}
