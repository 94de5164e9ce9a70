"""Windows, chunks, spans, trees, softcap, sinks, ALiBi and temperature in any combination, over caches of every codec
that has kernels for them, in any shape: against the reference, and hidden keys hold NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvit
from kvit import reference
from kvit.selection import registry
from support import tolerances
from support.built import need_copies
from support.caches import to_device
from support.modified import LEAST, attend, branches
from support.quantised import Quantised
from support.tolerances import assert_within

PAIRS = {
    "b16": (None, None),
    "i8": ("int8", "int8"),
    "i4": ("int4", "int4"),
    "e4m3": ("float8_e4m3", "float8_e4m3"),
}
BUILT = {
    family: [
        (entry.axes["kv"], entry.axes["copies"], entry.axes["rows"], entry.axes["head_dim"])
        for entry in registry.candidates(family, dtype="bf16", variant="general")
        if isinstance(entry.axes["head_dim"], int)  # K and V apart: test_head_dims.py, test_latent.py
    ]
    for family in ("decode", "prefill")
}
PAGE_SIZES = {"cp_async": [1, 3, 7, 16, 64], "registers": [1, 7, 16, 64], "tma": [8, 16, 24, 64]}


def test_every_codec_that_is_built_is_drawn_below():
    for family, built in BUILT.items():
        assert {kv for kv, *_ in built} == set(PAIRS), family


def options(draw, heads):
    """Some of all arguments but spans and trees, in the reference's words."""
    sides = st.none() | st.integers(1, 200)
    found = {
        "causal": draw(st.booleans()),
        "window": draw(st.tuples(sides, sides) | sides),
        "chunk": draw(st.none() | st.integers(1, 150)),
        "softcap": draw(st.none() | st.sampled_from([0.5, 5.0, 50.0])),
        "sinks": draw(st.none() | st.lists(st.sampled_from([-np.inf, -3.0, 0.0, 2.5]), min_size=heads, max_size=heads)),
        "alibi": draw(st.none() | st.lists(st.sampled_from([0.0, 0.01, 0.5]), min_size=heads, max_size=heads)),
        "temperature": draw(st.none() | st.lists(st.floats(0.25, 2.0, width=32), min_size=1, max_size=40)),
    }
    return {name: value for name, value in found.items() if value is not None}


def drawn_spans(draw, lengths, counts):
    """Images of a sequence, one after the other, some of them before its new tokens and some none of its queries'."""
    rows = []
    for length, count in zip(lengths, counts, strict=True):
        ends = sorted(draw(st.lists(st.integers(0, length), max_size=6)))
        images = [(begin, end) for begin, end in zip(ends, ends[1:], strict=False) if draw(st.booleans())]
        for position in range(length - count, length):
            rows.append(next(((begin, end) for begin, end in images if begin <= position < end), (0, 0)))
    return np.array(rows, np.int32).reshape(-1, 2)


def hide(cache, counts, masks):
    """Makes K and V of every token that no query of its sequence sees NaN, as far as its codec can, or its scale."""
    for sequence, tokens in enumerate(reference.token_ranges(counts)):
        length, count = cache.table.lengths[sequence], counts[sequence]
        seen = np.zeros(length, bool)
        for i in range(count):
            own = {word: masks[words][tokens.start + i] for word, words in (("span", "spans"), ("tree", "tree"))
                   if words in masks}  # fmt: skip
            rules = {name: masks[name] for name in ("causal", "window", "chunk") if name in masks}
            seen |= reference.seen_keys(length, count, i, **own, **rules).keys
        spoil(cache, sequence, ~seen)


def spoil(cache, sequence, tokens):
    """Makes K and V of some tokens NaN, as far as their codec can, or their scales; where the reference has them."""
    page, place = (x[tokens] for x in cache.table.places(cache.cache, sequence))
    for store in cache.cache.stores():
        stored = store.data if store.codec.bits == 16 or store.codec.is_scaled else store.params
        stored[page, place] = np.nan


