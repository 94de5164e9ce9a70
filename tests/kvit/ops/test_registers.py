"""Decode through registers: what the reference says, for pages of any size, rows anywhere, and several new tokens."""

import numpy as np
import pytest

import kvit
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, make_case, poisoned, to_device
from support.quantised import Quantised
from support.tolerances import assert_within

REGISTERS = {"copies": "registers"}
# Around the ends of a warp's tokens, of tiles and of pages; none; and many tiles, so that both slots are filled often.
LENGTHS = [1, 15, 16, 0, 17, 63, 64, 65, 130, 517, 1500]


def attend(op, q, case, device):
    out = to_device(poisoned(q.shape, q.dtype), device)
    lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), device)
    op(to_device(q, device), case.view, case.page_table, out=out, lse=lse)
    op.check()
    return out.numpy(), lse.numpy()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 7, 16, 64])
def test_16_bit_caches_in_pages_of_any_size(rng, device, page_size, layout, dtype):
    case = make_case(
        rng,
        LENGTHS,
        page_size=page_size,
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


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("page_size", [3, 16])
def test_integer_caches(rng, device, codec, page_size):
    case = Quantised((codec, codec), LENGTHS, page_size=page_size, device=device, rng=rng)
    case.append(rng)
    q, counts = rng.standard_normal((len(LENGTHS), 6, 64)).astype(BFLOAT16), [1] * len(LENGTHS)
    out, lse = attend(kvit.Attention(case.view, 6, kernel=REGISTERS), q, case, device)
    state = kvit.reference.paged_attention(q, case.cache, case.table, counts)
    assert_within(out, state.out, case.bound(q, counts))
    assert_within(lse, state.lse, tolerances.SCORE_QUANTISED)


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
