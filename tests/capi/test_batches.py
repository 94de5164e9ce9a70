"""Batches of a cache of several layers, through the table: a graph of one step stands for all that follow.

Chosen: three layers alike and sequences of 10 and 3 tokens in pages of 4, so that a step ends within a page, later ones
begin new pages, and one of forks copies pages.
"""

import itertools
import threading
from ctypes import POINTER, byref, c_void_p, sizeof
from itertools import starmap

import numpy as np
import pytest

import kvit
from kvit import reference
from support import capi, tolerances
from support.caches import BFLOAT16
from support.capi_batches import end, write
from support.capi_layers import given, handles, numbers, refused, same, specs
from support.interrupts import Interrupt, interrupt_at


def attend(cache, rng, layer, count, new_tokens=None, options=None, **words):
    """Attention of both batches to a layer, compared bit for bit; q, out and lse."""
    q, (out, lse) = cache.queries(rng, layer, count), cache.outputs(layer, count)
    cache.api.batch_attention(
        cache.batch, layer, given(q), given(out), given(lse), numbers(new_tokens), options and byref(options)
    )
    wanted = kvit.attention(q, cache.python.layer(layer), cache.theirs_batch, new_tokens, return_lse=True, **words)
    for mine, theirs in zip((out, lse), wanted, strict=True):
        same(mine.numpy(), theirs.numpy())
    return q.numpy(), out.numpy(), lse.numpy()


def test_steps_of_a_batch_write_and_attend_layer_by_layer(new_batch, rng, device):
    cache = new_batch(device)
    before = {layer: [cache.held(layer, i) for i in (0, 1)] for layer in range(3)}
    new_tokens = [2, 5]
    step = cache.begin(new_tokens)
    for layer in range(3):
        [[k, v]] = write(cache, step, rng, [layer], 7).values()
        q, out, lse = attend(cache, rng, layer, 7)
        for i, rows in enumerate(reference.token_ranges(new_tokens)):
            whole = [np.concatenate([had, x.numpy()[rows]]) for had, x in zip(before[layer][i], (k, v), strict=True)]
            state = reference.attention(q[rows], *whole)
            magnitude = reference.attention(q[rows], whole[0], np.abs(whole[1])).out
            tolerances.assert_within(out[rows], state.out, tolerances.attention_bound(magnitude, BFLOAT16))
            tolerances.assert_within(lse[rows], state.lse, tolerances.LSE)
        assert [cache.length(i) for i in (0, 1)] == [10, 3]  # until it is committed
    end(cache, step)
    assert [cache.length(i) for i in (0, 1)] == [12, 8]
    for _ in range(3):  # one new token of each by default
        step = cache.begin()
        write(cache, step, rng, range(3), 2)
        end(cache, step)
    cache.check()


def test_attention_without_a_step_takes_the_sequences_as_they_are(new_batch, rng, device):
    cache = new_batch(device)
    attend(cache, rng, 1, 4)  # of the last 2 tokens of each
    attend(cache, rng, 2, 3, [0, 3])
    attend(cache, rng, 0, 2, options=capi.options(capi.AttentionOptions, window_left=2, mask=1), causal=False, window=2)
    step = cache.begin([3, 1])
    write(cache, step, rng, range(3), 4)
    attend(cache, rng, 0, 2, [1, 1])  # in a step as well
    end(cache, step)
    cache.check()


def test_step_attention_is_that_of_the_batch(new_batch, rng):
    cache = new_batch()
    step = cache.begin()
    write(cache, step, rng, range(3), 2)
    q, (out, _) = cache.queries(rng, 0, 2), cache.outputs(0, 2)
    cache.api.step_attention(step[0], 0, given(q), given(out), None, None, None)
    same(out.numpy(), kvit.attention(q, cache.python.layer(0), cache.theirs_batch).numpy())
    end(cache, step)


def captured(cache, rng):
    """A graph of the calls of a step in all layers, made in an open step, and the memory that it reads and writes."""
    step, buffers = c_void_p(), []
    cache.api.batch_step(cache.batch, None, byref(step))
    with kvit.Graph.capture(cache.stream) as graph:
        for layer in range(3):
            (k, v), q, (out, _) = cache.rows(rng, layer, 2), cache.queries(rng, layer, 2), cache.outputs(layer, 2)
            buffers.append((k, v, q, out))
            cache.api.step_append(step, layer, given(k), given(v), None, None)
            cache.api.step_attention(step, layer, given(q), given(out), None, None, None)
    cache.stream.synchronize()
    assert all(np.isnan(out.numpy().astype(np.float32)).all() for *_, out in buffers)  # nothing ran
    cache.api.step_destroy(step)
    return graph, buffers


