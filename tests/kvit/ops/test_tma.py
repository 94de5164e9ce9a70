"""Decode by tensor copies: what the reference says, whatever lies behind a sequence's end; other pages are refused."""

import numpy as np
import pytest

import kvit
from kvit._native.context import Device
from kvit.selection import registry
from support.caches import BFLOAT16, make_case, poisoned, to_device, view_like
from support.quantised import Quantised
from support.tolerances import assert_within

TMA, TMA_PACKED = {"copies": "tma"}, {"copies": "tma_packed"}
# Lengths around the ends of boxes, pages and tiles; pages that hold a part of a box, several boxes, and both.
LENGTHS = [1, 63, 0, 64, 65, 130, 517]


@pytest.fixture(autouse=True)
def only_where_tensor_copies_are(device):
    if device != "host" and Device.of(device).compute_capability < (9, 0):
        pytest.skip("no GPU with a tensor copy engine")


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [8, 16, 24, 64, 256])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_16_bit_caches_in_pages_of_any_multiple_of_8(rng, device, head_dim, page_size, layout):
    case = make_case(rng, LENGTHS, page_size=page_size, head_dim=head_dim, layout=layout, device=device)
    q = case.queries(rng, len(LENGTHS), 8)
    op = kvit.Attention(case.view, 8, kernel=TMA)
    state, bound = case.expect(q)
    assert_within(op(to_device(q, device), case.view, case.page_table).numpy(), state.out, bound)


PAIRS = [("int8", "int8"), ("int4", "int4"), ("float8_e4m3",) * 2, ("int8", "int4"), ("", "int8")]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("page_size", [8, 64])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_quantised_caches(rng, device, pair, head_dim, page_size, layout):
    case = Quantised(pair, LENGTHS, page_size=page_size, head_dim=head_dim, layout=layout, device=device, rng=rng)
    case.append(rng)
    q = rng.standard_normal((len(LENGTHS), 6, head_dim)).astype(BFLOAT16)
    counts = [1] * len(LENGTHS)
    state = kvit.reference.paged_attention(q, case.cache, case.table, counts)
    kinds = ["cp_async", "tma"] + ["tma_packed"] * (layout == "HND" and has_small_rows(pair, head_dim))
    for copies in kinds:
        op = kvit.Attention(case.view, 6, kernel={"copies": copies})
        got = op(to_device(q, device), case.view, case.page_table).numpy()
        assert_within(got, state.out, case.bound(q, counts))


def has_small_rows(pair, head_dim):
    """Whether rows of K or V have fewer than 128 bytes: there are kernels by lines for them alone."""
    return min(kvit.codecs.codec_of(name or "bfloat16").dtype.bytes_for(head_dim) for name in pair) < 128


def test_lines_are_taken_where_rows_lie_one_after_the_other_and_refused_by_name_elsewhere(rng, device):
    near, apart = (Quantised(("int4",) * 2, [70], layout=layout, device=device, rng=rng) for layout in ("HND", "NHD"))
    op = kvit.Attention(near.view, 8, kernel=TMA_PACKED)
    q = to_device(np.ones((1, 8, 64), BFLOAT16), device)
    with pytest.raises(kvit.LayoutError, match="one after the other in a page, as in HND; these do not; make another"):
        op(q, apart.view, apart.page_table)
    with pytest.raises(kvit.LayoutError, match="one after the other in a page"):
        kvit.Attention(apart.view, 8, kernel=TMA_PACKED)
    if device != "host":
        assert kvit.Attention(near.view, 8).kernel.axes["copies"] == "tma_packed"
        assert kvit.Attention(apart.view, 8).kernel.axes["copies"] == "tma"


