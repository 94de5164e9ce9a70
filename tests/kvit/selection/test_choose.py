"""kvit/selection/choose.py: the cheapest kernel that can serve a call, on any GPU, without one."""

import pytest

from kvit.errors import KernelMissing, LayoutError
from kvit.selection import registry
from kvit.selection.call import Call
from kvit.selection.cards import Card
from kvit.selection.choose import choose
from kvit.selection.registry import best_target
from kvit.selection.rules import Rule
from support.manifest import manifest

EVERYWHERE, HOPPER_ALONE = ("sm_80", "sm_90", "compute_80", "compute_90"), ("sm_90a",)
AMPERE, HOPPER, BLACKWELL, GEFORCE_50, HOST = (8, 0), (9, 0), (10, 0), (12, 0), None


def kernel(rows, loader="sm80", archs=EVERYWHERE, **facts):
    """One that was not built: its axes, and what it needs."""
    return registry.KernelInfo(
        symbol=f"kvit_decode__{loader}_h{rows}",
        family="decode",
        unit="all",
        axes={"dtype": "bf16", "kv": "b16", "head_dim": 128, "rows": rows, "loader": loader},
        params="KvitDecodeParams",
        params_bytes=340,
        threads=128,
        shared_bytes=1024,
        min_ctas=2,
        facts=facts,
        archs=archs,
        folder=registry.KERNELS,
    )


def bulk(rows):
    """One that copies by descriptors: it needs whole boxes of 8 tokens, at equal distances, on sm_90a."""
    return kernel(rows, "sm90", HOPPER_ALONE, page_multiple=8, stride_multiple=16, needs_strides=1)


BOTH = (kernel(8), kernel(16), bulk(8), bulk(16))
PREFER_BULK = Rule("loader", ("sm90", "sm80"), "bulk copies are asked for by one thread", arch="sm_90+")


def call(rows=4, page_size=64, **rest):
    return Call("bf16", "b16", 128, rows, page_size, **rest)


def card(gpu):
    """Some card of this compute capability."""
    return Card("some card", gpu, 100, 3000.0)


def chosen(rows=4, gpu=HOPPER, candidates=BOTH, rules=(PREFER_BULK,), wanted=None, **rest):
    return choose(candidates, call(rows, **rest), card(gpu), rules=rules, wanted=wanted)


# 8 and 16 fill a tile; 9 and 24 waste some of one; 17 needs two of the taller and three of the other.
@pytest.mark.parametrize(("rows", "height"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 16), (24, 16), (64, 16)])
def test_k_and_v_are_read_as_seldom_as_possible_and_then_by_the_fewest_idle_rows(rows, height):
    for gpu in (AMPERE, HOPPER, BLACKWELL, HOST):
        assert chosen(rows, gpu).kernel.axes["rows"] == height


def test_a_rule_decides_on_its_architecture_alone():
    assert chosen(gpu=HOPPER).kernel.axes["loader"] == "sm90"
    assert chosen(gpu=AMPERE).kernel.axes["loader"] == "sm80"
    assert chosen(gpu=HOST).kernel.axes["loader"] == "sm80"  # runs all: the first in the manifest, as no rule speaks
    assert chosen(gpu=HOPPER, rules=()).kernel.axes["loader"] == "sm80"


def test_a_rule_speaks_of_one_architecture_or_of_newer_ones_too():
    newer = (kernel(8), bulk(8)._replace(archs=("sm_90", "compute_90")))
    exactly = PREFER_BULK._replace(arch="sm_90")
    for gpu, preferred in ((AMPERE, False), (HOPPER, True), (BLACKWELL, False), (HOST, False)):
        assert exactly.applies(call(), card(gpu)) == preferred
    assert chosen(gpu=HOPPER, candidates=newer).kernel.axes["loader"] == "sm90"
    assert chosen(gpu=BLACKWELL, candidates=newer).kernel.axes["loader"] == "sm90"
    assert chosen(gpu=BLACKWELL, candidates=newer, rules=(exactly,)).kernel.axes["loader"] == "sm80"
    assert chosen(gpu=HOST, candidates=newer).kernel.axes["loader"] == "sm80"


def test_a_kernel_with_more_shared_memory_than_a_gpu_has_is_left_out():
    large = kernel(8)._replace(symbol="large", shared_bytes=100 * 1024)
    both = (large, kernel(16))
    assert chosen(gpu=BLACKWELL, candidates=both).kernel is large
    found = chosen(gpu=GEFORCE_50, candidates=both)
    assert found.kernel == kernel(16)
    assert found.refused == ((large, "needs 102400 shared bytes per CTA; sm_120 has 101376"),)
    with pytest.raises(KernelMissing, match="no kernel runs on sm_120: large needs 102400 shared bytes"):
        chosen(gpu=GEFORCE_50, candidates=both, wanted="large")