# Kernels of warp groups are few, and their emulation takes long.
@pytest.mark.parametrize(
    ("family", "copies", "examples", "most"),  # most: new tokens of a sequence
    [("decode", ("cp_async", "registers"), 120, 9), ("prefill", ("cp_async",), 80, 140), ("prefill", ("tma",), 8, 90)],
    ids=["decode", "prefill", "prefill by warp groups"],
)
def test_any_combination_is_the_reference(family, copies, examples, most):
    built = [kernel for kernel in BUILT[family] if kernel[1] in copies]

    @settings(max_examples=examples, deadline=None)
    @given(data=st.data(), seed=st.integers(0, 2**32 - 1))
    def check(data, seed):
        assert_combination(data.draw, np.random.default_rng(seed), built, most)

    assert built
    check()


def assert_combination(draw, rng, built, most):
    kv, copies, rows, head_dim = draw(st.sampled_from(built))
    page_size = draw(st.sampled_from(PAGE_SIZES[copies]))
    lengths = draw(st.lists(st.integers(0, 330), min_size=1, max_size=3))
    counts = [draw(st.integers(0, min(length, most) + 2)) for length in lengths]
    heads = 2 * draw(st.sampled_from([1, 2, 3, 4, 8]))
    cache = Quantised(
        PAIRS[kv],
        lengths,
        page_size=page_size,
        head_dim=head_dim,
        layout=draw(st.sampled_from(["HND", "NHD"])),
        rng=rng,
    )
    cache.append(rng)
    wishes = options(draw, heads)
    if draw(st.booleans()):
        wishes["spans"] = drawn_spans(draw, lengths, counts)
    if draw(st.booleans()):
        words = draw(st.sampled_from([1, 2]))
        wishes["tree"] = np.concatenate([branches(rng, count, words) for count in counts])
    hide(cache, counts, wishes)
    for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        # One of the new tokens, which some queries see: they are NaN then, and no others.
        if 0 < count <= length and draw(st.booleans()):
            spoil(cache, sequence, [length - 1 - draw(st.integers(0, count - 1))])
    for name, buffer in cache.buffers.items():
        buffer.copy_from(cache.host[name])
    q = rng.standard_normal((sum(counts), heads, head_dim)).astype(cache.dtype)
    split = draw(st.sampled_from([None, 512]))
    kernel = {"copies": copies, "rows": rows, "variant": "general"}
    out, lse = attend(cache, q, counts, kernel, split, **wishes)
    state = reference.paged_attention(q, cache.cache, cache.table, counts, **wishes)
    bound = np.nan_to_num(cache.bound(q, counts, **wishes))
    assert_within(out, state.out, bound * (1 + 2 * wishes.get("softcap", 0) / 50) + LEAST)
    coded = 0.0 if kv == "b16" else tolerances.SCORE_QUANTISED * 4
    assert_within(lse, state.lse, tolerances.LSE + coded)


# Pages smaller than a warp's tokens, and of as many: each is found in its own way.
@pytest.mark.parametrize("page_size", [16, 32])
@pytest.mark.parametrize("copies", ["cp_async", "registers"])
def test_pages_outside_a_window_are_not_looked_up(rng, device, copies, page_size):
    need_copies(copies, device)
    # An engine may have given them away: their ids are of no page, and no fault is reported. A window of 20 of 380 keys
    # begins at 360, inside a page, and inside a tile that has pages before that.
    cache = Quantised(PAIRS["b16"], [380], page_size=page_size, device=device, rng=rng)
    cache.append(rng)
    q = to_device(rng.standard_normal((1, 4, 64)).astype(cache.dtype), device)
    pages = np.array([cache.table.pages[0]], np.int32)
    op = kvit.Attention(cache.view, 4, window=20, kernel={"copies": copies})
    first, found = 360 // page_size, []
    for given_away in (0, first):
        pages[0, :given_away] = -1
        table = kvit.PageTable(to_device(pages, device), lengths=to_device(np.array([380], np.int32), device))
        found.append(op(q, cache.view, table).numpy().view(np.uint16))
        op.check()
    np.testing.assert_array_equal(*found)
    pages[0, first] = -1
    table = kvit.PageTable(to_device(pages, device), lengths=to_device(np.array([380], np.int32), device))
    op(q, cache.view, table)
    with pytest.raises(kvit.PageTableError, match=f"page {first} of sequence 0"):
        op.check()
