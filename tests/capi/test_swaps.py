"""Sequences of a cache of several layers in host memory and back, through the table: the same bits, as they are stored.

Chosen: groups of layers in 16 bits and in codes, whose parameters must come along, and 9 tokens in pages of 4, which
end within a page.
"""

import itertools
from ctypes import byref, c_void_p
from itertools import starmap

import pytest

import kvit
from support import capi
from support.capi_layers import LayeredCache, refused, same, specs
from support.interrupts import Interrupt, interrupt_at

WORDS = {"layers": [kvit.LayerSpec(count=2), kvit.LayerSpec(kv_heads=1, head_dim=128, k="int8", v="int4")]}


def fields():
    return specs({"count": 2}, {"kv_heads": 1, "head_dim": 128, "k_dtype": 4, "v_dtype": 5})


class Swapping(LayeredCache):
    """The two caches, with a sequence of 9 tokens, and swaps of both."""

    def __init__(self, api, rng, device="host", of=None):
        super().__init__(api, *(of or (fields(), WORDS)), device)
        self.swapped = []
        self.append_all(rng, [self.sequence()], [9])

    def swap_out(self, index):
        """What both made."""
        handle = c_void_p()
        self.api.cache_swap_out(self.handle, self.mine[index], None, byref(handle))
        self.swapped.append(handle)
        return handle, self.python.swap_out(self.theirs[index])

    def swap_in(self, swapped):
        """The index of the new sequence."""
        self.mine.append(c_void_p())
        try:
            self.api.cache_swap_in(self.handle, swapped[0], None, byref(self.mine[-1]))
        except capi.Refused:
            assert self.mine.pop().value is None
            raise
        self.theirs.append(self.python.swap_in(swapped[1]))
        return len(self.mine) - 1

    def free(self, index):
        self.api.sequence_destroy(self.mine.pop(index))
        self.theirs.pop(index).free()

    def bits(self, index):
        """K and V of a sequence in all layers: of C, which are those of Python."""
        return [x for layer in range(self.python.num_layers) for x in self.held(layer, index)]

    def close(self):
        for handle in self.swapped:
            self.api.table.swapped_destroy(handle)  # some are gone already
        super().close()


@pytest.fixture
def new(api, rng):
    made = []

    def make(*arguments):
        made.append(Swapping(api, rng, *arguments))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def test_a_sequence_comes_back_bit_for_bit_in_other_pages(new, rng, device):
    cache = new(device)
    before, free = cache.bits(0), cache.info().num_free_pages
    swapped = cache.swap_out(0)
    assert cache.info().num_free_pages == free and cache.length(0) == 9  # it stays as it is
    cache.free(0)
    cache.append_all(rng, [cache.sequence()], [6])  # takes pages that went back
    for _ in range(2):  # as often as is wanted
        index = cache.swap_in(swapped)
        assert cache.length(index) == 9
        for now, old in zip(cache.bits(index), before, strict=True):
            same(now, old)
    cache.append_all(rng, [1, 2], [3, 1])  # they grow as others do
    cache.check()


def test_it_goes_into_another_cache_and_outlives_its_own(api, rng, new):
    cache, twin = new(), new()
    before = cache.bits(0)
    handle, theirs = cache.swap_out(0)
    info = api.ask("swapped_query", handle, capi.SwappedInfo)
    assert (info.length, info.num_pages) == (9, 3)
    assert info.bytes == 3 * cache.info().bytes // cache.info().num_pages
    cache.free(0)
    api.cache_destroy(cache.handle)
    cache.close = lambda: api.swapped_destroy(handle)
    index = twin.swap_in((handle, theirs))
    for now, old in zip(twin.bits(index), before, strict=True):
        same(now, old)


def test_a_sequence_of_no_tokens_is_swapped_too(new):
    cache = new()
    empty = cache.sequence()
    swapped = cache.swap_out(empty)
    info = cache.api.ask("swapped_query", swapped[0], capi.SwappedInfo)
    assert (info.length, info.num_pages, info.bytes) == (0, 0, 0)
    assert cache.length(cache.swap_in(swapped)) == 0


