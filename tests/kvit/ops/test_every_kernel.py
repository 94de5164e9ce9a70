"""Every attention kernel and every gather of the manifest, once each, asked for by its symbol.

Chosen: as small as a case can be that has a full tile's end, an empty sequence, several new tokens and pages in any
order. What a kernel does beyond that is the subject of the other files; this one leaves none out, and is what
compute-sanitizer is run over. Kernels of latent rows are in test_latent.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit.selection import registry
from support import tolerances
from support.built import is_built
from support.caches import BFLOAT16, FLOAT16, make_case, poisoned, to_device
from support.quantised import Quantised
from support.tolerances import assert_within

CODECS = {"i8": "int8", "i4": "int4", "e4m3": "float8_e4m3", "e5m2": "float8_e5m2", "b16": None}
DTYPES = {"bf16": BFLOAT16, "f16": FLOAT16}
LENGTHS, COUNTS, GROUP = [70, 0, 5, 33], [2, 0, 1, 3], 3
WIDE = {"192x128": (192, 128)}


def pair_of(kv):
    """Codecs of K and V of an axis value such as i8 or b16_i4; None is 16 bits."""
    k, _, v = kv.partition("_")
    return CODECS[k], CODECS[v or k]


def entries(*families):
    found = [entry for family in families for entry in registry.candidates(family)]
    return [entry for entry in found if entry.axes["head_dim"] != "576x512"]


def need(entry, device):
    if not is_built(entry, device):
        pytest.skip(f"{entry.symbol} was not built for this GPU")


@pytest.mark.parametrize("entry", entries("decode", "prefill"), ids=lambda entry: entry.symbol)
def test_attention(rng, device, entry):
    need(entry, device)
    dtype, head_dim, pair = DTYPES[entry.axes["dtype"]], entry.axes["head_dim"], pair_of(entry.axes["kv"])
    options = {"window": 1 << 20} if entry.axes["variant"] == "general" else {}
    if head_dim in WIDE:
        k_dim, v_dim = WIDE[head_dim]
        case = make_case(rng, LENGTHS, head_dim=k_dim, v_dim=v_dim, dtype=dtype, device=device)
        q = case.queries(rng, sum(COUNTS), 2 * GROUP)
        state, bound = case.expect(q, COUNTS)
    else:
        case = Quantised(pair, LENGTHS, head_dim=head_dim, dtype=dtype, device=device, rng=rng)
        case.append(rng)
        q = rng.standard_normal((sum(COUNTS), 2 * GROUP, head_dim)).astype(dtype)
        state = reference.paged_attention(q, case.cache, case.table, COUNTS)
        bound = case.bound(q, COUNTS)
    op = kvit.Attention(case.view, 2 * GROUP, tokens_per_sequence=max(COUNTS), kernel=entry.symbol, **options)
    assert op.kernel.symbol == entry.symbol
    out = to_device(poisoned(state.out.shape, dtype), device)
    lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), device)
    indptr = to_device(np.cumsum([0, *COUNTS]).astype(np.int32), device)
    queries = to_device(q, device)
    op(queries, case.view, case.page_table, out=out, lse=lse, query_indptr=indptr)
    op.check()
    assert_within(out.numpy(), state.out, bound)
    assert_within(lse.numpy(), state.lse, tolerances.SCORE_QUANTISED)


@pytest.mark.parametrize("entry", entries("gather"), ids=lambda entry: entry.symbol)
def test_gather(rng, device, entry):
    need(entry, device)
    dtype, head_dim = DTYPES[entry.axes["dtype"]], entry.axes["head_dim"]
    case = Quantised(pair_of(entry.axes["kv"]), LENGTHS, head_dim=head_dim, dtype=dtype, device=device, rng=rng)
    case.append(rng)
    indptr = np.cumsum([0, *LENGTHS]).astype(np.int32)
    found = [to_device(poisoned((indptr[-1], 2, head_dim), dtype), device) for _ in range(2)]
    op = kvit.Gather(case.view)
    op(case.view, case.page_table, out=tuple(found), query_indptr=to_device(indptr, device))
    op.check()
    for got, wanted in zip(found, reference.gather(case.cache, case.table, dtype), strict=False):
        np.testing.assert_array_equal(got.numpy().view(np.uint16), wanted.view(np.uint16))
