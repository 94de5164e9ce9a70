"""Copying pages in chains, and what a PagedCache does with its pages: defragment and requantise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvit
from kvit import reference
from kvit.cache.page_moves import chains_of, moves_to_front
from support.caches import BFLOAT16, NO_PAGE, assert_cache_attention, held, new_cache, new_tokens, to_device
from support.stored import full_stored


def ids(pages, device):
    return to_device(np.array(pages, np.int32), device)


def copy_chains(stored, chains):
    pairs = [pair for chain in chains for pair in chain]
    source, target = zip(*pairs, strict=True)
    starts = np.cumsum([0, *map(len, chains)])
    copy = kvit.CopyPages(stored.view)
    copy(stored.view, *(ids(pages, stored.device) for pages in (source, target)), chains=ids(starts, stored.device))
    return copy, list(source), list(target)


@pytest.mark.parametrize("page_size", [3, 70])  # 70 tokens: more than a thread holds at once
@pytest.mark.parametrize("pair", [("bfloat16", "int4"), ("int8", "float8_e4m3")], ids=str)
def test_chains_shift_pages_along_and_turn_them_round(rng, device, pair, page_size):
    stored = full_stored(rng, pair, BFLOAT16, device, pages=9, page_size=page_size)
    chains = [[(3, 0), (5, 3), (1, 5)], [(4, 2), (7, 4), (2, 7)], [(8, 6)]]  # a shift, a cycle of three, one on its own
    copy, source, target = copy_chains(stored, chains)
    copy.check()
    reference.copy_pages(stored.cache, source, target)  # all at once: numpy reads before it writes
    stored.assert_same()


def test_a_chain_with_a_page_that_is_not_there_is_left_alone(rng, device):
    stored = full_stored(rng, ("int8", "int8"), BFLOAT16, device)
    copy, _, _ = copy_chains(stored, [[(1, 0), (NO_PAGE, 1)], [(3, 2)]])
    with pytest.raises(kvit.PageTableError, match=f"entry 1 of the pages is {NO_PAGE}, which the cache does not have"):
        copy.check()
    reference.copy_pages(stored.cache, [3], [2])
    stored.assert_same()


def test_chains_out_of_order_are_reported(rng, device):
    stored = full_stored(rng, ("int8", "int8"), BFLOAT16, device)
    copy = kvit.CopyPages(stored.view)
    copy(stored.view, ids([1, 3], device), ids([0, 2], device), chains=ids([0, 5, 2], device))
    with pytest.raises(kvit.PageTableError, match="chain [01] begins at"):
        copy.check()
    stored.assert_same()


def test_copying_brings_float8_scales_of_rows_along(rng, device):
    scale = rng.uniform(1, 2, (5, 3, 2)).astype(np.float32)
    stored = full_stored(rng, ("float8_e4m3",) * 2, BFLOAT16, device, scales=(scale, scale.copy()))
    kvit.CopyPages(stored.view)(stored.view, ids([0, 3], device), ids([4, 1], device))
    reference.copy_pages(stored.cache, [0, 3], [4, 1])
    stored.assert_same()


def test_lists_that_do_not_fit_are_refused(rng):
    stored = full_stored(rng, ("int8", "int8"), BFLOAT16, "host")
    copy = kvit.CopyPages(stored.view)
    for error, match, lists in (
        (kvit.ShapeError, r"target \(like source\) has shape \[3\]; it must be \[count = 2\]", ([0, 1], [2, 3, 4])),
        (kvit.DtypeError, "source is int64", (np.array([0, 1]), [2, 3])),
    ):
        with pytest.raises(error, match=match):
            copy(stored.view, *(x if isinstance(x, np.ndarray) else ids(x, "host") for x in lists))
    stored.assert_same()


def fragmented(rng, device, **options):
    """A cache whose sequences grew in turns, forked, shrank and went: (cache, sequences, what each holds)."""
    cache = new_cache(device, pages=16, page_size=4, **options)
    seqs = [cache.sequence() for _ in range(4)]
    parts = [[] for _ in seqs]
    for count in (5, 6, 3):
        rows = new_tokens(rng, count * 4)
        cache.append(seqs, *(to_device(x, device) for x in rows))
        for i, part in enumerate(parts):
            part.append(rows[:, i * count : (i + 1) * count])
    contents = [np.concatenate(part, axis=1) for part in parts]
    seqs[1].free()
    fork = seqs[2].fork()
    seqs[3].truncate(9)
    kept = [seqs[0], seqs[2], seqs[3], fork]
    return cache, kept, [contents[0], contents[2], contents[3][:, :9], contents[2]]


@pytest.mark.parametrize("order", ["front", "sequences"])
def test_defragmenting_moves_pages_and_keeps_tokens(rng, device, order):
    cache, seqs, contents = fragmented(rng, device)
    before, free = held(cache, seqs), cache.num_free_pages
    moved = cache.defragment(order=order)
    assert moved > 0 and cache.num_free_pages == free
    used = sorted({page for seq in seqs for page in seq.pages})
    assert used == list(range(16 - free))
    if order == "sequences":
        assert [seq.pages for seq in seqs] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10), (4, 5, 6, 7)]
    for now, old in zip(held(cache, seqs), before, strict=True):
        np.testing.assert_array_equal(now, old)
    assert cache.defragment(order=order) == 0
    # What is shared is copied on write as before, into the first free page.
    new = new_tokens(rng, 2)
    cache.append([seqs[1]], *(to_device(x, device) for x in new))
    contents[1] = np.concatenate([contents[1], new], axis=1)
    assert seqs[1].pages[-1] == 16 - free and seqs[3].pages[-1] != seqs[1].pages[-1]
    q = rng.standard_normal((4, 4, 64)).astype(BFLOAT16)
    assert_cache_attention(cache, seqs, contents, q, [1] * 4)


def test_defragmenting_an_empty_cache_or_a_tidy_one_moves_nothing(rng):
    cache = new_cache("host")
    assert cache.defragment() == 0
    seq = cache.sequence()
    seq.append(*new_tokens(rng, 40))
    assert cache.defragment() == cache.defragment(order="sequences") == 0


@given(st.permutations(range(9)), st.integers(1, 9))
def test_chains_do_any_moves_in_an_order_that_loses_nothing(permutation, count):
    # `count` pages at random places, to any other places: pages may move in shifts, cycles, or to free places.
    moves = {page: place for page, place in zip(range(count), permutation, strict=False) if page != place}
    pages = list(range(9))
    written = set()
    for pairs in chains_of(moves):
        first = pages[pairs[0][1]]
        is_cycle = len(pairs) > 1 and pairs[-1][0] == pairs[0][1]
        for i, (source, target) in enumerate(pairs):
            pages[target] = first if is_cycle and i == len(pairs) - 1 else pages[source]
            written.add(target)
    assert written == set(moves.values())
    assert all(pages[place] == page for page, place in moves.items())


def test_as_few_pages_as_possible_move_to_the_front():
    assert moves_to_front([1, 3, 4]) == {3: 0, 4: 2}
    assert moves_to_front([0, 1]) == moves_to_front([]) == {}


@pytest.mark.parametrize("change", [{"k": "int8", "v": "int4"}, {"v": "int8"}], ids=str)
def test_a_cache_is_requantised_and_goes_on(rng, device, change):
    cache, seqs, contents = fragmented(rng, device, layout="NHD")
    bytes_before, pages = cache.nbytes, [seq.pages for seq in seqs]
    cache.requantise(**change)
    assert cache.nbytes < bytes_before and [seq.pages for seq in seqs] == pages
    stored = [reference.codec_of(change.get(side, "bfloat16")) for side in "kv"]
    flat = [np.concatenate(parts) for parts in zip(*contents, strict=True)]
    for now, codec, rows in zip(held(cache, seqs), stored, flat, strict=True):
        np.testing.assert_array_equal(now, codec.decode(*codec.encode(rows), BFLOAT16))
    more = new_tokens(rng, 3)
    seqs[0].append(*(to_device(x, device) for x in more))
    for now, codec, rows in zip(held(cache, seqs[:1]), stored, more, strict=True):
        np.testing.assert_array_equal(now[-3:], codec.decode(*codec.encode(rows), BFLOAT16))
    kvit.attention(to_device(rng.standard_normal((4, 4, 64)).astype(BFLOAT16), device), cache, seqs)
    cache.check()


def test_requantising_in_steps_is_the_references(rng):
    cache = new_cache("host")
    seq = cache.sequence()
    rows = new_tokens(rng, 20)
    seq.append(*rows)
    cache.requantise(k="int8", v="int8")
    cache.requantise(k="int4", v="int4")
    for now, old in zip(held(cache, [seq]), rows, strict=True):
        for name in ("int8", "int4"):
            codec = reference.codec_of(name)
            old = codec.decode(*codec.encode(old), BFLOAT16)
        np.testing.assert_array_equal(now, old)


def test_float8_that_stays_keeps_its_scales_when_the_other_is_requantised(rng, device):
    scale = to_device(np.array([0.5, 0.25], np.float32), device)
    cache = new_cache(device, k="float8_e4m3", v="float8_e4m3", k_scale=scale)
    seq = cache.sequence()
    seq.append(*(to_device(x, device) for x in new_tokens(rng, 20)))
    before = held(cache, [seq])
    cache.requantise(v="int4")
    after, codec = held(cache, [seq]), reference.codec_of("int4")
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], codec.decode(*codec.encode(before[1]), BFLOAT16))


def test_a_change_of_codec_that_is_not_built_is_refused_before_memory_is_taken(rng):
    cache = new_cache("host", k="int4", v="int4")
    with pytest.raises(kvit.KernelMissing, match="change=i4_i8; built changes are .*i4_b16"):
        cache.requantise(k="int8", v="int8")


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (kvit.KernelMissing, "kv=i4_i8", {"k": "int4", "v": "int8"}),
        (kvit.DtypeError, "a scale is of float8", {"k": "int8", "v": "int8", "k_scale": np.ones(1, np.float32)}),
        (kvit.DtypeError, "int3", {"k": "int3"}),
    ],
    ids=["pair", "scale", "codec"],
)
def test_a_cache_that_cannot_be_requantised_stays_as_it_is(rng, error, match, change):
    cache = new_cache("host")
    seq = cache.sequence()
    seq.append(*new_tokens(rng, 20))
    before, view = held(cache, [seq]), cache.view
    with pytest.raises(error, match=match):
        cache.requantise(**change)
    assert cache.view is view
    for now, old in zip(held(cache, [seq]), before, strict=True):
        np.testing.assert_array_equal(now, old)