def test_what_does_not_fit_is_refused_and_changes_nothing(api, new, rng):
    cache = new()
    swapped = cache.swap_out(0)
    cache.append_all(rng, [0], [28])  # 10 pages of 12
    with refused("CACHE_FULL", "needs 3 more pages and has 2 free"):
        cache.swap_in(swapped)
    cache.check()
    plain = new("host", ({"num_layers": 3}, {"layers": 3}))
    with refused("SHAPE", "swap it into a cache of the same layers"):
        plain.swap_in(swapped)
    one = new("host", ({"num_layers": 1}, {}))
    stored = one.swap_out(0)
    api.cache_requantise(one.handle, 4, 4, None, None, None)
    one.python.requantise(k="int8", v="int8")
    with refused("DTYPE", "was stored as bfloat16 and bfloat16 and the cache holds int8 and int8"):
        one.swap_in(stored)
    for each in (plain, one):
        each.check()


def test_wrong_arguments_are_refused(api, new):
    cache, other, place = new(), new(), c_void_p()
    [swapped, _] = cache.swap_out(0)
    with refused("ARGUMENT", "swapped is NULL; give the address of a kvit_swapped"):
        api.cache_swap_out(cache.handle, cache.mine[0], None, None)
    with refused("ARGUMENT", "sequence is NULL; give the address of a kvit_sequence"):
        api.cache_swap_in(cache.handle, swapped, None, None)
    with refused("SHAPE", "another cache"):
        api.cache_swap_out(cache.handle, other.mine[0], None, byref(place))
    with refused("DEVICE", "stream is 0x7b, which is none of the host's"):
        api.cache_swap_out(cache.handle, cache.mine[0], 123, byref(place))
    with refused("DEVICE", "stream is 0x7b, which is none of the host's"):
        api.cache_swap_in(cache.handle, swapped, 123, byref(place))
    with refused("HANDLE", "this is a kvit_sequence and must be a kvit_swapped"):
        api.cache_swap_in(cache.handle, cache.mine[0], None, byref(place))
    with refused("HANDLE", "this is a kvit_swapped and must be a kvit_sequence"):
        api.cache_swap_out(cache.handle, swapped, None, byref(place))
    with refused("ARGUMENT", "kvit_swapped_info.size is 8"):
        api.swapped_query(swapped, byref(capi.SwappedInfo(8)))
    with refused("ARGUMENT", "the kvit_swapped is NULL; give one that was created"):
        api.swapped_destroy(None)
    api.swapped_destroy(swapped)
    with refused("HANDLE", "this kvit_swapped was destroyed; create another"):
        api.cache_swap_in(cache.handle, swapped, None, byref(place))
    api.sequence_destroy(cache.mine[0])
    with refused("HANDLE", "this kvit_sequence was destroyed"):
        api.cache_swap_out(cache.handle, cache.mine[0], None, byref(place))
    assert place.value is None
    assert cache.info().num_free_pages == cache.info().num_pages


@pytest.mark.parametrize("name", ["cache_swap_out", "cache_swap_in"])
def test_a_call_that_is_interrupted_anywhere_loses_no_page(new, name):
    cache = new()
    [swapped, _] = cache.swap_out(0)
    free, before = cache.info().num_free_pages, cache.bits(0)
    for line in itertools.count(1, 7):
        place, statuses, is_interrupted = c_void_p(), [], False
        source = cache.mine[0] if name == "cache_swap_out" else swapped
        try:
            with interrupt_at(line):
                call = getattr(cache.api.table, name)
                statuses.extend(starmap(call, [(cache.handle, source, None, byref(place))]))
        except Interrupt:
            is_interrupted = True
        assert bool(place.value) == (statuses == [0])
        if place.value:
            getattr(cache.api, "swapped_destroy" if name == "cache_swap_out" else "sequence_destroy")(place)
        assert cache.info().num_free_pages == free
        for now, old in zip(cache.bits(0), before, strict=True):
            same(now, old)
        if not is_interrupted:
            break
        assert statuses == [capi.STATUSES.index("INTERRUPTED")]
    assert statuses == [0] and line > 7