def replay(cache, rng, graph, buffers):
    """A step that is the launch of the graph, beside calls of Python on the same rows."""
    step = c_void_p()
    cache.api.batch_step(cache.batch, None, byref(step))
    with cache.theirs_batch.step() as theirs:
        for layer, (k, v, q, out) in enumerate(buffers):
            fresh = [*cache.rows(rng, layer, 2), cache.queries(rng, layer, 2)]
            for buffer, rows in zip((k, v, q), fresh, strict=True):
                buffer.copy_from(rows)
            out.fill_bytes(0xFF)
        graph.launch()
        cache.stream.synchronize()
        for layer, (k, v, q, out) in enumerate(buffers):
            cache.python.layer(layer).append(theirs, k, v)
            same(out.numpy(), kvit.attention(q, cache.python.layer(layer), theirs).numpy())
    cache.api.step_commit(step)
    cache.api.step_destroy(step)


def test_a_graph_of_one_step_stands_for_those_that_follow(new_batch, rng, device):
    cache = new_batch(device, stream=kvit.Stream(device))
    graph, buffers = captured(cache, rng)
    for _ in range(6):  # both sequences go on to new pages meanwhile
        replay(cache, rng, graph, buffers)
    cache.check()
    cache.append_all(rng, [0], [1])  # 17 tokens: the next step goes on within a page, which the fork shares by then
    fork, before = cache.fork(0), [cache.held(layer, 0) for layer in range(3)]
    replay(cache, rng, graph, buffers)
    for layer, index in itertools.product(range(3), (0, fork)):  # Python's cache could have lost the same bits
        for now, old in zip(cache.held(layer, index), before[layer], strict=True):
            same(now[:17], old)
    others = [cache.sequence(), 1]
    cache.append_all(rng, others[:1], [2])
    cache.use(others)
    for _ in range(3):
        replay(cache, rng, graph, buffers)
    cache.check()
    assert [cache.length(i) for i in range(4)] == [18, 13, 17, 5]


def test_a_step_begins_outside_of_a_capture(new_batch):
    cache = new_batch(stream=kvit.Stream("host"))
    step = c_void_p()
    cache.api.batch_step(cache.batch, None, byref(step))
    cache.api.step_destroy(step)
    with kvit.Graph.capture(cache.stream), refused("DRIVER", "differs from the last call"):
        cache.api.batch_step(cache.batch, numbers([2, 2]), byref(step))
    cache.check()
    cache.api.batch_step(cache.batch, None, byref(step))
    cache.api.step_destroy(step)


def test_groups_of_layers_take_steps_of_a_batch(new_batch, rng, device):
    words = [kvit.LayerSpec(count=2, window=4), kvit.LayerSpec(kv_heads=1, head_dim=128, k="int8", v="int4")]
    fields = specs({"count": 2, "window_left": 4}, {"kv_heads": 1, "head_dim": 128, "k_dtype": 4, "v_dtype": 5})
    cache = new_batch(device, fields, {"layers": words})
    for _ in range(2):
        step = cache.begin([4, 1])
        write(cache, step, rng, range(3), 5)
        for layer in range(3):
            attend(cache, rng, layer, 5)
        end(cache, step)
    cache.check()


def test_a_step_that_is_destroyed_leaves_the_batch_as_it_was(new_batch, rng):
    cache = new_batch()
    free = cache.info().num_free_pages
    step = cache.begin([9, 9])
    info = cache.batch_info()
    assert (info.has_open_step, info.num_sequences) == (1, 2)
    write(cache, step, rng, [0, 2], 18)
    cache.api.step_destroy(step[0])
    step[1].close()
    assert cache.info().num_free_pages == free and cache.batch_info().has_open_step == 0
    attend(cache, rng, 0, 2)  # of the tokens before
    step = cache.begin()
    write(cache, step, rng, range(3), 2)
    end(cache, step)
    cache.check()


def test_a_step_outlives_the_handles_of_its_batch_cache_and_sequences(api, rng):
    cache = api.make(
        "cache_create",
        capi.options(capi.CacheOptions, pages=4, page_size=4, kv_heads=2, head_dim=64, device_type=1, num_layers=2),
    )
    sequence, batch, step = api.make("sequence_create", cache), c_void_p(), c_void_p()
    api.batch_create(cache, handles([sequence]), 1, None, byref(batch))
    api.batch_step(batch, None, byref(step))
    api.cache_destroy(cache)
    api.batch_destroy(batch)
    k, v = (given(x) for x in rng.standard_normal((2, 1, 2, 64)).astype(BFLOAT16))
    for layer in range(2):
        api.step_append(step, layer, k, v, None, None)
    api.step_commit(step)
    assert api.ask("sequence_query", sequence, capi.SequenceInfo).length == 1
    api.sequence_destroy(sequence)
    api.step_destroy(step)


