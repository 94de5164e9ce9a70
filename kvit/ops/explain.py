"""The words of Attention.explain: the kernel, its launch, why it was chosen, and what a batch costs at least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from . import tuning
from ._native.context import Device
from .errors import ShapeError

if TYPE_CHECKING:
    from .attention import Attention


def counted(lengths: Iterable[int] | None, batch: int | None, context: int | None) -> list[int] | None:
    """Tokens of each sequence, given either way; None where neither is. Raises ShapeError."""
    if (batch is None) != (context is None) or (lengths is not None and batch is not None):
        raise ShapeError("give lengths, or batch and context together, or none of them")
    if batch is not None and context is not None:
        if batch < 0:
            raise ShapeError(f"batch is {batch}; it counts sequences")
        lengths = [context] * batch
    found = None if lengths is None else [int(length) for length in lengths]
    worst = min(found or [0])
    if worst < 0:
        raise ShapeError(f"a length is {worst}; lengths count tokens")
    return found


def explain(op: Attention, lengths: Sequence[int] | None, gbps: float | None) -> str:
    """One fact a line, under the kernel's symbol."""
    entry, facts, choice = op.entry, op.entry.facts, op._choice
    group = op.query_heads // op.kv_heads
    lines = [
        f"{entry.symbol} on {op.device}",
        f"  rows       {facts['rows']} query rows for each KV head at a time: {group} query heads share one",
        f"  tiles      {facts['tile_tokens']} tokens x {facts['rows']} rows, {facts['stages']} stages, "
        f"{entry.shared_bytes} shared bytes",
        f"  grid       {op.grid} CTAs of {entry.threads} threads ({entry.threads // 32} warps), "
        f"{facts['ctas_per_sm']} on each multiprocessor",
        f"  strands    {op._strands}, each of {op.kv_heads // op._strands} of {op.kv_heads} KV heads on "
        f"{op.grid // op._strands} of the CTAs",
        f"  cut        {_cut(op)}",
        f"  workspace  {op.workspace_bytes} bytes, whatever the batch",
        op._explain_launch(),
    ]
    if op.reads_ahead:
        lines.append("  ahead      lengths, page tables and old K and V are read before the launch in front has ended")
    if lengths is not None:
        lines += _work(op, lengths, gbps)
    return "\n".join(lines + _reasons(choice))


def _cut(op: Attention) -> str:
    """Where heads are cut, and what that means."""
    if op.split_tokens is None:
        return "evenly over the grid: the last bits of a sequence depend on its batch; split_tokens= fixes them"
    tiles = op.split_tokens // op.entry.facts["tile_tokens"]
    return f"after each {op.split_tokens} tokens of a sequence ({tiles} tiles): the same bits in any batch"


def _units(op: Attention, length: int) -> int:
    """Tiles of a head of so many tokens, or splits: what is dealt out to CTAs."""
    facts = op.entry.facts
    tiles = max(1, -(-length // facts["tile_tokens"]))
    if op.split_tokens is None:
        return tiles
    split = op.split_tokens // facts["tile_tokens"]
    while -(-tiles // split) > facts["most_splits"]:
        split *= 2
    return -(-tiles // split)


def _work(op: Attention, lengths: Sequence[int], gbps: float | None) -> list[str]:
    """What a call on such sequences reads, and how the kernel cuts it."""
    rows = op.entry.facts["rows"]
    num_bytes = op._token_bytes * sum(lengths)
    row_tiles = -(-op._choice.call.rows // rows)
    units = sum(op.kv_heads * row_tiles * _units(op, length) for length in lengths)
    ctas = min(op.grid, units)
    most = -(-units // ctas) if ctas else 0
    name = "tiles" if op.split_tokens is None else "splits"
    lines = [
        f"  reads      {num_bytes} bytes of K and V, for {sum(lengths)} tokens of {len(lengths)} sequences",
        f"  work       {units} {name} on {ctas} CTAs, {most} at most on each",
    ]
    rate, source = (gbps, "as asked") if gbps is not None else _peak(op.device)
    if rate is None:
        return [*lines, f"  floor      unknown: {source}; give gbps="]
    return [*lines, f"  floor      {num_bytes / rate / 1e3:.1f} us at {rate:g} GB/s, {source}"]


def _peak(device: str) -> tuple[float | None, str]:
    """10**9 bytes per second that the device's memory gives at most, and who says so; or None, and why."""
    if Device.of(device).is_host:
        return None, "the host backend says nothing about speed"
    name = Device.of(device).name
    peak = tuning.installed().peaks.get(name)
    return peak, f"no peak is known of {name}" if peak is None else f"the peak of {name}"


def _reasons(choice: tuning.Choice) -> list[str]:
    """Every candidate with its cost, the chosen one first."""
    by = "cheapest" if choice.wanted is None else f"cheapest with kernel={choice.wanted!r}"
    lines = [f"  chosen     {by}, by ({', '.join(choice.terms)}):"]
    lines += [f"               ({', '.join(map(str, cost))})  {entry.symbol}" for cost, entry in choice.ranked]
    lines += [f"               {rule.axis}: {rule.why}" for rule in choice.rules]
    lines += [f"               not {entry.symbol}: it {reason}" for entry, reason in choice.refused]
    return lines
