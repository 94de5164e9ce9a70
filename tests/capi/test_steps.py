"""Steps of a cache of several layers, through the table: whole, or as if they had not been.

Chosen: three layers alike and sequences of 10 and 3 tokens in pages of 4, so that a step ends within a page, and one of
forks copies pages.
"""

import itertools
import threading
from ctypes import POINTER, byref, c_void_p
from itertools import starmap

import numpy as np
import pytest

import kvit
from kvit import reference
from support import capi, tolerances
from support.caches import BFLOAT16, to_device
from support.capi_layers import LayeredCache, given, handles, numbers, refused, same, specs
from support.interrupts import Interrupt, interrupt_at


@pytest.fixture
def new(api):
    made = []

    def make(fields=None, words=None, device="host"):
        made.append(LayeredCache(api, fields or {"num_layers": 3}, words or {"layers": 3}, device))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def cache(new, rng):
    """Sequences 0 and 1 of 10 and 3 tokens."""
    found = new()
    found.append_all(rng, [found.sequence(), found.sequence()], [10, 3])
    return found


def write(cache, step, rng, layers, count, q=None, q_out=None):
    """K and V of new tokens in layers of both steps; the rows."""
    rows = {}
    for layer in layers:
        rows[layer] = k, v = cache.rows(rng, layer, count)
        cache.api.step_append(step[0], layer, given(k), given(v), given(q), given(q_out))
        cache.python.layer(layer).append(step[1], k, v)
    return rows


def end(cache, step):
    cache.api.step_commit(step[0])
    step[1].commit()


def test_a_step_writes_and_attends_layer_by_layer(new, rng, device):
    cache = new(device=device)
    a, b = cache.sequence(), cache.sequence()
    old = [3, 10]
    cache.append_all(rng, [a, b], old)
    before = {layer: [cache.held(layer, i) for i in (a, b)] for layer in range(3)}
    new_tokens = [2, 5]
    step = cache.step([a, b], new_tokens)
    for layer in range(3):
        [[k, v]] = write(cache, step, rng, [layer], 7).values()
        q = cache.queries(rng, layer, 7)
        out, lse = cache.outputs(layer, 7)
        cache.api.step_attention(step[0], layer, given(q), given(out), given(lse), None, None)
        for i, rows in enumerate(reference.token_ranges(new_tokens)):
            whole = [np.concatenate([had, x.numpy()[rows]]) for had, x in zip(before[layer][i], (k, v), strict=True)]
            state = reference.attention(q.numpy()[rows], *whole)
            magnitude = reference.attention(q.numpy()[rows], whole[0], np.abs(whole[1])).out
            tolerances.assert_within(out.numpy()[rows], state.out, tolerances.attention_bound(magnitude, BFLOAT16))
            tolerances.assert_within(lse.numpy()[rows], state.lse, tolerances.LSE)
        same(out.numpy(), kvit.attention(q, cache.python.layer(layer), step[1]).numpy())
        assert [cache.length(i) for i in (a, b)] == old  # until it is committed
    end(cache, step)
    cache.check()
    assert [cache.length(i) for i in (a, b)] == [5, 15]


def test_new_tokens_are_one_of_each_by_default_and_queries_may_be_fewer(cache, rng):
    step = cache.step([0, 1])
    write(cache, step, rng, range(3), 2)
    q, (out, _) = cache.queries(rng, 1, 1), cache.outputs(1, 1)
    counts = [0, 1]
    cache.api.step_attention(step[0], 1, given(q), given(out), None, numbers(counts), None)
    same(out.numpy(), kvit.attention(q, cache.python.layer(1), step[1], counts).numpy())
    options = capi.options(capi.AttentionOptions, window_left=2)
    cache.api.step_attention(step[0], 1, given(q), given(out), None, numbers(counts), byref(options))
    same(out.numpy(), kvit.attention(q, cache.python.layer(1), step[1], counts, window=2).numpy())
    end(cache, step)
    cache.check()


def test_forks_that_take_a_step_get_pages_of_their_own_in_all_layers(cache, rng):
    fork = cache.fork(0)
    step = cache.step([0, fork], [1, 1])
    write(cache, step, rng, range(3), 2)
    end(cache, step)
    cache.check()


