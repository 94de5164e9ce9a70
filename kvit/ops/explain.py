"""The words of Attention.explain: the kernel, its launch, why it was chosen, and what a batch costs at least."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from kvit import _checks
from kvit.errors import ShapeError
from kvit.ops.operation import explain_launch
from kvit.ops.plan import AttentionPlan
from kvit.selection.cards import Card, known_cards
from kvit.selection.rules import SHIPPED, Rule


def counted(lengths: Iterable[int] | None, batch: int | None, context: int | None) -> list[int] | None:
    """Tokens of each sequence, given either way; None where neither is. Raises ShapeError."""
    if (batch is None) != (context is None) or (lengths is not None and batch is not None):
        raise ShapeError("give lengths, or batch and context together, or none of them")
    if batch is not None and context is not None:
        batch = _checks.whole("batch", batch)
        if batch < 0:
            raise ShapeError(f"batch is {batch}; it counts sequences")
        if batch > _checks.MOST:
            raise ShapeError(f"batch is {batch}; kernels count at most {_checks.MOST} sequences")
        lengths = [_checks.whole("context", context)] * batch
    if lengths is not None:
        lengths = _checks.listed("lengths", lengths, "the tokens of each sequence")
    found = None if lengths is None else [_checks.whole("a length", length) for length in lengths]
    worst = min(found or [0])
    if worst < 0:
        raise ShapeError(f"a length is {worst}; lengths count tokens")
    return found


def explain(plan: AttentionPlan, lengths: Sequence[int] | None, gbps: float | None) -> str:
    """One fact a line, under the kernel's symbol."""
    kernel, facts = plan.kernel, plan.kernel.facts
    lines = [
        f"{kernel.symbol} on {plan.device}",
        f"  rows       {facts['rows']} query rows for each KV head at a time: {plan.group} query heads share one",
        f"  tiles      {facts['tile_tokens']} tokens x {facts['rows']} rows, {facts['stages']} stages, "
        f"{kernel.shared_bytes} shared bytes",
        f"  grid       {plan.grid} CTAs of {kernel.threads} threads ({kernel.threads // 32} warps), "
        f"{facts['ctas_per_sm']} on each multiprocessor",
        f"  partitions {plan.partitions}, each of {plan.kv_heads // plan.partitions} of {plan.kv_heads} KV heads on "
        f"{plan.grid // plan.partitions} of the CTAs",
        f"  cut        {_cut(plan)}",
        f"  workspace  {plan.workspace_bytes} bytes, whatever the batch",
        explain_launch(plan.launch),
    ]
    if plan.modifiers.words():
        lines.append(f"  besides    {', '.join(plan.modifiers.words())}")
    if plan.reads_ahead:
        lines.append("  ahead      lengths, page tables and old K and V are read before the launch in front has ended")
    if lengths is not None:
        lines += _work(plan, lengths, gbps)
    return "\n".join(lines + _reasons(plan))


def _cut(plan: AttentionPlan) -> str:
    """Where heads are cut, and what that means."""
    if plan.split_tokens is None:
        return "evenly over the grid: the last bits of a sequence depend on its batch; split_tokens= fixes them"
    return f"after each {plan.split_tokens} tokens of a sequence ({plan.split_tiles} tiles): the same bits in any batch"


def _units(plan: AttentionPlan, length: int) -> int:
    """Tiles of a head of so many tokens, or splits: what is dealt out to CTAs."""
    facts = plan.kernel.facts
    tiles = max(1, -(-length // facts["tile_tokens"]))
    if plan.split_tokens is None:
        return tiles
    split = plan.split_tiles
    while -(-tiles // split) > facts["most_splits"]:
        split *= 2
    return -(-tiles // split)


def _work(plan: AttentionPlan, lengths: Sequence[int], gbps: float | None) -> list[str]:
    """What a call on such sequences reads, and how the kernel cuts it."""
    rows = plan.kernel.facts["rows"]
    num_bytes = plan.token_bytes * sum(lengths)
    row_tiles = -(-plan.rows // rows)
    units = sum(plan.kv_heads * row_tiles * _units(plan, length) for length in lengths)
    ctas = min(plan.grid, units)
    most = -(-units // ctas) if ctas else 0
    name = "tiles" if plan.split_tokens is None else "splits"
    lines = [
        f"  reads      {num_bytes} bytes of K and V, for {sum(lengths)} tokens of {len(lengths)} sequences",
        f"  work       {units} {name} on {ctas} CTAs, {most} at most on each",
    ]
    rate, source = (_rate(gbps), "as asked") if gbps is not None else _peak(plan.card)
    if rate is None:
        return [*lines, f"  floor      unknown: {source}; give gbps="]
    return [*lines, f"  floor      {num_bytes / rate / 1e3:.1f} us at {rate:g} GB/s, {source}"]


def _rate(gbps: Any) -> float:
    """Raises ShapeError for what is no rate."""
    rate = _checks.number("gbps", gbps)
    if not 0 < rate < math.inf:
        raise ShapeError(f"gbps is {gbps!r}; it must be 10**9 bytes per second, more than 0")
    return rate


def _peak(card: Card) -> tuple[float | None, str]:
    """10**9 bytes per second that the card's memory gives at most, and who says so; or None, and why."""
    if card.compute_capability is None:
        return None, "the host backend says nothing about speed"
    known = known_cards().get(card.name)
    if known is not None:
        return known.memory_gbps, f"the peak of {card.name}"
    if card.memory_gbps is None:
        return None, f"no peak is known of {card.name}"
    return card.memory_gbps, f"by clock and bus of {card.name}"


def _reasons(plan: AttentionPlan) -> list[str]:
    """Every candidate with its cost, the chosen one first, and the rules that gave the costs."""
    choice, card = plan.choice, plan.card
    by = "cheapest" if choice.wanted is None else f"cheapest with kernel={choice.wanted!r}"
    lines = [f"  chosen     {by}, by ({', '.join(choice.terms)}):"]
    lines += [f"               ({', '.join(map(str, cost))})  {kernel.symbol}" for cost, kernel in choice.ranked]
    lines += [f"               {rule.axis}: {_why(rule)}" for rule in choice.rules]
    lines += [f"               not {kernel.symbol}: it {reason}" for kernel, reason in choice.refused]
    if card.compute_capability is not None:
        lines.append(f"  card       {card.words}")
    if (rule := plan.l2_promotion) is not None:
        lines.append(f"  L2         fetches {rule.order[0]} bytes at once: {_why(rule)}")
    if plan.rules.left_out is not None:
        lines.append(f"  left out   the rules of {plan.rules.path}: {plan.rules.left_out}")
    return lines


def _why(rule: Rule) -> str:
    """The reason of a rule, and where it stands."""
    return f"{rule.why} ({'a rule of kvit' if rule.source == SHIPPED else rule.source})"
