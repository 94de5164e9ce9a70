"""Prefill: prompts and chunks by the kernels whose warps have query rows to themselves."""

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit._native.context import Device
from kvit.selection import choose, registry
from kvit.selection.call import Call
from kvit.selection.cards import Card
from support import tolerances
from support.built import need_copies
from support.caches import BFLOAT16, FLOAT16, make_case, make_table, poisoned, to_device
from support.manifest import manifest
from support.quantised import Quantised
from support.tolerances import assert_within

# Rows of a row tile, by head_dim.
ROWS = {
    "cp_async": {64: 128, 128: 128, 256: 64},
    "registers": {64: 64, 128: 64},
    "tma": {64: 128, 128: 128, 256: 128},
}
# New tokens behind old ones. With 4 heads to a KV head: a row tile and a bit; one row tile over several tiles of keys;
# a decode step among prompts; a prompt alone; nothing at all; a tile of keys that ends with a row tile.
COUNTS, OLD = [40, 20, 1, 70, 0, 32], [30, 300, 200, 0, 17, 32]
LENGTHS = [new + old for new, old in zip(COUNTS, OLD, strict=True)]


def prefill(view, heads, copies="cp_async", **options):
    """An Attention by a prefill kernel."""
    if copies == "tma" and view.device != "host" and Device.of(view.device).compute_capability[0] != 9:
        pytest.skip("no GPU of compute capability 9.0")
    need_copies(copies, view.device)
    op = kvit.Attention(view, heads, kernel={"rows": ROWS[copies][view.head_dim], "copies": copies}, **options)
    assert op.kernel.family == "prefill"
    return op


EITHER = pytest.mark.parametrize("copies", list(ROWS))


def attend(op, view, table, q, counts):
    """(out, lse) in numpy, of rows that were NaN before."""
    out = to_device(poisoned(q.shape, q.dtype), view.device)
    lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), view.device)
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), view.device)
    op(to_device(q, view.device), view, table, out=out, lse=lse, query_indptr=indptr)
    op.check()
    return out.numpy(), lse.numpy()


def assert_reference(case, q, counts, op, **options):
    out, lse = attend(op, case.view, case.page_table, q, counts)
    state, bound = case.expect(q, counts, **options)
    assert_within(out, state.out, bound)
    assert_within(lse, state.lse, tolerances.LSE)
    return out, lse


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "copies"), [(head_dim, copies) for copies, rows in ROWS.items() for head_dim in rows]
)
def test_prompts_chunks_and_steps_in_one_call(rng, device, head_dim, copies, dtype, causal):
    case = make_case(rng, LENGTHS, head_dim=head_dim, dtype=dtype, device=device)
    op = prefill(case.view, 8, copies, causal=causal)
    assert_reference(case, case.queries(rng, sum(COUNTS), 8), COUNTS, op, causal=causal)


@pytest.mark.parametrize(
    "group", [1, 3, 8, 12, 160]
)  # tokens that begin and end anywhere in a row tile, or fill several
@EITHER
def test_any_group(rng, device, copies, group):
    counts = [9, 1] if group == 160 else COUNTS
    lengths = [20, 70] if group == 160 else LENGTHS
    case = make_case(rng, lengths, device=device)
    assert_reference(case, case.queries(rng, sum(counts), 2 * group), counts, prefill(case.view, 2 * group, copies))


@pytest.mark.parametrize("page_size", [1, 5, 16, 64, 100])  # a row of its own, odd, the usual, a tile, across tiles
@pytest.mark.parametrize("table", ["dense", "ragged"])
@pytest.mark.parametrize(("layout", "storage"), [("NHD", "pools"), ("HND", "halves"), ("NHD", "padded")])
@pytest.mark.parametrize("copies", ["cp_async", "registers"])
def test_any_page_size_layout_and_table(rng, device, copies, layout, storage, table, page_size):
    case = make_case(rng, [90, 0, 33], page_size=page_size, layout=layout, storage=storage, table=table, device=device)
    assert_reference(case, case.queries(rng, 73, 8), [50, 0, 23], prefill(case.view, 8, copies))


@pytest.mark.parametrize(
    "pair", [("int8", "int8"), ("int4", "int4"), ("float8_e4m3", "float8_e4m3")], ids=lambda p: p[0]
)
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "copies"), [(64, "cp_async"), (128, "cp_async"), (128, "registers"), (64, "tma"), (128, "tma")]
)
def test_every_codec(rng, device, head_dim, copies, dtype, pair):
    case = Quantised(pair, LENGTHS, head_dim=head_dim, dtype=dtype, device=device, rng=rng)
    case.append(rng)
    q = rng.standard_normal((sum(COUNTS), 8, head_dim)).astype(dtype)
    out, lse = attend(prefill(case.view, 8, copies), case.view, case.page_table, q, COUNTS)
    state = reference.paged_attention(q, case.cache, case.table, COUNTS)
    assert_within(out, state.out, case.bound(q, COUNTS))
    assert_within(lse, state.lse, tolerances.SCORE_QUANTISED)


