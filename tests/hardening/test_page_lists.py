"""Hunts for pages that go astray: lists of pages with wrong ids in them, given to CopyPages and ConvertPages.

Each page is compared with a model that does one pair after the other, and leaves alone what is wrong.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, FLOAT16
from support.fenced import Fenced, FencedCache, places_alike
from support.stored import fill
from support.wrong_tables import GARBAGE

T = "T"  # the 16-bit type
STORED = [(T, T), ("int8", "int8"), ("int4", "int4"), ("int8", "int4"), ("float8_e4m3", T), (T, "float8_e5m2")]
# (from, to) of a side: what is built.
CHANGES = [
    (T, "int8"), (T, "int4"), (T, "float8_e4m3"), ("int8", "int4"), ("float8_e4m3", "int8"), ("float8_e4m3", "int4"),
    ("int8", T), ("int4", T), ("float8_e4m3", T), (T, T), ("int8", "int8"), ("int4", "int4"),
]  # fmt: skip
GPU_CALLS = 10_000


def new_cache(rng, pair, dtype, shape, layout):
    """A cache full of rows."""
    names = [dtype.name if name == T else name for name in pair]
    scales = [rng.uniform(0.02, 0.1, shape[2]).astype("f4") if x.startswith("float8") else None for x in names]
    cache = reference.Cache.poisoned(
        *shape, dtype=dtype, k=names[0], v=names[1], layout=layout, k_scale=scales[0], v_scale=scales[1]
    )
    fill(rng, cache, dtype)
    return cache


def new_shape(rng):
    """(pages, page_size, kv_heads, head_dim)"""
    return int(rng.integers(1, 10)), int(rng.choice([1, 2, 5, 33])), int(rng.integers(1, 4)), int(rng.choice([64, 128]))


def spoil(rng, *lists):
    """Wrong numbers in up to three places."""
    for _ in range(int(rng.integers(0, 4))):
        part = lists[int(rng.integers(len(lists)))]
        if len(part):
            at = int(rng.integers(len(part)))
            part[at] = rng.choice([rng.choice(GARBAGE), max(part[at], -9) + 1 if part[at] < 99 else 7, -1])


def told(op, hunt):
    """Whether the operation met a fault; what it says of it is in its lists."""
    try:
        op.check()
    except kvit.PageTableError as error:
        hunt.count("faults told")
        return error
    hunt.count("right")
    return None


def pick_layout(rng):
    return ["NHD", "HND"][rng.integers(2)]


def new_chains(rng, num_pages):
    """(source, target, begins): chains that share no page, of which some shift pages along and some turn them round."""
    pages, source, target, begins = rng.permutation(num_pages).tolist(), [], [], [0]
    while len(pages) >= 2:
        chain = [pages.pop() for _ in range(min(len(pages), int(rng.integers(2, 6))))]
        is_cycle = bool(rng.integers(2))
        source += chain[1:] + ([chain[0]] if is_cycle else [])
        target += chain[:-1] + ([chain[-1]] if is_cycle else [])
        begins.append(len(source))
    return source, target, begins


@pytest.mark.hunt(share=3, short=20)
def test_copies_of_pages_do_what_their_lists_say_and_no_more(hunt, device):
    for rng in hunt.rounds(0 if device == "host" else GPU_CALLS):
        dtype, shape = [BFLOAT16, FLOAT16][rng.integers(2)], new_shape(rng)
        cache = new_cache(rng, STORED[rng.integers(len(STORED))], dtype, shape, pick_layout(rng))
        memory = Fenced(rng, device)
        stored = FencedCache(memory, cache, dtype)
        if rng.integers(2):
            source, target, chains = (np.array(x, np.int32) for x in new_chains(rng, shape[0]))
            spoil(rng, source, target, chains)
        else:
            half = shape[0] // 2
            source, target = (x.astype(np.int32) for x in np.split(rng.permutation(shape[0])[: 2 * half], 2))
            spoil(rng, source, target)
            chains = None
        op = kvit.CopyPages(stored.view)
        lists = [memory.place(name, x) for name, x in (("source", source), ("target", target))]
        op(stored.view, *lists, chains=None if chains is None else memory.place("chains", chains))
        error = told(op, hunt)
        memory.assert_untouched(*stored.written())
        wanted, free, bad = copied(stored, source, target, chains)
        is_right = places_alike(stored.now(), wanted).all(axis=1) | free
        assert is_right.all(), (np.flatnonzero(~is_right), source, target, chains)
        assert (error is not None) == bool(bad), (error, bad)


def copied(stored, source, target, chains):
    """(the cache afterwards, pages of which nothing is said, chains that are wrong)."""
    begins = range(len(source) + 1) if chains is None else chains.tolist()
    num_pages, bad, walks = stored.cache.num_pages, [], []
    for index, (begin, end) in enumerate(zip(begins[:-1], begins[1:], strict=True)):
        pairs = list(zip(source[begin:end].tolist(), target[begin:end].tolist(), strict=True))
        is_range = 0 <= begin <= end <= len(source)
        if not is_range or any(not 0 <= page < num_pages for pair in pairs for page in pair):
            bad.append(index)
        elif pairs:
            walks.append(pairs)
    free = np.zeros(num_pages, bool)
    touched = [{page for pair in pairs for page in pair} for pairs in walks]
    for i, pairs in enumerate(walks):
        mine = [page for _, page in pairs]
        meets = any(set(mine) & other for j, other in enumerate(touched) if j != i)
        # What a chain reads, another writes: neither says what becomes of its targets. Nor does a chain that jumps.
        is_read_elsewhere = any({t for _, t in other} & touched[i] for j, other in enumerate(walks) if j != i)
        free[mine] |= meets or is_read_elsewhere
    wanted = stored.copied()
    for pairs in walks:
        first = wanted_page(wanted, pairs[0][1])
        is_cycle = len(pairs) > 1 and pairs[-1][0] == pairs[0][1]
        for i, (old, new) in enumerate(pairs):
            put_page(wanted, new, first if is_cycle and i == len(pairs) - 1 else wanted_page(wanted, old))
    return wanted, free, bad


def arrays_of(cache):
    return [x for x in (cache.k, cache.v, cache.k_params, cache.v_params) if x is not None and x.ndim > 1]


def wanted_page(cache, page):
    return [array[page].copy() for array in arrays_of(cache)]


def put_page(cache, page, held):
    for array, rows in zip(arrays_of(cache), held, strict=True):
        array[page] = rows


@pytest.mark.hunt(share=3, short=20)
def test_conversions_of_pages_do_what_their_lists_say_and_no_more(hunt, device):
    for rng in hunt.rounds(0 if device == "host" else GPU_CALLS):
        dtype, shape = [BFLOAT16, FLOAT16][rng.integers(2)], new_shape(rng)
        sides = [CHANGES[rng.integers(len(CHANGES))] for _ in "kv"]
        memory = Fenced(rng, device)
        stored = []
        for which, name in enumerate(("old", "new")):
            pages = int(rng.integers(1, 10))
            cache = new_cache(rng, [side[which] for side in sides], dtype, (pages, *shape[1:]), pick_layout(rng))
            stored.append(FencedCache(memory, cache, dtype, name))
        old, new = stored
        count = int(rng.integers(0, 1 + min(old.cache.num_pages, new.cache.num_pages)))
        lists = [rng.permutation(x.cache.num_pages)[:count].astype(np.int32) for x in stored]
        spoil(rng, *lists)
        op = kvit.ConvertPages(old.view, new.view)
        source, target = (memory.place(name, x) for name, x in zip(("from", "to"), lists, strict=True))
        op(old.view, new.view, source_pages=source, target_pages=target)
        error = told(op, hunt)
        memory.assert_untouched(*new.written())
        exists = [(0 <= a < old.cache.num_pages) & (0 <= b < new.cache.num_pages) for a, b in zip(*lists, strict=True)]
        good = [x[np.array(exists, bool)] for x in lists]
        wanted, free = new.copied(), np.zeros(new.cache.num_pages, bool)
        reference.convert_pages(old.cache, wanted, *good, dtype)
        for page in good[1]:
            free[page] = (good[1] == page).sum() > 1
        is_right = places_alike(new.now(), wanted).all(axis=1) | free
        assert is_right.all(), (np.flatnonzero(~is_right), sides, lists)
        assert (error is not None) == (not all(exists)), (error, lists)