@pytest.mark.parametrize("place", ["apart", "at an odd place"])
def test_lines_are_not_taken_where_parameters_do_not_lie_by_twos(rng, device, place):
    # Kernels by lines copy the parameters of two neighbours at once: 8 bytes, at a multiple of 8.
    case = Quantised(("int4",) * 2, [70], device=device, rng=rng)
    case.append(rng)
    params = {}
    for name in ("k_params", "v_params"):
        held = getattr(case.cache, name)
        if place == "apart":
            base = poisoned((*held.shape[:-1], 4), held.dtype)
            part = base[..., :2]
        else:
            base = poisoned((held.size + 4,), held.dtype)
            part = base[2:-2].reshape(held.shape)
        part[:] = held
        params[name] = view_like(to_device(base, device), base, part)
    names = {"layout": "HND", "kv": ("int4", "int4"), "dtype": "bfloat16"}
    view = kvit.CacheView(case.buffers["k"], case.buffers["v"], **names, **params)
    with pytest.raises(kvit.LayoutError, match="rows and parameters that lie one after the other"):
        kvit.Attention(view, 8, kernel=TMA_PACKED)
    q = rng.standard_normal((1, 8, 64)).astype(BFLOAT16)
    state = kvit.reference.paged_attention(q, case.cache, case.table, [1])
    got = kvit.Attention(view, 8, kernel=TMA)(to_device(q, device), view, case.page_table).numpy()
    assert_within(got, state.out, case.bound(q, [1]))


def test_one_operation_serves_views_of_other_page_sizes(rng, device):
    cases = [make_case(rng, [300], page_size=page_size, device=device) for page_size in (64, 16, 8, 64)]
    op = kvit.Attention(cases[0].view, 8, kernel=TMA)
    for case in cases:
        q = case.queries(rng, 1, 8)
        state, bound = case.expect(q)
        assert_within(op(to_device(q, device), case.view, case.page_table).numpy(), state.out, bound)


def test_pages_that_no_box_divides_are_refused_by_name(rng, device):
    case, odd = (make_case(rng, [30], page_size=page_size, device=device) for page_size in (16, 10))
    op, q = kvit.Attention(case.view, 8, kernel=TMA), to_device(case.queries(rng, 1, 8), device)
    with pytest.raises(kvit.LayoutError, match="multiple of 8 tokens; these have 10; make another Attention"):
        op(q, odd.view, odd.page_table)
    with pytest.raises(kvit.LayoutError, match="multiple of 8 tokens; these have 10"):
        kvit.Attention(odd.view, 8, kernel=TMA)
    assert kvit.Attention(odd.view, 8).kernel.axes["copies"] == "cp_async"


def test_an_operation_of_several_new_tokens_hides_what_comes_after_them(rng, device):
    case = make_case(rng, [70, 9], page_size=16, device=device)
    q = case.queries(rng, 2 * 5, 8)
    op = kvit.Attention(case.view, 8, tokens_per_sequence=5, kernel=TMA)
    state, bound = case.expect(q, counts=[5, 5])
    assert_within(op(to_device(q, device), case.view, case.page_table).numpy(), state.out, bound)


def test_every_built_shape_has_a_kernel_by_cp_async_too():
    for entry in (*registry.candidates("decode", **TMA), *registry.candidates("decode", **TMA_PACKED)):
        key = {axis: value for axis, value in entry.axes.items() if axis != "copies"}
        assert registry.find("decode", copies="cp_async", **key)


def test_tensor_maps_survive_a_bad_page(rng, device):
    # A page id out of range is read as zeros by the hardware; the call reports it and the sequence is NaN.
    case = make_case(rng, [100, 40], page_size=16, device=device)
    pages = case.page_table.pages.numpy().copy()
    pages[0, 2] = 10**6
    table = kvit.PageTable(to_device(pages, device), lengths=case.page_table.lengths)
    q = case.queries(rng, 2, 8)
    op = kvit.Attention(case.view, 8, kernel=TMA)
    out = op(to_device(q, device), case.view, table).numpy().astype(np.float32)
    assert np.isnan(out[0]).all()
    state, bound = case.expect(q)
    assert_within(out[1:], state.out[1:], bound[1:])
    with pytest.raises(kvit.PageTableError, match="1000000"):
        op.check()