CODED = pytest.mark.parametrize("codec", ["int8", "int4", "float8_e4m3"])


# Granules of 32 tokens in boxes of pages: several boxes, one, and a page of several granules; sequences that end in any
# granule of a tile.
@CODED
@pytest.mark.parametrize("page_size", [8, 16, 64, 96])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_codes_by_warp_groups_of_any_pages(rng, device, codec, page_size, layout):
    case = Quantised((codec,) * 2, LENGTHS, head_dim=128, page_size=page_size, layout=layout, device=device, rng=rng)
    case.append(rng)
    q = rng.standard_normal((sum(COUNTS), 8, 128)).astype(BFLOAT16)
    out, lse = attend(prefill(case.view, 8, "tma"), case.view, case.page_table, q, COUNTS)
    state = reference.paged_attention(q, case.cache, case.table, COUNTS)
    assert_within(out, state.out, case.bound(q, COUNTS))
    assert_within(lse, state.lse, tolerances.SCORE_QUANTISED)


@CODED
def test_a_wrong_page_of_codes_spoils_its_sequence_alone(rng, device, codec):
    case = Quantised((codec,) * 2, [90, 200], head_dim=64, page_size=16, device=device, rng=rng)
    case.append(rng)
    pages = [page.copy() for page in case.table.pages]
    pages[0][2] = 1 << 20  # tokens 32 to 47: all of the codes before them have been widened then
    q = rng.standard_normal((60, 8, 64)).astype(BFLOAT16)
    op = prefill(case.view, 8, "tma")
    out = to_device(poisoned(q.shape, q.dtype), device)
    op(to_device(q, device), case.view, make_table(pages, [90, 200], "dense", device), out=out)
    with pytest.raises(kvit.PageTableError, match="1048576"):
        op.check()
    state = reference.paged_attention(q, case.cache, case.table, [30, 30])
    bound, out = case.bound(q, [30, 30]), out.numpy()
    assert np.isnan(out[:30].astype(np.float32)).all()
    assert_within(out[30:], state.out[30:], bound[30:])
    good, _ = attend(op, case.view, case.page_table, q, [30, 30])
    assert_within(good, state.out, bound)


@CODED
def test_long_prompts_of_codes_are_shared_by_many_ctas(rng, device, codec):
    # Rings go round many times, also between row tiles and heads; the same bits every time.
    counts, lengths = [300, 260], [300, 700]
    case = Quantised((codec,) * 2, lengths, head_dim=64, device=device, rng=rng)
    case.append(rng)
    q = rng.standard_normal((560, 8, 64)).astype(BFLOAT16)
    op = prefill(case.view, 8, "tma")
    first = attend(op, case.view, case.page_table, q, counts)
    state = reference.paged_attention(q, case.cache, case.table, counts)
    assert_within(first[0], state.out, case.bound(q, counts))
    for got, wanted in zip(attend(op, case.view, case.page_table, q, counts), first, strict=True):
        np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))


@EITHER
def test_long_prompts_are_shared_by_many_ctas(rng, device, copies):
    # More row tiles than CTAs have shares: heads that two CTAs cut, and CTAs that have several heads.
    counts, lengths = [300, 260], [300, 700]
    case = make_case(rng, lengths, device=device)
    op = prefill(case.view, 8, copies)
    first = assert_reference(case, case.queries(np.random.default_rng(1), 560, 8), counts, op)
    for _ in range(3):  # the same bits, and a workspace that is left as it was found
        again = attend(op, case.view, case.page_table, case.queries(np.random.default_rng(1), 560, 8), counts)
        for got, wanted in zip(again, first, strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))


@EITHER
def test_split_tokens_give_a_sequence_the_same_bits_in_any_batch(rng, device, copies):
    case = make_case(rng, LENGTHS, device=device)
    q = case.queries(rng, sum(COUNTS), 8)
    op = prefill(case.view, 8, copies, split_tokens=128)
    together = attend(op, case.view, case.page_table, q, COUNTS)
    begins = np.cumsum([0, *COUNTS])
    for sequence, count in enumerate(COUNTS):
        rows = slice(begins[sequence], begins[sequence] + count)
        table = make_table([case.table.pages[sequence]], [LENGTHS[sequence]], "dense", device)
        alone = attend(op, case.view, table, np.ascontiguousarray(q[rows]), [count])
        for got, wanted in zip(alone, together, strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), wanted[rows].view(np.uint8), err_msg=f"{sequence}")


@EITHER
def test_a_wrong_page_spoils_its_sequence_alone(rng, device, copies):
    case = make_case(rng, [90, 200], device=device)
    pages = [page.copy() for page in case.table.pages]
    pages[0][2] = 1 << 20  # tokens 32 to 47
    table = make_table(pages, [90, 200], "dense", device)
    op = prefill(case.view, 8, copies)
    q = case.queries(rng, 60, 8)
    out = to_device(poisoned(q.shape, q.dtype), device)
    op(to_device(q, device), case.view, table, out=out)
    with pytest.raises(kvit.PageTableError, match="1048576"):
        op.check()
    state, bound = case.expect(q, [30, 30])
    out = out.numpy()
    assert np.isnan(out[:30].astype(np.float32)).all()
    assert_within(out[30:], state.out[30:], bound[30:])
    good = attend(op, case.view, case.page_table, q, [30, 30])  # the workspace is as it was
    assert_within(good[0], state.out, bound)