def test_rows_turn_and_queries_with_them(api, new, rng, device):
    rope = api.make("rope_create", capi.options(capi.RopeOptions, head_dim=64))
    cache = new({"num_layers": 2, "rope": rope}, {"layers": 2, "rope": kvit.Rope(64)}, device)
    a = cache.sequence()
    cache.append_all(rng, [a], [6])
    step = cache.step([a], [3])
    for layer in range(2):
        k, v = cache.rows(rng, layer, 3)
        q, outs = cache.queries(rng, layer, 3), [cache.outputs(layer, 3)[0] for _ in range(2)]
        api.step_append(step[0], layer, given(k), given(v), given(q), given(outs[0]))
        cache.python.layer(layer).append(step[1], k, v, q=q, q_out=outs[1])
        same(outs[0].numpy(), outs[1].numpy())
        in_place = to_device(q.numpy(), device)
        api.step_append(step[0], layer, given(k), given(v), given(in_place), None)
        same(in_place.numpy(), outs[1].numpy())
    end(cache, step)
    cache.check()
    api.rope_destroy(rope)


def test_rows_that_k_and_v_share_come_without_v(new, rng, device):
    fields = {"kv_heads": 1, "head_dim": 48, "v_dim": 32, "num_layers": 2}
    cache = new({**fields, "shares_kv": 1}, {"kv_heads": 1, "head_dim": 48, "v_dim": 32, "layers": 2,
                                             "shares_kv": True}, device)  # fmt: skip
    a = cache.sequence()
    step = cache.step([a], [5])
    for layer in range(2):
        k, _ = cache.rows(rng, layer, 5)
        cache.api.step_append(step[0], layer, given(k), None, None, None)
        cache.python.layer(layer).append(step[1], k)
        q, (out, _) = cache.queries(rng, layer, 5), cache.outputs(layer, 5)
        assert out.shape[-1] == 32
        cache.api.step_attention(step[0], layer, given(q), given(out), None, None, None)
        same(out.numpy(), kvit.attention(q, cache.python.layer(layer), step[1]).numpy())
    end(cache, step)
    cache.check()


def close(cache, step):
    cache.api.step_destroy(step[0])
    step[1].close()


def test_a_step_that_is_destroyed_leaves_nothing(cache, rng):
    free = cache.info().num_free_pages
    step = cache.step([0, 1], [9, 9])
    assert cache.info().num_free_pages < free
    write(cache, step, rng, [0, 2], 18)
    close(cache, step)
    assert cache.info().num_free_pages == free
    cache.check()
    with refused("HANDLE", "this kvit_step was destroyed; create another"):
        cache.api.step_commit(step[0])


def test_a_step_that_wrote_some_layers_is_not_committed(cache, rng):
    step = cache.step([0, 1])
    write(cache, step, rng, [0, 2], 2)
    with refused("STEP", "the step ends and layer 1 got no K and V of its tokens; append them to every layer"):
        cache.api.step_commit(step[0])
    step[1].close()
    cache.check()
    with refused("STEP", "the step has ended: begin another one"):  # its pages went back then
        write(cache, step, rng, [1], 2)


def test_a_step_that_has_ended_takes_nothing(cache, rng):
    step = cache.step([0, 1])
    write(cache, step, rng, range(3), 2)
    end(cache, step)
    k, v = map(given, cache.rows(rng, 0, 2))
    q, (out, _) = cache.queries(rng, 0, 2), cache.outputs(0, 2)
    with refused("STEP", "the step has ended"):
        cache.api.step_append(step[0], 0, k, v, None, None)
    with refused("STEP", "the step has ended"):
        cache.api.step_attention(step[0], 0, given(q), given(out), None, None, None)
    assert np.isnan(out.numpy().astype(np.float32)).all()
    cache.api.step_destroy(step[0])
    cache.check()  # destroying it takes no token back


def test_a_sequence_is_in_one_step_at_a_time(cache, rng):
    step = cache.step([0])
    with refused("STEP", r"seqs\[1\] is in a step that is still open; commit that one, or close it"):
        cache.api.step_create(*cache.chosen([1, 0]), None, None, byref(c_void_p()))
    with refused("STEP", r"seqs\[0\] is in a step that is still open"):
        cache.append_all(rng, [0], [1])
    cache.append_all(rng, [1], [1])  # others may grow
    write(cache, step, rng, range(3), 1)
    end(cache, step)
    cache.check()


