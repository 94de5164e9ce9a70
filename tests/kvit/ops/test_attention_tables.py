"""Page tables and offsets that lie: attention reports them, and other sequences have what they have alone."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, make_case, make_table, poisoned, to_device
from support.tolerances import assert_within


@pytest.mark.parametrize(
    ("pages", "length", "slot", "value"),
    [
        ([[0, 1], [2, 99]], 20, 1, 99),
        ([[0, 1], [-5, 3]], 20, 0, -5),
        ([[0, 1], [2, 3]], -1, 0, -1),
        ([[0, 1], [2, 3]], 3000, 0, 3000),
    ],
)
@pytest.mark.parametrize("form", ["dense", "ragged"])
def test_a_wrong_page_table_is_reported_once_and_hurts_its_sequence_alone(
    rng, device, form, pages, length, slot, value
):
    case = make_case(rng, [20, 20], device=device)
    table = make_table(pages, [20, length], form, device)
    plain = reference.Table(pages, [20, length])
    reference.append(case.cache, reference.Table([[0, 1], [2, 3]], [20, 20]), *case_rows(rng, 40), [20, 20])
    for buffer, array in zip(case.buffers, (case.cache.k, case.cache.v), strict=True):
        buffer.copy_from(array)
    op = kvit.Attention(case.view, 4)
    q = case.queries(rng, 2, 4)
    out = op(to_device(q, device), case.view, table).numpy()
    state = reference.paged_attention(q, case.cache, plain)
    assert np.isnan(out[1].astype(np.float32)).all() and np.isnan(state.out[1]).all()
    assert_within(out[0], state.out[0], tolerances.attention_bound(np.abs(state.out[0]) + 4, BFLOAT16))
    with pytest.raises(kvit.PageTableError, match=f"sequence 1.* {value}") as caught:
        op.check()
    assert (caught.value.sequence, caught.value.slot, caught.value.value) == (1, slot, value)
    op.check()


def case_rows(rng, tokens):
    return rng.standard_normal((2, tokens, 2, 64)).astype(BFLOAT16)


def test_offsets_out_of_order_are_reported_and_the_rows_that_they_name_are_nan(rng, device):
    case = make_case(rng, [20, 20], device=device)
    op = kvit.Attention(case.view, 4)
    indptr = to_device(np.array([0, 5, 2], np.int32), device)
    out = to_device(poisoned((2, 4, 64), BFLOAT16), device)
    op(to_device(case.queries(rng, 2, 4), device), case.view, case.page_table, out=out, query_indptr=indptr)
    with pytest.raises(kvit.PageTableError, match="indptr"):
        op.check()
    written = out.numpy().view(np.uint16)
    assert np.isnan(out.numpy().astype(np.float32)).all() and (written != 0xFFFF).all()


def test_a_sequence_whose_offsets_reach_beyond_the_rows_is_nan_and_the_others_are_right(rng, device):
    # The rows of the last sequence end behind q: entry 2, 3, is what is wrong.
    case = make_case(rng, [20, 20], device=device)
    op = kvit.Attention(case.view, 4)
    q = case.queries(rng, 2, 4)
    out = to_device(poisoned((2, 4, 64), BFLOAT16), device)
    op(
        to_device(q, device),
        case.view,
        case.page_table,
        out=out,
        query_indptr=to_device(np.array([0, 1, 3], np.int32), device),
    )
    with pytest.raises(kvit.PageTableError, match="entry 2 of an indptr is 3"):
        op.check()
    assert np.isnan(out.numpy()[1].astype(np.float32)).all() and (out.numpy()[1].view(np.uint16) != 0xFFFF).all()
    state, bound = case.expect(q)
    assert_within(out.numpy()[:1], state.out[:1], bound[:1])


@pytest.mark.parametrize("offsets", [[0, 1, 2], [1, 2, 3]])
def test_rows_that_no_sequence_has_are_left_alone_without_a_fault(rng, device, offsets):
    # Engines pad batches of a captured graph: rows behind the last offset, and before the first.
    case = make_case(rng, [20, 20], device=device)
    op = kvit.Attention(case.view, 4)
    out = to_device(poisoned((4, 4, 64), BFLOAT16), device)
    indptr = to_device(np.array(offsets, np.int32), device)
    op(to_device(case.queries(rng, 4, 4), device), case.view, case.page_table, out=out, query_indptr=indptr)
    op.check()
    written = (out.numpy().view(np.uint16) != 0xFFFF).all(axis=(1, 2))
    assert written.tolist() == [offsets[0] <= row < offsets[2] for row in range(4)]