@EITHER
def test_pages_that_are_read_ahead(rng, device, copies):
    case = make_case(rng, LENGTHS, device=device)
    op = prefill(case.view, 8, copies, reads_ahead=True)
    assert_reference(case, case.queries(rng, sum(COUNTS), 8), COUNTS, op)


def test_prompts_are_given_to_prefill_and_steps_to_decode():
    case = make_case(np.random.default_rng(0), [16])
    families = {
        tokens: kvit.Attention(case.view, 8, tokens_per_sequence=tokens).kernel.family
        for tokens in (1, 4, 8, 9, 100, 4096)
    }
    assert families == {1: "decode", 4: "decode", 8: "decode", 9: "prefill", 100: "prefill", 4096: "prefill"}


def built_for_gpus(dtype="bf16", kv="b16", head_dim=128, variant="plain"):
    """All kernels of attention as a build for every target has them."""
    archs = {spec.symbol: spec.archs for spec in manifest("decode", "prefill")}
    return tuple(
        kernel._replace(archs=archs[kernel.symbol])
        for family in ("decode", "prefill")
        for kernel in registry.candidates(family, dtype=dtype, kv=kv, head_dim=head_dim, variant=variant)
    )


def some_card(capability):
    """One of this compute capability: no rule that kvit ships asks for more."""
    return Card("some card", capability, 100, 2000.0)


@pytest.mark.parametrize(
    ("capability", "rows", "page_size", "family", "copies"),
    [
        ((9, 0), 16, 16, "decode", "tma"),
        ((9, 0), 32, 16, "decode", "tma"),
        ((9, 0), 33, 16, "prefill", "tma"),  # where decode's kernels have three passes
        ((9, 0), 4 * 4096, 16, "prefill", "tma"),
        ((9, 0), 4 * 4096, 5, "prefill", "cp_async"),  # no boxes in such pages
        ((9, 0), 48, 5, "decode", "cp_async"),
        ((8, 0), 48, 16, "decode", "cp_async"),
        ((8, 0), 49, 16, "prefill", "cp_async"),  # four passes
        ((8, 6), 4 * 4096, 16, "prefill", "cp_async"),
        ((7, 5), 4, 16, "decode", "registers"),
        ((7, 5), 24, 16, "decode", "registers"),
        ((7, 5), 25, 5, "prefill", "registers"),  # four passes
    ],
)
def test_what_a_gpu_takes(capability, rows, page_size, family, copies):
    call = Call("bf16", "b16", 128, rows, page_size)
    kernel = choose.choose(built_for_gpus(), call, some_card(capability)).kernel
    assert (kernel.family, kernel.axes["copies"]) == (family, copies)


def test_what_compute_capability_7_5_has_not_is_told_with_what_there_is():
    for options in ({"head_dim": 256}, {"kv": "e5m2"}, {"kv": "i8", "variant": "general"}):
        built, key = built_for_gpus(**options), {"kv": "b16", "head_dim": 128} | options
        call = Call("bf16", key["kv"], key["head_dim"], 4, 16)
        with pytest.raises(kvit.KernelMissing, match=r"on sm_75; built targets .*\n.*copies=registers.*platforms.md"):
            choose.choose(built, call, some_card((7, 5)))


def test_kernels_for_compute_capability_7_5_fit_into_its_memory():
    entries = [entry for family in ("decode", "prefill") for entry in registry.candidates(family, copies="registers")]
    assert len(entries) > 20
    for entry in entries:
        assert entry.shared_bytes * entry.min_ctas <= 64 * 1024 and entry.threads * entry.min_ctas <= 1024, entry


def test_prompts_with_options_take_warp_groups_too():
    built, call = built_for_gpus(variant="general"), Call("bf16", "b16", 128, 4 * 4096, 16)
    chosen = choose.choose(built, call, some_card((9, 0))).kernel
    assert (chosen.family, chosen.axes["copies"]) == ("prefill", "tma")


def test_shared_memory_fits_the_smallest_gpus():
    # 99 KB: compute capability 8.6 and 8.9.
    assert all(kernel.shared_bytes <= 99 * 1024 for kernel in registry.candidates("prefill", copies="cp_async"))


def test_heads_are_wider_than_one_kernel(rng, device):
    # 8-bit codes of 256 channels have no prefill kernel: decode's serve their prompts.
    if device != "host" and Device.of(device).compute_capability < (8, 0):
        pytest.skip("no GPU of compute capability 8.0")
    case = Quantised(("int8", "int8"), [70], head_dim=256, dtype=BFLOAT16, device=device, rng=rng)
    assert kvit.Attention(case.view, 8, tokens_per_sequence=64).kernel.family == "decode"