def test_a_step_of_a_sequence_that_was_changed_cannot_be_committed(cache, rng):
    step = cache.step([0, 1])
    cache.api.sequence_truncate(cache.mine[0], 4)
    cache.theirs[0].truncate(4)
    k, v = map(given, cache.rows(rng, 0, 2))
    with refused("STEP", "the cache was changed while it appended"):
        cache.api.step_append(step[0], 0, k, v, None, None)
    with refused("STEP", "the cache was changed while it appended"):
        cache.api.step_commit(step[0])
    step[1].close()
    cache.check()


def test_a_step_outlives_the_handles_of_its_cache_and_sequences(api, rng):
    cache = api.make(
        "cache_create",
        capi.options(capi.CacheOptions, pages=4, page_size=4, kv_heads=2, head_dim=64, device_type=1, num_layers=2),
    )
    sequence, step = api.make("sequence_create", cache), c_void_p()
    api.step_create(cache, handles([sequence]), 1, None, None, byref(step))
    api.cache_destroy(cache)
    k, v = (given(x) for x in rng.standard_normal((2, 1, 2, 64)).astype(BFLOAT16))
    for layer in range(2):
        api.step_append(step, layer, k, v, None, None)
    api.step_commit(step)
    assert api.ask("sequence_query", sequence, capi.SequenceInfo).length == 1
    api.sequence_destroy(sequence)
    api.step_destroy(step)


def test_wrong_arguments_are_refused(cache, rng):
    api, step = cache.api, cache.step([0, 1])
    k, v = map(given, cache.rows(rng, 0, 2))
    q, out = given(cache.queries(rng, 0, 2)), given(cache.outputs(0, 2)[0])
    few, _ = map(given, cache.rows(rng, 0, 1))
    with refused("SHAPE", "layer 3 of a cache of 3; give 0 to 2"):
        api.step_append(step[0], 3, k, v, None, None)
    with refused("SHAPE", "layer -1 of a cache of 3"):
        api.step_attention(step[0], -1, q, out, None, None, None)
    with refused("SHAPE", r"k has shape \[1, 2, 64\] and the step 2 tokens; give a row for each"):
        api.step_append(step[0], 0, few, few, None, None)
    with refused("ARGUMENT", "k is NULL"):
        api.step_append(step[0], 0, None, v, None, None)
    with refused("ARGUMENT", "v is NULL"):
        api.step_append(step[0], 0, k, None, None, None)
    with refused("ARGUMENT", "out is NULL"):
        api.step_attention(step[0], 0, q, None, None, None, None)
    with refused("SHAPE", "q has 1 tokens and the step 2"):
        api.step_attention(step[0], 0, given(cache.queries(rng, 0, 1)), out, None, None, None)
    with refused("ARGUMENT", "mask is 9"):
        api.step_attention(step[0], 0, q, out, None, None, byref(capi.options(capi.AttentionOptions, mask=9)))
    with refused("HANDLE", "this is a kvit_cache and must be a kvit_step"):
        api.step_append(cache.handle, 0, k, v, None, None)
    with refused("HANDLE", "this is a kvit_step and must be a kvit_cache"):
        api.cache_query(step[0], byref(capi.CacheInfo(72)))
    with refused("ARGUMENT", "the kvit_step is NULL; give one that was created"):
        api.step_commit(None)
    close(cache, step)
    with refused("ARGUMENT", "step is NULL; give the address of a kvit_step"):
        api.step_create(*cache.chosen([0]), None, None, None)
    with refused("SHAPE", r"new_tokens are \[-3\]; they must be one number of tokens for each of the 1 sequences"):
        api.step_create(*cache.chosen([0]), numbers([-3]), None, byref(c_void_p()))
    with refused("CACHE_FULL", "the cache needs 250 more pages and has"):
        api.step_create(*cache.chosen([0]), numbers([1000]), None, byref(c_void_p()))
    with refused("DEVICE", "stream is 0x7b, which is none of the host's"):
        api.step_create(*cache.chosen([0]), None, 123, byref(c_void_p()))
    cache.check()


def test_steps_of_two_threads_take_turns_within_a_call(new, rng):
    # Each has a sequence, and so steps of its own, that are open at the same time.
    cache, problems = new({"num_layers": 2, "pages": 12}, {"layers": 2}), []
    sequences = [cache.sequence(), cache.sequence()]
    rows = [[cache.rows(rng, layer, 1) for layer in range(2)] for _ in sequences]

    def work(i):
        try:
            for _ in range(20):
                step = c_void_p()
                cache.api.step_create(cache.handle, handles([cache.mine[i]]), 1, None, None, byref(step))
                for layer, (k, v) in enumerate(rows[i]):
                    cache.api.step_append(step, layer, given(k), given(v), None, None)
                cache.api.step_commit(step)
                cache.api.step_destroy(step)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in sequences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and [cache.length(i) for i in sequences] == [20, 20]
    for _ in range(20):
        cache.python.append(cache.theirs, *([np.concatenate([a[layer][side] for a in rows]) for layer in range(2)]
                                            for side in (0, 1)))  # fmt: skip
    cache.check()


