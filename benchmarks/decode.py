"""How fast decode reads the cache: kvit on a grid of cells, beside the ceiling of this card and, if wanted, peers.

python benchmarks/decode.py [--cells anchors '*int8*' 64x8192:64/8,p16] [--layout HND] [--quick] [--peers]
                            [--json FILE] [--plot FILE]

A cell is named BATCHxCONTEXT[:QUERY_HEADS/KV_HEADS] and, by commas, what is not the default: codec, d64, p16, layout,
lognormal or giant. What keeps a run over the whole grid short: random memory is made once and shared by all cells, a
graph of some 20 calls is replayed 10 times, and the reference looks at a few sequences of a cell, and of long ones at a
few heads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import anchors
import measure
import numpy as np
from arena import Arena
from cells import FAMILIES, LAYOUTS, Ceiling, Cell, anchors_of, select
from inputs import Inputs
from report import Result, cliffs, complaints, summary, table

import kvit
from kvit._cli import devices, display, info
from kvit._cli.compare import Mismatch
from kvit.selection import cards

SEED = 20
_QUICK_REPLAYS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    options = _parse(arguments)
    began = time.monotonic()
    try:
        device = measure.need_gpu(options.device)
        stream = kvit.Stream(device)
        measure.make_current(device)
        ceiling, results = run(options.cells, stream, options.replays, options.peers)
    except (kvit.KvitError, Mismatch) as error:
        return measure.refuse("decode", error)
    about = {
        "device": device.name,
        "compute_capability": list(device.compute_capability),
        "num_sms": device.num_sms,
        "peak_gbps": cards.peaks_gbps().get(device.name),
        "driver": devices.driver_release(),
        "cuda": devices.cuda_version(),
        "kvit": info.version(),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(f"{about['device']}, driver {about['driver'] or '?'} (CUDA {about['cuda']}), kvit {about['kvit']}")
    print(f"reading {display.size(ceiling.num_bytes)}: {ceiling.gbps:.0f} GB/s ({ceiling.kernel}, {ceiling.grid} CTAs)")
    known = anchors.of_card(device.name)
    others = ", ".join(card.name for card in anchors.CARDS)
    print(f"reach, best known: {f'of {known.date}' if known else f'nothing of this card (of {others} alone)'}\n")
    print(table(results, ceiling), *complaints(results), "", *summary(results), sep="\n")
    print(f"\n{len(results)} cells in {about['seconds']:.0f} s")
    if options.json:
        found = {
            **about,
            "ceiling": asdict(ceiling),
            "anchors": {"card": known.name, "date": known.date} if known else None,
            "cells": [result.as_json(ceiling) for result in results],
            "cliffs": [
                {"cell": str(it.cell), "beside": str(it.beside), "ratio": round(it.ratio, 4), "limit": it.limit}
                for it in cliffs(results)
            ],
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        from roofline import plot

        plot(options.plot, results, ceiling, about["peak_gbps"], f"{device.name}: decode")
    return 0


def run(
    cells: Sequence[Cell], stream: kvit.Stream, replays: int = measure.REPLAYS, with_peers: bool = False
) -> tuple[Ceiling, list[Result]]:
    """The ceiling, then every cell. Raises Mismatch, KvitError."""
    rng, results, device = np.random.default_rng(SEED), [], kvit.Device.of(stream.device)
    known = anchors_of(device.name)
    with _progress(len(cells)) as step:
        step(0, "the ceiling")
        ceiling = measure.read_ceiling(device, stream, measure.RandomMemory("uint8", stream, SEED))
        step(0, f"random memory ({ceiling.gbps:.0f} GB/s is the ceiling)")
        arena = Arena(cells, stream, SEED)
        said = display.size(arena.nbytes)
        for i, cell in enumerate(cells):
            step(i, f"{cell} ({said})")
            inputs = Inputs.make(cell, arena, stream, rng)
            result = replace(time_cell(inputs, replays, with_peers), anchor=known.get(cell))
            results.append(result)
            said = f"{cell}: {result.us:.1f} us, {result.ahead_us:.1f} reading ahead, {result.gbps / ceiling.gbps:.1%}"
        step(len(cells), said)
    return ceiling, results


def time_cell(inputs: Inputs, replays: int = measure.REPLAYS, with_peers: bool = False) -> Result:
    """A decode call, one that reads ahead, and peers, all of them in turns. Raises Mismatch.

    kvit's are proven right before and faultless after.
    """
    views, ops, contenders = inputs.views(), [], []
    for reads_ahead in (False, True):
        op = kvit.Attention(views[0], inputs.cell.query_heads, reads_ahead=reads_ahead)
        prove(inputs, op, views)

        def decode(view: kvit.CacheView, op: kvit.Attention = op) -> None:
            op(inputs.q, view, inputs.table, out=inputs.out, stream=inputs.stream)

        ops.append(op)
        contenders.append(measure.Replay(inputs.stream, [lambda view=view: decode(view) for view in views]))
    peers = ready_peers(inputs) if with_peers else {}
    ready = {name: peer for name, peer in peers.items() if not isinstance(peer, str)}
    us, ahead_us, *peer_us = measure.take_turns([*contenders, *ready.values()], replays)
    for op in ops:
        op.check(inputs.stream)
    times = dict(zip(ready, (round(it, 3) for it in peer_us), strict=True))
    found = {name: times.get(name, peer) for name, peer in peers.items()}
    return Result(inputs.cell, us, ahead_us, ops[-1].kernel.symbol, found)


def prove(inputs: Inputs, op: kvit.Attention, views: Sequence[kvit.CacheView]) -> None:
    """Compare the first and the last cache's result with the reference, outputs full of NaN before. Raises Mismatch."""
    for copy in sorted({0, len(views) - 1}):
        inputs.poison()
        op(inputs.q, views[copy], inputs.table, out=inputs.out, lse=inputs.lse, stream=inputs.stream)
        op.check(inputs.stream)
        inputs.check(copy, inputs.out.numpy(), inputs.lse.numpy())


