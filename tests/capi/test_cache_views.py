"""What C sees inside of a cache that owns its memory: its tokens, its view, and the pages of its sequences."""

from ctypes import byref, c_int32, c_int64, c_void_p, pointer

import numpy as np
import pytest

import kvit
from kvit import reference
from support import capi, tolerances
from support.caches import BFLOAT16, new_tokens, poisoned, to_device

PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM, QUERY_HEADS = 12, 4, 2, 64, 8


class Cache:
    """A kvit_cache of two sequences, of 10 tokens and of 3, with their K and V."""

    def __init__(self, api, rng, device, **fields):
        self.api, self.device = api, device
        device_type, device_id = (1, 0) if device == "host" else (2, int(device[5:]))
        shape = dict(pages=PAGES, page_size=PAGE_SIZE, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
        options = capi.options(capi.CacheOptions, device_type=device_type, device_id=device_id, **shape, **fields)
        self.handle = api.make("cache_create", options)
        self.sequences = [api.make("sequence_create", self.handle) for _ in range(2)]
        self.k, self.v = new_tokens(rng, 13)
        self.call("cache_append", [to_device(x, device) for x in (self.k, self.v)], (c_int64 * 2)(10, 3), None)

    def call(self, name, tensors, *rest, sequences=None):
        held = self.sequences if sequences is None else sequences
        handles = (c_void_p * len(held))(*[sequence.value for sequence in held])
        rows = [None if x is None else pointer(capi.tensor(x)) for x in tensors]
        getattr(self.api, name)(self.handle, handles, len(held), *rows, *rest)

    def pages(self, sequence):
        count, ids = c_int64(), (c_int32 * PAGES)()
        self.api.sequence_pages(sequence, ids, PAGES, byref(count))
        return list(ids)[: count.value]

    def close(self):
        for sequence in self.sequences:
            self.api.table.sequence_destroy(sequence)
        self.api.table.cache_destroy(self.handle)


@pytest.fixture
def cache(api, rng, device):
    made = Cache(api, rng, device)
    yield made
    made.close()


@pytest.fixture
def host_cache(api, rng):
    made = Cache(api, rng, "host")
    yield made
    made.close()


def rows_for(tokens, device="host"):
    return [to_device(poisoned((tokens, KV_HEADS, HEAD_DIM), BFLOAT16), device) for _ in range(2)]


def test_gather_fills_the_callers_memory_with_the_tokens_end_to_end(cache):
    into = rows_for(13, cache.device)
    cache.call("cache_gather", into, None)
    cache.api.cache_check(cache.handle, None, None)
    for buffer, expected in zip(into, (cache.k, cache.v), strict=True):
        np.testing.assert_array_equal(buffer.numpy(), expected)


def test_gather_of_a_quantised_cache_decodes(api, rng, device):
    cache = Cache(api, rng, device, k_dtype=4, v_dtype=5)
    into = rows_for(13, device)
    cache.call("cache_gather", into, None)
    cache.api.cache_check(cache.handle, None, None)
    for buffer, rows, name in zip(into, (cache.k, cache.v), ("int8", "int4"), strict=True):
        codec = reference.codec_of(name)
        np.testing.assert_array_equal(buffer.numpy(), codec.decode(*codec.encode(rows), BFLOAT16))
    cache.close()


def test_the_view_of_a_cache_serves_operations_with_a_table_of_the_host(cache, rng):
    # What a C engine does that schedules itself: pages from the sequences, a table on the device, one launch.
    api, device = cache.api, cache.device
    view = api.make("cache_view", cache.handle)
    info = api.ask("view_query", view, capi.ViewInfo)
    assert (info.num_pages, info.page_size, info.kv_heads, info.head_dim, info.dtype) == (
        PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM, 3,
    )  # fmt: skip
    slots = np.full((2, 4), 99, np.int32)
    for row, sequence in zip(slots, cache.sequences, strict=True):
        ids = cache.pages(sequence)
        row[: len(ids)] = ids
    table = capi.table(to_device(slots, device), to_device(np.array([10, 3], np.int32), device))
    q = rng.standard_normal((2, QUERY_HEADS, HEAD_DIM)).astype(BFLOAT16)
    out = to_device(poisoned(q.shape, q.dtype), device)
    op = api.op(view, query_heads=QUERY_HEADS)
    api.attention(op, view, byref(table), *(pointer(capi.tensor(x)) for x in (to_device(q, device), out)), *[None] * 3)
    api.op_check(op, None, None)
    for row, tokens in enumerate((slice(0, 10), slice(10, 13))):
        k, v = cache.k[tokens], cache.v[tokens]
        state = reference.attention(q[row : row + 1], k, v)
        magnitude = reference.attention(q[row : row + 1], k, np.abs(v)).out
        tolerances.assert_within(out.numpy()[row : row + 1], state.out, tolerances.attention_bound(magnitude, BFLOAT16))
    api.op_destroy(op)
    api.view_destroy(view)


def test_a_view_keeps_the_memory_of_a_cache_that_is_destroyed(api, rng):
    cache = Cache(api, rng, "host")
    view, ids = api.make("cache_view", cache.handle), cache.pages(cache.sequences[0])
    cache.close()
    others = [kvit.Buffer.empty(1 << 16, "uint8", "host") for _ in range(8)]  # whatever was given back is NaN now
    gather, into = api.op(view, capi.GATHER), rows_for(10)
    table = capi.table(np.array([ids], np.int32), np.array([10], np.int32))
    api.gather(gather, view, byref(table), *(pointer(capi.tensor(x)) for x in into), None, None)
    np.testing.assert_array_equal(into[0].numpy(), cache.k[:10])
    assert len(others) == 8
    api.op_destroy(gather)
    api.view_destroy(view)


def test_pages_are_told_in_order_and_as_many_as_fit(host_cache):
    api, (first, second) = host_cache.api, host_cache.sequences
    ids = host_cache.pages(first)
    assert len(ids) == 3 and len({*ids, *host_cache.pages(second)}) == 4 and all(0 <= i < PAGES for i in ids)
    room, count = (c_int32 * 3)(-1, -1, -1), c_int64()
    api.sequence_pages(first, room, 2, None)
    assert list(room) == [*ids[:2], -1]
    api.sequence_pages(first, None, 0, byref(count))
    assert count.value == 3
    api.sequence_truncate(first, 0)
    assert host_cache.pages(first) == []


def refused(status, words):
    return pytest.raises(capi.Refused, match=f"^{status}: .*{words}")


def test_gather_refuses_what_it_cannot_fill(host_cache):
    into = rows_for(13)
    frozen = poisoned((13, KV_HEADS, HEAD_DIM), BFLOAT16)
    frozen.flags.writeable = False
    with refused("SHAPE", r"k has shape \[12, 2, 64\]; it must be \[tokens = 13, kv_heads = 2"):
        host_cache.call("cache_gather", rows_for(12), None)
    with refused("SHAPE", "v has shape"):
        host_cache.call("cache_gather", [into[0], rows_for(12)[1]], None)
    with refused("DTYPE", "k is float16; it must be bfloat16"):
        host_cache.call("cache_gather", [into[0].numpy().astype(np.float16), into[1]], None)
    with refused("LAYOUT", "v is read-only and would be written"):
        host_cache.call("cache_gather", [into[0], frozen], None)
    with refused("ARGUMENT", "k is NULL; give a kvit_tensor"):
        host_cache.call("cache_gather", [None, into[1]], None)
    with refused("ARGUMENT", "sequences is NULL and count 2"):
        host_cache.api.cache_gather(host_cache.handle, None, 2, None, None, None)
    with refused("DEVICE", "none of the host's"):
        host_cache.call("cache_gather", into, 77)
    for buffer in into:
        assert (buffer.numpy().view(np.uint16) == 0xFFFF).all()


def test_what_has_no_place_for_an_answer_is_refused(host_cache):
    sequence = host_cache.sequences[0]
    with refused("ARGUMENT", "view is NULL; give the address of a kvit_view"):
        host_cache.api.cache_view(host_cache.handle, None)
    with refused("ARGUMENT", "pages is NULL and capacity 4; give memory for so many"):
        host_cache.api.sequence_pages(sequence, None, 4, None)
    with refused("ARGUMENT", "capacity -1"):
        host_cache.api.sequence_pages(sequence, (c_int32 * 1)(), -1, None)


def test_what_was_destroyed_is_refused(host_cache):
    api, (first, second) = host_cache.api, host_cache.sequences
    into, view = rows_for(13), c_void_p()
    api.sequence_destroy(second)
    with refused("HANDLE", "this kvit_sequence was destroyed"):
        host_cache.call("cache_gather", into, None)
    with refused("HANDLE", "this kvit_sequence was destroyed"):
        api.sequence_pages(second, None, 0, None)
    api.cache_destroy(host_cache.handle)
    with refused("HANDLE", "this kvit_cache was destroyed"):
        host_cache.call("cache_gather", into, None, sequences=[first])
    with refused("HANDLE", "this kvit_cache was destroyed"):
        api.cache_view(host_cache.handle, byref(view))
    assert view.value is None
    for buffer in into:
        assert (buffer.numpy().view(np.uint16) == 0xFFFF).all()