class OpenStep:
    """A cache of two layers with a step of one sequence that is written and not committed, and the calls on it."""

    def __init__(self, api, rng):
        self.api, self.table = api, api.table
        options = capi.options(
            capi.CacheOptions, pages=6, page_size=4, kv_heads=2, head_dim=64, device_type=1, num_layers=2
        )
        self.cache = api.make("cache_create", options)
        self.sequence, self.step, self.place = api.make("sequence_create", self.cache), c_void_p(), c_void_p()
        rows = rng.standard_normal((4, 5, 2, 64)).astype(BFLOAT16)
        k, v, q, out = map(given, rows)
        of_all = [(POINTER(capi.Tensor) * 2)(side, side) for side in (k, v)]
        api.cache_append_layers(self.cache, handles([self.sequence]), 1, *of_all, 2, None, None)
        other = api.make("sequence_fork", self.sequence)
        api.step_create(self.cache, handles([self.sequence]), 1, numbers([5]), None, byref(self.step))
        for layer in range(2):
            api.step_append(self.step, layer, k, v, None, None)
        self.calls = {
            "step_create": (self.cache, handles([other]), 1, None, None, byref(self.place)),
            "step_append": (self.step, 1, k, v, None, None),
            "step_attention": (self.step, 1, q, out, None, None, None),
            "step_commit": (self.step,),
            "step_destroy": (self.step,),
        }
        self.other = other

    def close(self, name):
        """Whether the call is to be seen. Every page must come back."""
        length = self.api.ask("sequence_query", self.sequence, capi.SequenceInfo).length
        is_done = length == 10 if name == "step_commit" else bool(self.place.value)
        assert length in ({5, 10} if name == "step_commit" else {5})
        if name == "step_destroy":
            is_done = self.table.step_destroy(self.step) == capi.STATUSES.index("HANDLE")
        for handle in (self.step, self.place):
            if handle.value and name != "step_destroy":
                self.api.step_destroy(handle)
        assert self.api.ask("cache_query", self.cache, capi.CacheInfo).num_free_pages == (2 if length == 10 else 4)
        for handle in (self.sequence, self.other):
            self.api.sequence_destroy(handle)
        assert self.api.ask("cache_query", self.cache, capi.CacheInfo).num_free_pages == 6
        self.api.cache_destroy(self.cache)
        return is_done


@pytest.mark.parametrize("name", ["step_create", "step_append", "step_attention", "step_commit", "step_destroy"])
def test_a_call_that_is_interrupted_anywhere_loses_no_page(api, rng, name):
    outcomes = set()
    for line in itertools.count(1, 3):
        opened, statuses, is_interrupted = OpenStep(api, rng), [], False
        try:
            with interrupt_at(line):
                statuses.extend(starmap(getattr(api.table, name), [opened.calls[name]]))
        except Interrupt:
            is_interrupted = True
        outcomes.add((opened.close(name), statuses[0]))
        if not is_interrupted:
            break
        assert statuses == [capi.STATUSES.index("INTERRUPTED")]
    assert statuses == [0] and line > 3
    assert (True, 0) in outcomes or name in ("step_append", "step_attention")


def test_groups_of_layers_take_a_step_together(new, rng):
    words = [kvit.LayerSpec(count=2, window=4), kvit.LayerSpec(kv_heads=1, head_dim=128, k="int8", v="int4")]
    fields = specs({"count": 2, "window_left": 4}, {"kv_heads": 1, "head_dim": 128, "k_dtype": 4, "v_dtype": 5})
    cache = new(fields, {"layers": words})
    a = cache.sequence()
    step = cache.step([a], [9])
    write(cache, step, rng, range(3), 9)
    for layer in range(3):
        q, (out, _) = cache.queries(rng, layer, 9), cache.outputs(layer, 9)
        cache.api.step_attention(step[0], layer, given(q), given(out), None, None, None)
        same(out.numpy(), kvit.attention(q, cache.python.layer(layer), step[1]).numpy())
    end(cache, step)
    cache.check()
