"""Hunts for tokens that a cache of the C API loses where counts and handles are wrong; the model is each one's rows."""

import ctypes
from ctypes import byref, c_int64, c_void_p, pointer

import numpy as np
import pytest

from support import capi
from support.caches import BFLOAT16, new_tokens
from support.capi import say


@pytest.fixture(scope="module")
def api():
    return capi.Api()


@pytest.mark.hunt(share=2, short=6)
def test_a_cache_of_c_survives_wrong_counts_and_handles(hunt, api):
    for rng in hunt.rounds():
        fields = {"layout": capi.HND, "pages": 5, "page_size": 3, "kv_heads": 1, "head_dim": 64, "dtype": 3}
        cache = api.make("cache_create", capi.options(capi.CacheOptions, device_type=1, **fields))
        live = []  # (handle, rows)
        for _ in range(30):
            hunt.count(cache_step(api, rng, cache, live))
            check_cache(api, cache, live)
        for seq, _ in live:
            assert api.table.sequence_destroy(seq) == 0
        assert api.ask("cache_query", cache, capi.CacheInfo).num_free_pages == 5
        api.cache_destroy(cache)


def wrong_handle(rng, handle):
    return c_void_p(handle.value + int(rng.integers(1, 99))) if rng.integers(8) == 0 else handle


def cache_step(api, rng, cache, live):
    """One call, with right or wrong arguments; what it leaves is put down in `live`."""
    kind = str(rng.choice(["create", "fork", "truncate", "destroy", "append", "append", "append"]))
    if not live or kind == "create":
        handle = c_void_p()
        status = api.table.sequence_create(wrong_handle(rng, cache), byref(handle))
        if status == 0:
            live.append((handle, np.zeros((2, 0, 1, 64), BFLOAT16)))
        return outcome(api, status, "create")
    i = int(rng.integers(len(live)))
    seq, rows = live[i]
    given = wrong_handle(rng, seq)
    if kind == "fork":
        handle = c_void_p()
        status = api.table.sequence_fork(given, byref(handle))
        if status == 0:
            live.append((handle, rows if given is seq else rows_of(live, given)))
    elif kind == "truncate":
        length = int(rng.choice([-1, 0, 1, 2, rows.shape[1], rows.shape[1] + 1, 2**40]))
        status = api.table.sequence_truncate(seq, length)
        assert (status == 0) == (0 <= length <= rows.shape[1])
        live[i] = seq, rows[:, :length] if status == 0 else rows
    elif kind == "destroy":
        status = api.table.sequence_destroy(seq)
        live.pop(i)
    else:
        return append_step(api, rng, cache, live)
    return outcome(api, status, kind)


def rows_of(live, handle):
    return next(rows for seq, rows in live if seq.value == handle.value)


def append_step(api, rng, cache, live):
    chosen = rng.permutation(len(live))[: int(rng.integers(1, 4))].tolist()
    counts = [int(rng.integers(0, 5)) for _ in chosen]
    new = new_tokens(rng, sum(counts), kv_heads=1)
    seqs = (c_void_p * len(chosen))(*(live[i][0].value for i in chosen))
    told = list(counts)
    is_wrong = rng.integers(4) == 0
    if is_wrong:
        told[int(rng.integers(len(told)))] = int(rng.choice([-1, 9, 2**40, -(2**63)]))
    if rng.integers(8) == 0:
        seqs[0], is_wrong = seqs[-1] if len(chosen) > 1 else 12345, True
    tensors = [pointer(capi.tensor(x)) for x in new]
    status = api.table.cache_append(cache, seqs, len(chosen), *tensors, (c_int64 * len(told))(*told), None)
    assert status != 0 or not is_wrong
    if status == 0:
        ends = np.cumsum([0, *counts])
        for j, i in enumerate(chosen):
            seq, rows = live[i]
            live[i] = seq, np.concatenate([rows, new[:, ends[j] : ends[j + 1]]], axis=1)
    return outcome(api, status, "append")


def outcome(api, status, kind):
    if status == 0:
        return kind
    say(api, status)
    return f"refused: {capi.STATUSES[status]}"


def check_cache(api, cache, live):
    """All sequences hold their tokens."""
    pages = set()
    for seq, rows in live:
        info = api.ask("sequence_query", seq, capi.SequenceInfo)
        assert (info.length, info.num_pages) == (rows.shape[1], -(-rows.shape[1] // 3))
        numbers, count = (ctypes.c_int32 * 8)(), c_int64()
        assert api.table.sequence_pages(seq, numbers, 8, byref(count)) == 0
        pages.update(numbers[: count.value])
    assert api.ask("cache_query", cache, capi.CacheInfo).num_free_pages == 5 - len(pages)
    held = [(seq, rows) for seq, rows in live if rows.shape[1]]
    if held:
        wanted = np.concatenate([rows for _, rows in held], axis=1)
        found = np.zeros_like(wanted)
        seqs = (c_void_p * len(held))(*(seq.value for seq, _ in held))
        api.cache_gather(cache, seqs, len(held), *(pointer(capi.tensor(x)) for x in found), None)
        np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16))
