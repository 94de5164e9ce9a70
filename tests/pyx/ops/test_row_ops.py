"""pyx/ops/row_ops: how many warps append has for its rows. What they do is tests/kvit/test_append's."""

import pytest

from support.processes import run_idle

GRIDS = """
import kvit
def grid(tokens, kv_heads, query_heads):
    "CTAs of an append of so many tokens, as the driver is asked for them."
    view = kvit.CacheView(*(kvit.Buffer.empty((tokens, 1, kv_heads, 128), "bfloat16", "cuda:0") for _ in "kv"))
    rows = kvit.Buffer.empty((tokens, kv_heads, 128), "bfloat16", "cuda:0")
    pages = kvit.Buffer.empty((1, tokens), "int32", "cuda:0")
    table = kvit.PageTable(pages, lengths=kvit.Buffer.empty((1,), "int32", "cuda:0"))
    append = kvit.Append(view, rope=kvit.Rope(128), launch="graph")
    queries = {"q": kvit.Buffer.empty((tokens, query_heads, 128), "bfloat16", "cuda:0")} if query_heads else {}
    append(rows, rows, view, table, **queries)
    node = ctypes.c_void_p.in_dll(library, "idle_node")
    return ctypes.c_uint.from_address(ctypes.addressof(node) + ctypes.sizeof(node)).value
found += [grid(*map(int, case.split("x"))) for case in sys.argv[2:]]
"""


# The idle driver's GPU runs 132 x 2 CTAs of 16 warps side by side, 4224 warps. A pass is 4 heads, or 8 of queries.
@pytest.mark.parametrize(
    ("case", "ctas"),
    [
        ("64x8x0", 8),  # a warp for each 4 heads
        ("2112x8x0", 264),  # as many as fit
        ("2113x8x0", 133),  # one token more: two passes
        ("4096x8x0", 256),
        ("9000x8x0", 563),  # more would have nothing to do
        ("1000x9x0", 188),  # three warps of a token
        ("1500x9x0", 188),  # two: of two passes and of one
        ("1000x8x16", 250),  # two for K and V, two for queries
        ("4096x8x16", 512),  # one and one
    ],
)
def test_warps_have_as_many_passes_as_let_all_run_side_by_side(tmp_path, case, ctas):
    assert run_idle(tmp_path, GRIDS, case) == [ctas]
