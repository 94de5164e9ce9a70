"""Layers that are added to a PagedCache one after another: those of a cache that had them from the start."""

import numpy as np
import pytest

import kvit
from support.caches import new_tokens, to_device


def make(layers, device, storage="layers"):
    return kvit.PagedCache(24, 4, 2, 64, layers=layers, storage=storage, device=device)


def draw(rng, cache, count):
    """K and V of `count` tokens, an array for each layer."""
    new = [new_tokens(rng, count, layer.kv_heads, layer.head_dim) for layer in cache.layers]
    return tuple([to_device(pair[side], cache.device) for pair in new] for side in range(2))


def assert_same(caches):
    """All layers of the caches hold the same; caches are pairs of a cache and its sequences."""
    found = [[[x.numpy() for x in layer.gather(seqs)[:2]] for layer in cache.layers] for cache, seqs in caches]
    for cache, _ in caches:
        cache.check()
    for ours, theirs in zip(*found, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("storage", ["layers", "pages"])
def test_layers_that_are_added_one_by_one_are_those_of_a_cache_that_had_them_from_the_start(rng, device, storage):
    # The first two differ, the third is like the first, and the last two come together: every way to join a group.
    specs = [kvit.LayerSpec(), kvit.LayerSpec(kv_heads=1, k="int4", v="int4", window=3), kvit.LayerSpec()]
    specs = [*specs, kvit.LayerSpec(count=2, head_dim=128)]
    whole = make(specs, device, storage)
    grown = make(1, device, storage)
    (keys, values), q = draw(rng, whole, 11), to_device(new_tokens(rng, 11, 4)[0], device)
    ours = [grown.sequence(), grown.sequence()]
    with grown.step(ours, [7, 4]) as taken:  # the layers come while their step is open
        for i, (k, v) in enumerate(zip(keys, values, strict=True)):
            if i in (1, 2, 3):
                [layer, *_] = grown.add_layers([specs[i]])
                assert layer.index == i
            grown.layer(i).append(taken, k, v)
        found = kvit.attention(q, grown.layer(2), taken).numpy()
        windowed = kvit.attention(q, grown.layer(1), taken).numpy()
    assert grown.num_layers == 5 and grown.nbytes == whole.nbytes
    theirs = [whole.sequence(), whole.sequence()]
    whole.append(theirs, keys, values, [7, 4])
    caches = [(grown, ours), (whole, theirs)]
    assert_same(caches)
    np.testing.assert_array_equal(found, kvit.attention(q, whole.layer(2), theirs, [7, 4]).numpy())
    np.testing.assert_array_equal(windowed, kvit.attention(q, whole.layer(1), theirs, [7, 4]).numpy())
    more = draw(rng, whole, 1)
    for cache, seqs in caches:  # copies, codecs and swaps know the new layers too
        twin = seqs[0].fork()
        cache.append([twin], *more)
        cache.requantise(k="int4", v="int4")
        seqs.append(cache.swap_in(cache.swap_out(twin)))
    assert_same(caches)


def test_layers_that_are_alike_share_their_operations(rng):
    cache = make(1, "host")
    [second, other] = cache.add_layers([kvit.LayerSpec(), kvit.LayerSpec(kv_heads=1)])
    assert second.operations is cache.layer(0).operations is not other.operations


def test_layers_are_not_added_behind_tokens_that_they_would_not_hold(rng):
    cache = make(1, "host")
    [seq] = seqs = [cache.sequence()]
    cache.append(seqs, *(x[0] for x in draw(rng, cache, 3)))
    with pytest.raises(kvit.KvitError, match="have 3 tokens, and a new layer would hold none of them"):
        cache.add_layers()
    seq.truncate(0)
    with pytest.raises(kvit.ShapeError, match="layers is 0"):
        cache.add_layers(0)
    assert cache.num_layers == 1
    cache.add_layers(2)
    assert cache.num_layers == 3
