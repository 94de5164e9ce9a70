"""What batches of C refuse, in words and before anything has changed, and how they go on afterwards."""

from ctypes import byref, c_void_p

from support import capi
from support.capi_batches import end, write
from support.capi_layers import given, numbers, refused


def test_wrong_arguments_are_refused_and_change_nothing(new_batch, rng):
    cache, other = new_batch(), new_batch()
    api, place = cache.api, c_void_p()
    first = cache.chosen([0, 1])
    with refused("ARGUMENT", "batch is NULL; give the address of a kvit_batch"):
        api.batch_create(*first, None, None)
    with refused("ARGUMENT", r"kvit_batch_options.size is 8; set it to sizeof\(kvit_batch_options\), which is 24"):
        api.batch_create(*first, byref(capi.BatchOptions(size=8)), byref(place))
    with refused("SHAPE", "max_tokens is -4"):
        api.batch_create(*first, byref(capi.options(capi.BatchOptions, max_tokens=-4)), byref(place))
    with refused("SHAPE", "the sequences have 4 pages, and max_tokens leaves room for 2; give more"):
        api.batch_create(*first, byref(capi.options(capi.BatchOptions, max_tokens=4)), byref(place))
    with refused("DEVICE", "stream is 0x7b, which is none of the host's"):
        api.batch_create(*first, byref(capi.options(capi.BatchOptions, stream=123)), byref(place))
    with refused("SHAPE", r"seqs\[1\] is seqs\[0\] again"):
        api.batch_create(*cache.chosen([0, 0]), None, byref(place))
    with refused("SHAPE", "another cache"):
        api.batch_create(cache.handle, *other.chosen([0])[1:], None, byref(place))
    with refused("ARGUMENT", "sequences is NULL and count 2"):
        api.batch_create(cache.handle, None, 2, None, byref(place))
    with refused("HANDLE", "this is a kvit_cache and must be a kvit_batch"):
        api.batch_step(cache.handle, None, byref(place))
    with refused("HANDLE", "this is a kvit_batch and must be a kvit_step"):
        api.step_commit(cache.batch)
    with refused("ARGUMENT", "the kvit_batch is NULL; give one that was created"):
        api.batch_destroy(None)
    with refused("ARGUMENT", "step is NULL; give the address of a kvit_step"):
        api.batch_step(cache.batch, None, None)
    with refused("SHAPE", r"new_tokens are \[-3, 1\]; they must be one number of tokens for each of the 2 sequences"):
        api.batch_step(cache.batch, numbers([-3, 1]), byref(place))
    with refused("CACHE_FULL", "the cache needs .* more pages and has"):
        api.batch_step(cache.batch, numbers([1000, 1]), byref(place))
    with refused("SHAPE", "1 sequences for a batch of 2, whose table has rows for so many"):
        api.batch_use(cache.batch, *cache.chosen([0])[1:])
    with refused("SHAPE", "another cache"):
        api.batch_use(cache.batch, *other.chosen([0, 1])[1:])
    with refused("ARGUMENT", "kvit_batch_info is NULL"):
        api.batch_query(cache.batch, None)
    with refused("ARGUMENT", "kvit_batch_info.size is 4"):
        api.batch_query(cache.batch, byref(capi.BatchInfo(4)))
    q, out = given(cache.queries(rng, 0, 2)), given(cache.outputs(0, 2)[0])
    with refused("SHAPE", "layer 3 of a cache of 3; give 0 to 2"):
        api.batch_attention(cache.batch, 3, q, out, None, None, None)
    with refused("ARGUMENT", "out is NULL"):
        api.batch_attention(cache.batch, 0, q, None, None, None, None)
    with refused("ARGUMENT", "mask is 9"):
        api.batch_attention(cache.batch, 0, q, out, None, None, byref(capi.options(capi.AttentionOptions, mask=9)))
    assert place.value is None
    assert cache.batch_info().has_open_step == 0
    cache.check()
    other.check()


def test_a_batch_takes_one_step_at_a_time(new_batch, rng):
    cache = new_batch()
    cache.sequence()
    step, place = cache.begin(), c_void_p()
    with refused("STEP", r"seqs\[0\] is in a step that is still open; commit that one, or close it"):
        cache.api.batch_step(cache.batch, None, byref(place))
    with refused("STEP", "the batch has a step that is open; commit that one, or close it, before other sequences"):
        cache.api.batch_use(cache.batch, *cache.chosen([0, 2])[1:])
    with refused("SHAPE", "q has 1 tokens and the step 2"):
        cache.api.batch_attention(
            cache.batch, 0, given(cache.queries(rng, 0, 1)), given(cache.outputs(0, 1)[0]), None, None, None
        )
    write(cache, step, rng, range(3), 2)
    end(cache, step)
    cache.check()


def test_a_batch_of_a_sequence_that_was_destroyed_says_so_and_goes_on_with_others(new_batch, rng):
    cache = new_batch()
    cache.sequence()
    cache.api.sequence_destroy(cache.mine[1])
    place = c_void_p()
    with refused("SEQUENCE_FREED", "."):
        cache.api.batch_step(cache.batch, None, byref(place))
    q, out = given(cache.queries(rng, 0, 2)), given(cache.outputs(0, 2)[0])
    with refused("SEQUENCE_FREED", "."):
        cache.api.batch_attention(cache.batch, 0, q, out, None, None, None)
    cache.api.batch_use(cache.batch, *cache.chosen([2, 0])[1:])
    cache.api.batch_step(cache.batch, None, byref(place))
    for layer in range(3):
        k, v = map(given, cache.rows(rng, layer, 2))
        cache.api.step_append(place, layer, k, v, None, None)
    cache.api.step_commit(place)
    cache.api.step_destroy(place)
    assert [cache.length(i) for i in (0, 2)] == [11, 1]
