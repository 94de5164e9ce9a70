"""kernels/layout/kv_layout.cuh: the choice of maps and layouts, against its model and against the banks."""

import pytest

from kvit.errors import LayoutError
from kvit.iterators import (
    SmemLayout,
    Swizzle,
    copy_conflicts,
    kv_layout,
    kv_thread_map,
    matrix_conflicts,
    param_layout,
    param_thread_map,
)

HEADERS = ["core/types.h", "layout/kv_layout.cuh"]
TYPES = {16: "Half", 8: "uint8_t", 4: "Uint4"}
WARPS = 4
# Head dims of today's models, and 512 and 576 (multi-head latent attention).
SHAPES = [
    (bits, head_dim, tokens) for bits in TYPES for head_dim in (64, 128, 192, 256, 512, 576) for tokens in (32, 64)
]


@pytest.mark.parametrize(("bits", "head_dim", "tokens"), SHAPES)
def test_cpp_and_model_make_the_same_choice(cxx, bits, head_dim, tokens):
    data = kv_thread_map(bits, head_dim, tokens, WARPS)
    element = TYPES[bits]
    cxx.accept(
        HEADERS,
        f"""
        template <class A, class B> inline constexpr bool kSame = __is_same(A, B);
        using Map = KvThreadMap<{element}, {head_dim}, {tokens}, {WARPS}>;
        static_assert(kSame<Map, {data}>);
        static_assert(kSame<KvLayout<{element}, {head_dim}, {tokens}>, {kv_layout(bits, head_dim, tokens)}>);
        static_assert(kSame<ParamThreadMap<Map>, {param_thread_map(data)}>);
        static_assert(kSame<ParamLayout<{tokens}>, {param_layout(tokens)}>);
        """,
    )


@pytest.mark.parametrize(("bits", "head_dim", "tokens"), SHAPES)
def test_copies_and_matrix_reads_are_free_of_bank_conflicts(bits, head_dim, tokens):
    layout = kv_layout(bits, head_dim, tokens)
    thread_map = kv_thread_map(bits, head_dim, tokens, WARPS)
    assert copy_conflicts(thread_map, layout, bits) == 1
    assert matrix_conflicts(layout, bits) == 1
    assert copy_conflicts(param_thread_map(thread_map), param_layout(tokens), 16) == 1


@pytest.mark.parametrize(("bits", "head_dim", "tokens"), SHAPES)
def test_every_16_byte_vector_is_whole_and_aligned(bits, head_dim, tokens):
    assert kv_layout(bits, head_dim, tokens).keeps_runs(128 // bits)


@pytest.mark.parametrize(("bits", "head_dim", "tokens"), SHAPES)
def test_parameters_come_with_the_tokens_of_their_warp(bits, head_dim, tokens):
    data = kv_thread_map(bits, head_dim, tokens, WARPS)
    assert param_thread_map(data).footprint_s == data.footprint_s


# What the layouts of the seed cost, in the same emulation: two turns for every copy.
@pytest.mark.parametrize(
    ("bits", "head_dim", "layout"),
    [
        (8, 128, SmemLayout(64, 128, 32, 64, Swizzle(3, 4, 3))),
        (8, 256, SmemLayout(64, 256, 32, 64, Swizzle(3, 4, 3))),
        (4, 256, SmemLayout(64, 256, 32, 128, Swizzle(2, 5, 3))),
    ],
)
def test_the_layouts_of_the_seed_write_with_conflicts_where_these_do_not(bits, head_dim, layout):
    assert copy_conflicts(kv_thread_map(bits, head_dim, 64, WARPS), layout, bits) == 2
    assert matrix_conflicts(layout, bits) == 1


def test_a_head_dim_of_a_single_vector_is_refused(cxx):
    assert "a head_dim must be a multiple of" in cxx.refusal(HEADERS, "using Layout = KvLayout<Uint4, 96, 64>;")
    with pytest.raises(LayoutError, match="must be a multiple of 64"):
        kv_layout(4, 96, 64)
