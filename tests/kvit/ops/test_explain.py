"""kvit.ops.explain: what op.explain() says of the kernel, its choice, and a batch."""

import pytest

import kvit
from support.caches import make_case


def test_it_names_the_kernel_and_what_it_takes(rng):
    op = kvit.Attention(make_case(rng, [4]).view, 8)
    for words in (
        op.kernel.symbol,
        "4 query heads share one",
        f"{op.grid} CTAs of {op.kernel.threads} threads (4 warps)",
        f"{op.kernel.facts['tile_tokens']} tokens x 8 rows",
        f"{op.kernel.shared_bytes} shared bytes",
        f"{op.workspace_bytes} bytes",
        f"(1, 0, 4)  {op.kernel.symbol}",
        f"(1, 0, 12)  {op.kernel.symbol.replace('_h8_', '_h16_')}",
    ):
        assert words in op.explain()
    forced = kvit.Attention(make_case(rng, [4]).view, 8, kernel={"rows": 16})
    assert "cheapest with kernel={'rows': 16}" in forced.explain()


def test_it_counts_what_a_batch_reads_and_how_long_that_takes_at_least(rng):
    op = kvit.Attention(make_case(rng, [4]).view, 8)  # 2 KV heads of 64 channels: 512 bytes a token
    tile = op.kernel.facts["tile_tokens"]
    said = op.explain([3 * tile, 0, 1], gbps=100)
    assert f"reads      {512 * (3 * tile + 1)} bytes of K and V, for {3 * tile + 1} tokens of 3 sequences" in said
    assert f"work       10 tiles on {min(op.grid, 10)} CTAs" in said  # an empty sequence has a tile for its zeros
    assert "floor      41.0 us at 100 GB/s, as asked" in op.explain(batch=8, context=1000, gbps=100)
    assert "floor      unknown: the host backend" in op.explain(batch=8, context=1000)
    assert "0 tiles on 0 CTAs, 0 at most" in op.explain([])
    for wrong in ({"batch": 2}, {"context": 2}, {"batch": -1, "context": 2}, {"batch": 1, "context": -2}):
        with pytest.raises(kvit.ShapeError):
            op.explain(**wrong)
    with pytest.raises(kvit.ShapeError, match="a length is -4"):
        op.explain([5, -4])
    with pytest.raises(kvit.ShapeError, match="give lengths, or batch and context"):
        op.explain([5], batch=1, context=1)