def test_the_first_rule_that_applies_decides():
    small_pages = Rule("loader", ("sm80",), "a box would hold 8 tokens", when={"page_size": {"max": 15}})
    coded = Rule("loader", ("sm80",), "the codes are small", when={"kv": ["i8", "i4"]})
    rules = (small_pages, coded, PREFER_BULK)
    assert chosen(page_size=8, rules=rules).kernel.axes["loader"] == "sm80"
    assert chosen(page_size=16, rules=rules).kernel.axes["loader"] == "sm90"
    assert chosen(page_size=16, rules=rules).rules == (PREFER_BULK,)
    assert chosen(page_size=8, rules=rules[::-1]).rules == (PREFER_BULK,)


def test_a_second_read_of_the_cache_outweighs_any_preference():
    assert chosen(16, candidates=(kernel(16), bulk(8))).kernel.axes["loader"] == "sm80"


def test_an_axis_that_no_kernel_has_decides_nothing():
    found = chosen(rules=(Rule("weather", ("dry", "wet"), "who knows"), PREFER_BULK))
    assert found.terms == ("passes over K and V", "loader", "idle rows")
    assert found.ranked[0] == ((1, 0, 4), bulk(8))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpu": BLACKWELL}, "is built for sm_90a, not for sm_100"),
        ({"page_size": 20}, "needs pages of a multiple of 8 tokens; these have 20"),
        ({"stride_multiple": 8}, "needs strides of a multiple of 16 bytes; these are multiples of 8"),
        ({"by_pointer": True}, "needs pages that lie at equal distances"),
    ],
    ids=["GPU", "page", "strides", "pointers"],
)
def test_a_kernel_that_cannot_serve_the_call_is_left_out_with_the_reason(change, reason):
    found = chosen(**change)
    assert found.kernel == kernel(8)
    assert [entry.symbol for entry, _ in found.refused] == ["kvit_decode__sm90_h8", "kvit_decode__sm90_h16"]
    assert all(reason in why for _, why in found.refused)


def test_costs_are_ranked_and_the_cheapest_is_the_choice():
    found = chosen(9)
    assert [cost for cost, _ in found.ranked] == [(1, 0, 7), (1, 1, 7), (2, 0, 7), (2, 1, 7)]
    assert found.ranked[0][1] is found.kernel


def test_a_symbol_or_axes_narrow_the_choice():
    assert chosen(wanted="kvit_decode__sm80_h16").kernel == kernel(16)
    assert chosen(wanted={"loader": "sm80"}).kernel == kernel(8)
    assert chosen(wanted={"rows": 16, "loader": "sm90"}).kernel == bulk(16)


@pytest.mark.parametrize("wanted", ["kvit_decode__sm80_h32", {"rows": 32}, {"weather": "dry"}], ids=str)
def test_what_is_no_candidate_is_refused_with_those_that_are(wanted):
    with pytest.raises(KernelMissing, match="is none of those for dtype=bf16 kv=b16 head_dim=128") as caught:
        chosen(wanted=wanted)
    for entry in BOTH:
        assert entry.symbol in str(caught.value)


def test_a_wanted_kernel_that_cannot_read_the_pages_is_refused_with_the_reason_and_the_others():
    with pytest.raises(LayoutError, match="multiple of 8 tokens; these have 20.*choose from.*sm80_h8"):
        chosen(page_size=20, wanted={"loader": "sm90"})


def test_a_gpu_that_runs_none_is_told_what_kernels_need():
    with pytest.raises(KernelMissing, match=r"on sm_75; built targets are.*\n.*where KVIT_ARCHS names sm_75"):
        chosen(gpu=(7, 5))
    with pytest.raises(KernelMissing, match=r"on sm_70; built targets are.*\n.*7.5 or newer"):
        chosen(gpu=(7, 0))


def test_wanting_something_else_than_a_name_or_axes_is_a_type_error():
    with pytest.raises(TypeError, match="kernel is a int; give a symbol"):
        chosen(wanted=16)


# --- rules.json -----------------------------------------------------------------------------------------------------


def test_the_shipped_rules_serve_every_built_shape_on_every_architecture():
    built = registry.candidates("decode")
    for key in {(entry.axes["dtype"], entry.axes["kv"], entry.axes["head_dim"]) for entry in built}:
        candidates = registry.candidates("decode", **dict(zip(("dtype", "kv", "head_dim"), key, strict=True)))
        archs = {arch for entry in candidates for arch in entry.archs}
        for gpu in (HOST, *(gpu for gpu in (AMPERE, HOPPER, BLACKWELL) if best_target(gpu, archs))):
            for page_size in (1, 20, 64):
                call = Call(*key, 4, page_size, shares_kv=key[2] == "576x512")
                assert choose(candidates, call, card(gpu)).kernel in candidates


