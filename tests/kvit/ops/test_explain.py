"""kvit.ops.explain: what op.explain() says of the kernel, its choice, and a batch."""

import pytest

import kvit
from kvit.selection.cards import Card
from support.caches import make_case
from support.manifest import manifest


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


@pytest.fixture
def op_built_for_all(rng):
    """An operation on the host whose candidates are built for every target, whatever was built here."""
    op = kvit.Attention(make_case(rng, [4], head_dim=128, page_size=64).view, 8)
    archs = {spec.symbol: spec.archs for spec in manifest("decode", "prefill")}
    candidates = tuple(kernel._replace(archs=archs[kernel.symbol]) for kernel in op.plan.choice.candidates)
    op.plan = op.plan._replace(choice=op.plan.choice._replace(candidates=candidates))
    return op


def test_it_says_what_another_card_would_run(op_built_for_all):
    op = op_built_for_all
    said = op.explain(card="NVIDIA H20", batch=1, context=1000)
    for words in (
        "d128_h8_tma_plain on NVIDIA H20\n",
        "grid       78 CTAs",
        "card       NVIDIA H20 (sm_90, 78 multiprocessors, 51.3 GB/s for each)",
        "L2         fetches 128 bytes at once: where memory has 36 GB/s",
        "GB/s, the peak of NVIDIA H20",
    ):
        assert words in said
    assert "fetches 256 bytes at once" in op.explain(card="NVIDIA H100 80GB HBM3")
    on_a10 = op.explain(card="NVIDIA A10")
    assert "d128_h8_cp_async_plain on NVIDIA A10\n" in on_a10 and "L2" not in on_a10  # cp.async has no tensor maps
    assert op.explain().startswith(f"{op.kernel.symbol} on host\n") and "card " not in op.explain()


def test_a_card_that_nobody_tried_is_given_by_its_facts(op_built_for_all):
    card = Card("a card nobody tried", (10, 0), 64, 1000.0)
    said = op_built_for_all.explain(card=card, batch=1, context=1000)
    assert "tma_plain on a card nobody tried\n" in said and "grid       64 CTAs" in said
    assert "at 1000 GB/s, by clock and bus of a card nobody tried" in said
    unknown = op_built_for_all.explain(card=card._replace(memory_gbps=None), batch=1, context=1000)
    assert "floor      unknown: no peak is known of a card nobody tried; give gbps=" in unknown


def test_a_card_that_runs_nothing_or_is_not_known_is_refused(op_built_for_all):
    with pytest.raises(kvit.DeviceError, match="card is 'H20', of which kvit has no facts; it has those of NVIDIA H20"):
        op_built_for_all.explain(card="H20")
    with pytest.raises(kvit.KernelMissing, match="on sm_70"):
        op_built_for_all.explain(card=Card("an old card", (7, 0), 80))
