"""Hunts for outputs that lie over inputs and spoil them: each pair of arguments of each operation, in many ways.

Every call is either refused, with nothing written, or has the bits of the same call on separate memory.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit._native import host
from support.aliased import Call, apart, over, side_by_side
from support.caches import BFLOAT16
from support.stored import fill

HEADS, KV_HEADS, DIM, PAGES, PAGE = 4, 2, 64, 9, 8
LENGTHS, ROWS = np.array([30, 5, 17], np.int32), 2  # new tokens of each


def cache_contents(rng, pair):
    cache = reference.Cache.poisoned(PAGES, PAGE, KV_HEADS, DIM, dtype=BFLOAT16, k=pair[0], v=pair[1], layout="HND")
    fill(rng, cache, BFLOAT16)
    names = ("k", "v", "k_params", "v_params")
    return {f"view.{name}": pool for name in names if (pool := getattr(cache, name)) is not None}


def view_of(tensors, pair, name="view"):
    given = {x.removeprefix(f"{name}."): tensor for x, tensor in tensors.items() if x.startswith(f"{name}.")}
    return kvit.CacheView(**given, layout="HND", page_size=PAGE, kv=pair, dtype="bfloat16")


def numbers(rng):
    """A table of pages in no order, and offsets of the new rows."""
    pages = np.zeros((3, 4), np.int32)
    pages.reshape(-1)[[0, 1, 2, 3, 4, 8, 9, 10]] = rng.permutation(PAGES)[:8]
    return {"pages": pages, "lengths": LENGTHS, "query_indptr": np.array([0, 2, 4, 6], np.int32)}


def table_of(tensors):
    return kvit.PageTable(tensors["pages"], lengths=tensors["lengths"])


def rows(rng, heads, dtype=BFLOAT16):
    return rng.standard_normal((3 * ROWS, heads, DIM)).astype(dtype)


def pools(pair):
    return tuple(f"view.{x}" for x in ("k", "v", *(["k_params", "v_params"] if pair[0] == "int8" else [])))


def attention(rng, pair, splits=False):
    contents = {
        "q": rows(rng, HEADS), "out": rows(rng, HEADS), "lse": np.zeros((3 * ROWS, HEADS), np.float32),
        **cache_contents(rng, pair), **numbers(rng),
    }  # fmt: skip

    def make(t):
        view = view_of(t, pair)
        op = kvit.Attention(view, HEADS, tokens_per_sequence=ROWS)
        if splits:
            tile = op.kernel.facts["tile_tokens"]
            op = kvit.Attention(view, HEADS, tokens_per_sequence=ROWS, split_tokens=tile)
        op(t["q"], view, table_of(t), out=t["out"], lse=t["lse"], query_indptr=t["query_indptr"])

    return Call(contents, ("out", "lse"), make)


def append(rng, pair):
    contents = {
        "k": rows(rng, KV_HEADS), "v": rows(rng, KV_HEADS), "q": rows(rng, HEADS), "q_out": rows(rng, HEADS),
        "k_bias": rows(rng, KV_HEADS)[0], "v_bias": rows(rng, KV_HEADS)[0], "q_bias": rows(rng, HEADS)[0],
        "prefix_lengths": np.array([28, 4, 0], np.int32), "positions": np.arange(6, dtype=np.int32),
        **cache_contents(rng, pair), **numbers(rng),
    }  # fmt: skip
    names = ("q", "q_out", "k_bias", "v_bias", "q_bias", "prefix_lengths", "positions", "query_indptr")

    def make(t):
        view = view_of(t, pair)
        op = kvit.Append(view, rope=kvit.Rope(DIM))
        op(t["k"], t["v"], view, table_of(t), **{name: t[name] for name in names})

    return Call(contents, ("q_out", *pools(pair)), make)


def gather(rng, pair):
    contents = {"k": rows(rng, KV_HEADS), "v": rows(rng, KV_HEADS), **cache_contents(rng, pair), **numbers(rng)}

    def make(t):
        view = view_of(t, pair)
        kvit.Gather(view)(view, table_of(t), out=(t["k"], t["v"]), query_indptr=t["query_indptr"])

    return Call(contents, ("k", "v"), make)


def merge(rng, pair):
    contents = {f"out{i}": rows(rng, HEADS) for i in range(3)} | {"out": rows(rng, HEADS)}
    contents |= {name: rng.standard_normal((3 * ROWS, HEADS)).astype("f4") for name in ("lse0", "lse1", "lse2", "lse")}

    def make(t):
        outs, lses = ([t[f"{name}{i}"] for i in range(3)] for name in ("out", "lse"))
        kvit.merge_states(outs, lses, out=t["out"], lse=t["lse"])

    return Call(contents, ("out", "lse"), make)


def merge_stacked(rng, pair):
    contents = {
        "outs": np.stack([rows(rng, HEADS) for _ in range(3)]), "lses": rng.standard_normal((3, 6, HEADS)).astype("f4"),
        "out": rows(rng, HEADS), "lse": np.zeros((6, HEADS), np.float32),
    }  # fmt: skip
    return Call(contents, ("out", "lse"), lambda t: kvit.merge_states(t["outs"], t["lses"], out=t["out"], lse=t["lse"]))


def copy_pages(rng, pair):
    order = rng.permutation(PAGES).astype(np.int32)
    contents = {
        "source": order[[1, 2, 0, 4]], "target": order[[0, 1, 2, 3]], "chains": np.array([0, 3, 4], np.int32),
        **cache_contents(rng, pair),
    }  # fmt: skip

    def make(t):
        view = view_of(t, pair)
        kvit.CopyPages(view)(view, t["source"], t["target"], chains=t["chains"])

    return Call(contents, pools(pair), make)


def convert(rng, pair):
    new = ("int4", "int4") if pair[0] == "int8" else ("int8", "bfloat16")
    contents = cache_contents(rng, pair)
    target = cache_contents(rng, new)
    contents |= {name.replace("view", "new"): pool for name, pool in target.items()}
    pages = rng.permutation(PAGES)[:5].astype(np.int32)
    contents |= {"source_pages": pages, "target_pages": pages.copy()}

    def make(t):
        old_view, new_view = view_of(t, pair), view_of(t, new, "new")
        op = kvit.ConvertPages(old_view, new_view)
        op(old_view, new_view, source_pages=t["source_pages"], target_pages=t["target_pages"])

    return Call(contents, tuple(name for name in contents if name.startswith("new.")), make)


def split_attention(rng, pair):
    return attention(rng, pair, splits=True)


MAKERS = [attention, split_attention, append, gather, merge, merge_stacked, copy_pages, convert]
PAIRS = [("bfloat16", "bfloat16"), ("int8", "int8")]


def distances(rng, call, first, second):
    """How far the second begins behind the first: the same place, a row, a page, their ends, and anywhere."""
    a, b = (call.contents[name] for name in (first, second))
    steps = [stride for x in (a, b) for stride in x.strides if stride % 16 == 0]
    near = [0, 16, a.nbytes // 16 * 16, -(b.nbytes // 16) * 16, a.nbytes // 16 * 16 - 16, *steps]
    anywhere = 16 * int(rng.integers(-(b.nbytes // 16), a.nbytes // 16 + 1))
    return [anywhere, int(rng.choice(near)), -int(rng.choice(near))]


def layouts(rng, call, first, second, device):
    """The two arguments over each other and beside each other in several ways."""
    for distance in distances(rng, call, first, second):
        yield f"{second} lies {distance} bytes behind {first}", over(call, first, second, distance, device)
    if call.contents[first].ndim > 1 and call.contents[second].ndim > 1:
        yield f"rows of {first} and {second} in turn", side_by_side(call, first, second, device)


@pytest.mark.hunt(share=6, short=1)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_what_is_written_may_lie_over_what_is_read_or_is_refused(hunt, device, maker):
    before = host.configure()
    try:
        for rng in hunt.rounds():
            host.configure(workers=int(rng.integers(1, 4)), seed=int(rng.integers(1 << 30)))
            has_cache = maker not in (merge, merge_stacked)
            for pair in PAIRS if has_cache and hunt.is_long else PAIRS[:1]:
                call = maker(rng, pair)
                for first in call.written:
                    for second in (name for name in call.contents if name != first):
                        for how, layout in layouts(rng, call, first, second, device):
                            hunt.count(check(layout, device, f"{pair}, {how}"))
    finally:
        host.configure(**before)


def check(layout, device, how):
    """ "refused", or "right" where the call has the bits of separate memory."""
    call = layout.call
    contents = layout.held()
    try:
        layout.run()
    except kvit.KvitError as error:
        assert isinstance(error, kvit.LayoutError), f"{how}: {error!r}"
        for now, old in zip(layout.after, layout.before, strict=True):
            assert np.array_equal(now, old), f"{how}: refused, and something was written"
        return "refused"
    wanted = apart(Call(contents, call.written, call.make, call.names), device)
    wanted.run()
    for name, found in layout.results().items():
        assert np.array_equal(found, wanted.results()[name]), f"{how}: {name} is not what it is on separate memory"
    assert layout.changed_beside() == 0, f"{how}: bytes changed that belong to no output"
    return "right"