def built_for_all(kv, head_dim):
    """The attention kernels of a plain build for every target, whatever was built here."""
    archs = {spec.symbol: spec.archs for spec in manifest("decode", "prefill")}
    key = {"dtype": "bf16", "kv": kv, "head_dim": head_dim}
    found = tuple(
        entry._replace(archs=archs[entry.symbol])
        for family in ("decode", "prefill")
        for entry in registry.candidates(family, **key)
    )
    plain = tuple(entry for entry in found if entry.axes["variant"] == "plain")
    return plain or found  # rows that are few models' have general kernels alone


# What was measured on an H100 and an H200: new targets and rules for other GPUs must leave these two what they have.
@pytest.mark.parametrize(
    ("kv", "head_dim", "rows", "page_size", "expected"),
    [
        ("b16", 64, 8, 64, "d64_h8_tma_plain"),
        ("b16", 64, 16, 16, "d64_h16_tma_plain"),
        ("b16", 128, 1, 64, "d128_h8_tma_plain"),
        ("b16", 128, 17, 64, "d128_h16_tma_plain"),
        ("b16", 128, 33, 64, "d128_h128_tma_plain"),  # prefill by warp groups
        ("b16", 128, 300, 20, "d128_h128_cp_async_plain"),
        ("b16", 128, 8, 20, "d128_h8_cp_async_plain"),
        ("b16", 256, 8, 64, "d256_h8_tma_plain"),
        ("b16", 256, 300, 64, "d256_h128_tma_plain"),
        ("i8", 64, 8, 64, "d64_h8_tma_packed_plain"),
        ("i8", 128, 8, 64, "d128_h8_tma_plain"),
        ("i8", 128, 300, 64, "d128_h128_tma_plain"),
        ("i4", 64, 8, 64, "d64_h8_tma_packed_plain"),
        ("i4", 128, 16, 64, "d128_h16_tma_packed_plain"),
        ("i4", 128, 8, 1, "d128_h8_cp_async_plain"),
        ("i4", 256, 8, 64, "d256_h8_tma_plain"),
        ("e4m3", 64, 8, 64, "d64_h8_tma_packed_plain"),
        ("e4m3", 128, 8, 64, "d128_h8_tma_plain"),
        ("e5m2", 128, 8, 64, "d128_h8_cp_async_plain"),
        ("i8_i4", 128, 16, 64, "d128_h8_tma_packed_plain"),
        ("e4m3_i4", 128, 8, 64, "d128_h8_cp_async_plain"),
        ("b16_i8", 128, 8, 64, "d128_h8_tma_plain"),
    ],
)
def test_a_hopper_gpu_takes_the_kernels_that_were_measured_there(kv, head_dim, rows, page_size, expected):
    found = choose(built_for_all(kv, head_dim), Call("bf16", kv, head_dim, rows, page_size), card(HOPPER)).kernel
    assert found.symbol.endswith(f"bf16_{kv}_{expected}")
    target = "sm_90a" if (found.family, found.axes["copies"]) == ("prefill", "tma") else "sm_90"
    assert found.target(HOPPER) == target and found.overlaps(HOPPER)


@pytest.mark.parametrize(
    ("gpu", "kv", "head_dim", "copies"),
    [
        ((10, 0), "b16", 128, "tma"),
        ((10, 3), "i4", 128, "tma_packed"),
        ((11, 0), "b16", 128, "tma"),  # no cubin: PTX of compute_90
        ((12, 0), "b16", 128, "cp_async"),  # rings for TMA take 148 KB of the 99 that there are
        ((12, 0), "i4", 64, "tma_packed"),
        ((8, 9), "i4", 64, "cp_async"),
    ],
)
def test_newer_gpus_copy_by_tma_where_they_have_the_memory(gpu, kv, head_dim, copies):
    found = choose(built_for_all(kv, head_dim), Call("bf16", kv, head_dim, 8, 64), card(gpu)).kernel
    assert (found.family, found.axes["copies"]) == ("decode", copies)
    assert found.overlaps(gpu) == (gpu >= (9, 0))


def test_every_gpu_finds_a_kernel_for_every_shape():
    keys = {(entry.axes["kv"], entry.axes["head_dim"]) for entry in registry.candidates("decode")}
    for gpu in ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)):
        for kv, head_dim in keys:
            for rows in (1, 9, 300):
                call = Call("bf16", kv, head_dim, rows, 5, shares_kv=head_dim == "576x512")
                assert choose(built_for_all(kv, head_dim), call, card(gpu)).kernel