def ready_peers(inputs: Inputs) -> dict[str, measure.Contender | str]:
    """Every peer, ready to be timed, or why it is not."""
    from peers import PEERS

    inputs.stream.synchronize()
    found: dict[str, measure.Contender | str] = {}
    for name, peer in PEERS.items():
        try:
            found[name] = peer(inputs)
        except Exception as error:  # a peer that is missing or fails must not end the run; the report says why
            words = " ".join(str(error).split())
            found[name] = f"{type(error).__name__}: {words[:200]}"
    return found


@contextmanager
def _progress(total: int) -> Iterator:
    """Says how many cells are done: a bar on a terminal, a line for each cell elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, label: print(f"[{done}/{total}] {label}", file=sys.stderr, flush=True)
        return
    with display.progress("decode") as step:
        yield lambda done, label: step(done / max(1, total), label)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="decode", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cells", nargs="+", default=[], metavar="CELL",
        help=f"names, patterns of them, or families: {', '.join(FAMILIES)} (all)",
    )  # fmt: skip
    parser.add_argument("--layout", choices=(*LAYOUTS, "both"), default="both", help="of cells whose name has none")
    parser.add_argument("--quick", action="store_true", help="the anchors alone unless --cells says more; few replays")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--peers", action="store_true", help="time FlashInfer, XQA and FlashAttention-3 beside it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    options = parser.parse_args(arguments)
    wanted = options.cells or (["anchors"] if options.quick else [])
    try:
        options.cells = select(wanted, LAYOUTS if options.layout == "both" else [options.layout])
    except ValueError as error:
        parser.error(f"argument --cells: {error}")
    options.replays = _QUICK_REPLAYS if options.quick else measure.REPLAYS
    return options


if __name__ == "__main__":
    sys.exit(main())
