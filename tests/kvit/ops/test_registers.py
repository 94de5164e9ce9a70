"""Decode through registers: what the reference says, for pages of any size, rows anywhere, and several new tokens."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.built import need_copies
from support.caches import BFLOAT16, FLOAT16, make_case, poisoned, to_device
from support.quantised import Quantised
from support.tolerances import assert_within

REGISTERS = {"copies": "registers"}
# Around the ends of a warp's tokens, of tiles and of pages; none; and many tiles, so that both slots are filled often.
LENGTHS = [1, 15, 16, 0, 17, 63, 64, 65, 130, 517, 1500]


@pytest.fixture(autouse=True)
def _built(device):
    need_copies("registers", device)


def attend(op, q, case, device):
    out = to_device(poisoned(q.shape, q.dtype), device)
    lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), device)
    op(to_device(q, device), case.view, case.page_table, out=out, lse=lse)
    op.check()
    return out.numpy(), lse.numpy()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("page_size", "layout"), [(1, "NHD"), (7, "HND"), (16, "NHD"), (64, "HND")])
def test_16_bit_caches_in_pages_of_any_size(rng, device, page_size, layout, head_dim, dtype):
    case = make_case(
        rng,
        LENGTHS,
        page_size=page_size,
        head_dim=head_dim,
        layout=layout,
        dtype=dtype,
        storage="padded",
        device=device,
    )
    q = case.queries(rng, len(LENGTHS), 6)
    out, lse = attend(kvit.Attention(case.view, 6, kernel=REGISTERS), q, case, device)
    state, bound = case.expect(q)
    assert_within(out, state.out, bound)
    assert_within(lse, state.lse, tolerances.LSE)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("codec", ["int8", "int4", "float8_e4m3"])
@pytest.mark.parametrize("page_size", [3, 32])
def test_coded_caches(rng, device, codec, head_dim, dtype, page_size):
    # A page of 3 tokens is found token by token, one of 32 as a whole: it holds a warp's tokens, 16 or 32.
    case = Quantised(
        (codec, codec), LENGTHS, page_size=page_size, head_dim=head_dim, dtype=dtype, device=device, rng=rng
    )
    case.append(rng)
    q, counts = rng.standard_normal((len(LENGTHS), 6, head_dim)).astype(dtype), [1] * len(LENGTHS)
    out, lse = attend(kvit.Attention(case.view, 6, kernel=REGISTERS), q, case, device)
    state = kvit.reference.paged_attention(q, case.cache, case.table, counts)
    assert_within(out, state.out, case.bound(q, counts))
    assert_within(lse, state.lse, tolerances.SCORE_QUANTISED)


# What the f16 of the products does not hold: bfloat16 goes on for 2^100 at either end. Keys are the larger the smaller
# queries are, so that scores are those of any model.
@pytest.mark.parametrize("of_values", [2.0**-110, 2.0**-30, 2.0**40, 2.0**120])
@pytest.mark.parametrize("of_keys", [2.0**-90, 2.0**-20, 2.0**30, 2.0**105])
@pytest.mark.parametrize("rows", [8, 64], ids=["decode", "prefill"])
def test_bfloat16_of_any_size(rng, device, rows, of_keys, of_values):
    case, (k, v) = of_rows(rng, device, of_keys, of_values)
    q = (rng.standard_normal((2, 8, 64)) / of_keys).astype(BFLOAT16)
    out, lse = attend(kvit.Attention(case.view, 8, kernel=REGISTERS | {"rows": rows}), q, case, device)
    state, bound = case.expect(q)
    assert np.isfinite(out.astype(np.float32)).all() and np.abs(state.out).max() > of_values / 8
    assert_within(out, state.out, bound)
    assert_within(lse, state.lse, tolerances.LSE)


def test_bfloat16_rows_of_different_sizes_and_channels_of_different_sizes(rng, device):
    # Each token has a power of two of its own, from 2^-20 to 2^20; the channels of a row reach 2^-24 of its largest.
    case, (k, v) = of_rows(rng, device, 1.0, 1.0)
    tokens, channels = v.shape[0], np.arange(64)
    v *= 2.0 ** rng.integers(-20, 21, (tokens, 1, 1)) * 2.0 ** -(channels % 25)
    k *= 2.0 ** -(channels % 25)
    fill(case, k, v)
    q = (rng.standard_normal((2, 8, 64)) * 2.0 ** (channels % 25 - 3)).astype(BFLOAT16)
    out, lse = attend(kvit.Attention(case.view, 8, kernel=REGISTERS), q, case, device)
    state, _ = case.expect(q)
    # A channel is as good as the largest of its row allows: weights times powers of two are float16.
    magnitude = np.abs(state.out).max(axis=-1, keepdims=True)
    assert_within(out, state.out, tolerances.attention_bound(magnitude, BFLOAT16) + 0 * state.out)
    assert_within(lse, state.lse, tolerances.LSE * 8)


def of_rows(rng, device, of_keys, of_values):
    """A case of two sequences, and K and V [tokens, head, channel] of it in float64, of those sizes."""
    case = make_case(rng, [200, 70], dtype=BFLOAT16, device=device)
    k, v = rng.standard_normal((2, 270, 2, 64)) * np.array([of_keys, of_values]).reshape(2, 1, 1, 1)
    fill(case, k, v)
    return case, (k, v)


def fill(case, k, v):
    reference.append(case.cache, case.table, k.astype(BFLOAT16), v.astype(BFLOAT16), [200, 70])
    for buffer, array in zip(case.buffers, (case.cache.k, case.cache.v), strict=True):
        buffer.copy_from(array)


@pytest.mark.parametrize("causal", [True, False])
def test_several_new_tokens_over_row_tiles(rng, device, causal):
    case = make_case(rng, [70, 9, 517, 3], device=device)
    q = case.queries(rng, 4 * 5, 8)
    op = kvit.Attention(case.view, 8, tokens_per_sequence=5, causal=causal, kernel=REGISTERS)
    out, lse = attend(op, q, case, device)
    state, bound = case.expect(q, [5] * 4, causal=causal)
    assert_within(out, state.out, bound)
    assert_within(lse, state.lse, tolerances.LSE)


@pytest.mark.parametrize("reads_ahead", [False, True])
def test_a_bad_page_hurts_its_sequence_alone(rng, device, reads_ahead):
    case = make_case(rng, [100, 400, 40], device=device)
    pages = case.page_table.pages.numpy().copy()
    pages[1, 20] = 10**6
    case.page_table = kvit.PageTable(to_device(pages, device), lengths=case.page_table.lengths)
    q = case.queries(rng, 3, 8)
    op = kvit.Attention(case.view, 8, kernel=REGISTERS, reads_ahead=reads_ahead)
    out = op(to_device(q, device), case.view, case.page_table).numpy().astype(np.float32)
    assert np.isnan(out[1]).all()
    state, bound = case.expect(q)
    assert_within(out[[0, 2]], state.out[[0, 2]], bound[[0, 2]])
    with pytest.raises(kvit.PageTableError, match="page 20 of sequence 1 has id 1000000"):
        op.check()
