"""Sequences in host memory and back: the same bits, in all layers, whatever the codecs."""

import numpy as np
import pytest

import kvit
from support.caches import new_tokens, to_device

SPECS = [
    kvit.LayerSpec(count=3),
    kvit.LayerSpec(kv_heads=1, k="int8", v="int4"),
    kvit.LayerSpec(head_dim=128, k="float8_e4m3", v="float8_e4m3"),
    kvit.LayerSpec(k="int4", v="int4"),
]


def filled(rng, device, length, layout="HND", pages=20, storage="layers"):
    cache = kvit.PagedCache(pages, 4, 2, 64, layers=SPECS, layout=layout, storage=storage, device=device)
    other, seq = cache.sequence(), cache.sequence()
    for each, count in ((other, 5), (seq, length)):
        rows = [new_tokens(rng, count, layer.kv_heads, layer.head_dim) for layer in cache.layers]
        cache.append([each], *([to_device(x[side], device) for x in rows] for side in range(2)))
    return cache, seq, other


def bits(cache, seq):
    return [x.numpy().view(np.uint16) for layer in cache.layers for x in layer.gather([seq])[:2]]


@pytest.mark.parametrize("storage", ["layers", "pages"])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("length", [0, 1, 8, 27])
def test_a_sequence_comes_back_bit_for_bit_in_other_pages(rng, device, layout, length, storage, monkeypatch):
    monkeypatch.setattr("kvit.cache.swap.STAGING_BYTES", 10_000)  # some pages at a time
    cache, seq, other = filled(rng, device, length, layout, storage=storage)
    before, kept = bits(cache, seq), bits(cache, other)
    swapped = cache.swap_out(seq)
    assert len(swapped) == len(seq) == length and not seq.is_freed
    seq.free()
    filler = cache.sequence()  # takes the pages that went back
    rows = [new_tokens(rng, 6, layer.kv_heads, layer.head_dim) for layer in cache.layers]
    cache.append([filler], *([to_device(x[side], device) for x in rows] for side in range(2)))
    for _ in range(2):  # as often as wanted
        seq = cache.swap_in(swapped)
        assert len(seq) == length
        for now, old in zip(bits(cache, seq) + bits(cache, other), before + kept, strict=True):
            np.testing.assert_array_equal(now, old)
    cache.check()


def test_bytes_in_host_memory_are_those_of_the_pages_and_go_into_another_cache(rng, device):
    cache, seq, _ = filled(rng, device, 9)
    swapped = cache.swap_out(seq)
    assert swapped.nbytes * cache.num_pages == pytest.approx(cache.nbytes * 3, rel=0.001)  # but for float8's scales
    assert repr(swapped) == f"<SwappedSequence of 9 tokens, {swapped.nbytes} bytes>"
    twin = kvit.PagedCache(7, 4, 2, 64, layers=SPECS, device=device)
    for now, old in zip(bits(twin, twin.swap_in(swapped)), bits(cache, seq), strict=True):
        np.testing.assert_array_equal(now, old)


def test_what_does_not_fit_is_refused_and_changes_nothing(rng):
    cache, seq, other = filled(rng, "host", 9, pages=6)
    swapped, before = cache.swap_out(seq), bits(cache, other)
    free = cache.num_free_pages
    with pytest.raises(kvit.CacheFull, match="needs 3 more pages and has 1 free"):
        cache.swap_in(swapped)
    assert cache.num_free_pages == free and len(cache.pool.all_pages()) == 2
    with pytest.raises(kvit.ShapeError, match="swap it into a cache of the same layers"):
        kvit.PagedCache(8, 8, 2, 64, layers=SPECS, device="host").swap_in(swapped)
    with pytest.raises(TypeError, match=r"swapped is a Sequence; give what cache.swap_out returned"):
        cache.swap_in(seq)
    seq.free()
    with pytest.raises(kvit.SequenceFreed):
        cache.swap_out(seq)
    plain = kvit.PagedCache(8, 4, 2, 64, device="host")
    only = plain.sequence()
    only.append(*new_tokens(rng, 3))
    swapped = plain.swap_out(only)
    plain.requantise(k="int8", v="int8")
    with pytest.raises(kvit.DtypeError, match="was stored as bfloat16 and bfloat16 and the cache holds int8 and int8"):
        plain.swap_in(swapped)
    for now, old in zip(bits(cache, other), before, strict=True):
        np.testing.assert_array_equal(now, old)
