"""Parts of a head that CTAs leave for each other in the workspace, and take back."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, make_case, to_device
from support.quantised import Quantised
from support.tolerances import assert_within

# Heads over several CTAs, a head within one, and an empty one.
LENGTHS = [1500, 40, 0, 700]


def attend(case, q, **options):
    """(the operation, its output) of one call."""
    op = kvit.Attention(case.view, q.shape[1], **options)
    out = op(to_device(q, case.device), case.view, case.page_table).numpy()
    op.check()
    return op, out


@pytest.mark.parametrize("split_tokens", [None, 512])
@pytest.mark.parametrize("group", [1, 4, 12])  # a row of a kernel's, several, more than 8
@pytest.mark.parametrize("head_dim", [64, 128, 256])  # rows are shared by half a warp, a warp, two
def test_whoever_joins_parts_takes_them_back(rng, device, head_dim, group, split_tokens):
    # What is left would be taken for a part of the next launch, there before it has been computed.
    case = make_case(rng, LENGTHS, head_dim=head_dim, device=device)
    q = case.queries(rng, len(LENGTHS), 2 * group)
    op, out = attend(case, q, split_tokens=split_tokens)
    state, bound = case.expect(q)
    assert_within(out, state.out, bound)
    rows = op.grid * op.kernel.axes["rows"] * (20 if split_tokens else 2)  # behind them what a CTA holds for itself
    floats = rows * head_dim, rows * 2
    head = op.kernel.facts["workspace_head_bytes"] // 4  # the tickets, all of which were taken
    words = op.workspace.numpy().view(np.uint32).ravel()
    assert not words[: head + sum(floats)].any()


@pytest.mark.parametrize("split_tokens", [None, 512])
@pytest.mark.parametrize("zero", ["queries", "values"])
def test_parts_that_are_zero_are_there_all_the_same(rng, device, zero, split_tokens):
    # A word of zero says "not yet": neither a maximum of 0 nor outputs of 0 may be taken for it.
    case = Quantised((None, None), [1500], device=device, rng=rng)
    k, v = rng.standard_normal((2, 1500, 2, 64)).astype(BFLOAT16)
    q = rng.standard_normal((1, 8, 64)).astype(BFLOAT16)
    (q if zero == "queries" else v)[:] = 0
    reference.append(case.cache, case.table, k, v, [1500])
    kvit.Append(case.view)(to_device(k, device), to_device(v, device), case.view, case.page_table)
    _, out = attend(case, q, split_tokens=split_tokens)
    assert_within(out, reference.paged_attention(q, case.cache, case.table, [1]).out, case.bound(q, [1]))
    assert zero == "queries" or not out.view(np.uint16).any()  # not -0, as it lies in the workspace