def test_room_of_the_table_is_what_max_tokens_says(new_batch, rng):
    # Pages that sequences share are in the table once for each: forks of 7 pages fill it while the cache has free ones.
    cache = new_batch()
    assert cache.batch_info().max_pages >= 2 * cache.info().num_pages
    cache.append_all(rng, [0], [18])
    long, empty = [0, cache.fork(0)], [cache.sequence(), cache.sequence()]
    small, step = cache.make(empty, max_tokens=1), c_void_p()
    room = cache.api.ask("batch_query", small, capi.BatchInfo).max_pages
    assert 2 <= room < 14
    cache.api.batch_use(small, *cache.chosen(long)[1:])
    with refused("CACHE_FULL", f"the table of the batch has room for {room} pages of all sequences; make a Batch of"):
        cache.api.batch_step(small, None, byref(step))
    assert step.value is None
    cache.check()
    cache.api.batch_use(small, *cache.chosen(empty)[1:])
    cache.api.batch_step(small, None, byref(step))
    cache.api.step_destroy(step)


def test_batches_of_two_threads_take_turns_within_a_call(new_batch, rng):
    # Each has a sequence, and so steps of its own, that are open at the same time.
    cache, problems = new_batch(), []
    cache.api.batch_destroy(cache.batch)
    batches = [cache.make([i]) for i in (0, 1)]
    rows = [[cache.rows(rng, layer, 1) for layer in range(3)] for _ in batches]

    def work(i):
        try:
            for _ in range(10):
                step = c_void_p()
                cache.api.batch_step(batches[i], None, byref(step))
                for layer, (k, v) in enumerate(rows[i]):
                    cache.api.step_append(step, layer, given(k), given(v), None, None)
                cache.api.step_commit(step)
                cache.api.step_destroy(step)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and [cache.length(i) for i in (0, 1)] == [20, 13]
    for _ in range(10):
        cache.python.append(cache.theirs, *([np.concatenate([a[layer][side] for a in rows]) for layer in range(3)]
                                            for side in (0, 1)))  # fmt: skip
    cache.check()


class OpenBatch:
    """A cache of two layers and a batch of one of its sequences, of 5 tokens, which a fork shares, and calls on it."""

    def __init__(self, api, rng):
        self.api, self.table = api, api.table
        options = capi.options(
            capi.CacheOptions, pages=6, page_size=4, kv_heads=2, head_dim=64, device_type=1, num_layers=2
        )
        self.cache = api.make("cache_create", options)
        self.sequence, self.batch, self.place = api.make("sequence_create", self.cache), c_void_p(), c_void_p()
        rows = rng.standard_normal((2, 5, 2, 64)).astype(BFLOAT16)
        k, v = map(given, rows)
        of_all = [(POINTER(capi.Tensor) * 2)(side, side) for side in (k, v)]
        members = handles([self.sequence])
        api.cache_append_layers(self.cache, members, 1, *of_all, 2, None, None)
        self.other = api.make("sequence_fork", self.sequence)
        api.batch_create(self.cache, members, 1, None, byref(self.batch))
        self.out = np.zeros_like(rows[0])
        self.calls = {
            "batch_create": (self.cache, members, 1, None, byref(self.place)),
            "batch_use": (self.batch, handles([self.other]), 1),
            "batch_step": (self.batch, numbers([3]), byref(self.place)),
            "batch_attention": (self.batch, 1, k, given(self.out), None, None, None),
            "batch_query": (self.batch, byref(capi.BatchInfo(sizeof(capi.BatchInfo)))),
        }

    def close(self, name):
        """The batch takes a step still, and every page must come back."""
        if name == "batch_step" and self.place.value:
            self.api.step_destroy(self.place)
        assert self.api.ask("cache_query", self.cache, capi.CacheInfo).num_free_pages == 4
        step = c_void_p()
        self.api.batch_step(self.batch, None, byref(step))
        self.api.step_destroy(step)
        for handle in (self.sequence, self.other):
            self.api.sequence_destroy(handle)
        self.api.batch_destroy(self.batch)
        if name == "batch_create" and self.place.value:
            self.api.batch_destroy(self.place)
        assert self.api.ask("cache_query", self.cache, capi.CacheInfo).num_free_pages == 6
        self.api.cache_destroy(self.cache)


@pytest.mark.parametrize("name", ["batch_create", "batch_use", "batch_step", "batch_attention", "batch_query"])
def test_a_call_that_is_interrupted_anywhere_loses_no_page(api, rng, name):
    for line in itertools.count(1, 3):
        opened, statuses, is_interrupted = OpenBatch(api, rng), [], False
        try:
            with interrupt_at(line):
                statuses.extend(starmap(getattr(api.table, name), [opened.calls[name]]))
        except Interrupt:
            is_interrupted = True
        assert (opened.place.value is None) or statuses == [0]
        opened.close(name)
        if not is_interrupted:
            break
        assert statuses == [capi.STATUSES.index("INTERRUPTED")]
    assert statuses == [0] and line > 3
