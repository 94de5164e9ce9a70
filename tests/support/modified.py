"""Calls of kvit.Attention with windows, trees, sinks and the like: on a device, and in the reference's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit._native.context import Device
from support import tolerances
from support.caches import Case, poisoned, to_device
from support.tolerances import assert_within

ARRAYS = ("sinks", "alibi", "temperature")
LEAST = 1e-37  # what no weight in float32 makes of a value: a sink far above all scores leaves less


def on_device(options: dict[str, Any], device: str) -> dict[str, Any]:
    """Options of the reference as kvit.Attention takes them: arrays on the device."""
    return {name: to_device(np.asarray(x, np.float32), device) if name in ARRAYS else x for name, x in options.items()}


def attend(case: Any, q: np.ndarray, counts: list[int], kernel: Any = None, split_tokens: int | None = None,
           spans: Any = None, tree: Any = None, **options: Any) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(out, lse) of one call in numpy, from poisoned memory."""
    op = kvit.Attention(
        case.view, q.shape[1], kernel=kernel, split_tokens=split_tokens, spans=spans is not None,
        tree=tree is not None, tokens_per_sequence=max(counts, default=1), **on_device(options, case.device),
    )  # fmt: skip
    out, lse = (to_device(poisoned(shape, dtype), case.device) for shape, dtype in
                (((*q.shape[:2], case.view.v_dim), q.dtype), (q.shape[:2], np.dtype(np.float32))))  # fmt: skip
    arrays = {
        name: to_device(np.asarray(x, dtype), case.device)
        for name, x, dtype in (("spans", spans, np.int32), ("tree", tree, np.int64))
        if x is not None
    }
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), case.device)
    op(to_device(q, case.device), case.view, case.page_table, query_indptr=indptr, out=out, lse=lse, **arrays)
    op.check()
    return out.numpy(), lse.numpy()


def assert_modified(case: Case, q: np.ndarray, counts: list[int], kernel: Any = None, split_tokens: int | None = None,
                    **options: Any) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """One call gives what the reference gives. Returns (out, lse)."""
    out, lse = attend(case, q, counts, kernel, split_tokens, **options)
    state, bound = case.expect(q, counts, **options)
    assert_within(out, state.out, np.nan_to_num(bound) + LEAST)
    assert_within(lse, state.lse, tolerances.LSE)
    return out, lse


def poison_unseen(case: Case, counts: list[int], **masks: Any) -> int:
    """Makes K and V of every token that no query of its sequence sees NaN; returns how many those are.

    masks  of seen_keys, but for spans and tree of all tokens of the call
    """
    hidden = 0
    spans, tree = masks.pop("spans", None), masks.pop("tree", None)
    for sequence, tokens in enumerate(reference.token_ranges(counts)):
        length, count = case.table.lengths[sequence], counts[sequence]
        seen = np.zeros(length, bool)
        for i in range(count):
            row = tokens.start + i
            own = {"span": None if spans is None else spans[row], "tree": None if tree is None else tree[row]}
            seen |= reference.seen_keys(length, count, i, **own, **masks).keys
        page, place = case.table.places(case.cache, sequence)
        for store in case.cache.stores():
            store.data[page[~seen], place[~seen]] = np.nan
        hidden += int((~seen).sum())
    for buffer, array in zip(case.buffers, (case.cache.k, case.cache.v), strict=True):
        buffer.copy_from(array)
    return hidden


def prompt_kernel(copies: str, head_dim: int, device: str) -> dict[str, Any]:
    """The `kernel=` of prefill's general kernel for such rows; skips where no GPU runs it."""
    if copies == "tma" and device != "host" and Device.of(device).compute_capability != (9, 0):
        pytest.skip("no GPU of compute capability 9.0")
    rows = 64 if (copies, head_dim) == ("cp_async", 256) else 128
    return {"copies": copies, "rows": rows, "variant": "general"}


def spans_of(lengths: list[int], counts: list[int], *places: tuple[int, int, int]) -> np.ndarray:
    """[tokens, 2] spans of the call's queries by (sequence, begin, end): those whose positions lie there have it."""
    rows = [[0, 0] for _ in range(sum(counts))]
    for sequence, begin, end in places:
        first = sum(counts[:sequence])
        for i in range(counts[sequence]):
            if begin <= lengths[sequence] - counts[sequence] + i < end:
                rows[first + i] = [begin, end]
    return np.array(rows, np.int32)


def assert_same_bits(some: Any, others: Any) -> None:
    """Arrays that are equal bit for bit, pair by pair."""
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a.view(f"u{a.dtype.itemsize}"), b.view(f"u{b.dtype.itemsize}"))


def beyond(tree: np.ndarray, counts: list[int]) -> np.ndarray:
    """The words of trees with all bits set that stand for no new token of their sequence."""
    found, row = tree.copy().view(np.uint64), 0
    for count in counts:
        for word in range(tree.shape[1]):
            kept = min(max(count - 64 * word, 0), 64)
            found[row : row + count, word] |= np.uint64(2**64 - 2**kept)
        row += count
    return found.view(np.int64)


def branches(rng: np.random.Generator, count: int, words: int) -> np.ndarray:
    """[count, words] the words of a random tree of `count` tokens, each behind its parent: int64."""
    ancestors: list[int] = []
    for i in range(count):
        parent = int(rng.integers(-1, i))
        ancestors.append((ancestors[parent] if parent >= 0 else 0) | 1 << i)
    split = [[bits >> 64 * word & (2**64 - 1) for word in range(words)] for bits in ancestors]
    return np.array(split, np.uint64).reshape(count, words).view(np.int64)
