"""How fast decode reads the cache: kvit on a grid of batches, beside the ceiling of this card and, if wanted, peers.

python benchmarks/decode.py [--cells 64x8192 16x4096:32/32] [--peers] [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import measure
import numpy as np
from cells import GRID, Ceiling, Cell, Result, Setting, complaints, table
from inputs import Inputs

import kvit
from kvit._cli import devices, display, info
from kvit._cli.compare import Mismatch

SEED = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    options = _parse(arguments)
    setting = Setting(options.head_dim, options.page_size, options.layout, options.dtype)
    try:
        ceiling, results = _measure(options, setting)
    except (kvit.KvitError, Mismatch) as error:
        print(f"decode: {error}", file=sys.stderr)
        return 1
    device = kvit.Device.of(options.device)
    about = {
        "device": device.name,
        "compute_capability": list(device.compute_capability),
        "num_sms": device.num_sms,
        "driver": devices.driver_release(),
        "cuda": devices.cuda_version(),
    }
    print(f"{about['device']}, driver {about['driver'] or '?'} (CUDA {about['cuda']}), kvit {info.version()}")
    print(f"{setting.dtype}, head_dim {setting.head_dim}, pages of {setting.page_size}, {setting.layout}")
    print(
        f"reading {display.size(ceiling.num_bytes)}: {ceiling.gbps:.0f} GB/s ({ceiling.kernel}, {ceiling.grid} CTAs)\n"
    )
    print(table(results, ceiling))
    for complaint in complaints(results):
        print(complaint)
    if options.json:
        rows = [result.as_json(ceiling) for result in results]
        found = {**about, "setting": asdict(setting), "ceiling": asdict(ceiling), "cells": rows}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        from roofline import plot

        plot(options.plot, results, ceiling, f"{device.name}: decode, {setting.dtype}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="decode", description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", type=_cell, default=GRID, help="BATCHxCONTEXT[:QUERY_HEADS/KV_HEADS]")
    parser.add_argument("--page-size", type=int, default=64, help="tokens of a page (64)")
    parser.add_argument("--layout", choices=("NHD", "HND"), default="NHD")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--peers", action="store_true", help="time FlashInfer, XQA and FlashAttention-3 beside it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    return parser.parse_args(arguments)


def _cell(text: str) -> Cell:
    try:
        return Cell.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _measure(options: argparse.Namespace, setting: Setting) -> tuple[Ceiling, list[Result]]:
    """The ceiling, then every cell."""
    device = kvit.Device.of(options.device)
    if device.is_host:
        raise kvit.NoGpuError("the host backend proves arithmetic, not speed; give --device cuda:N")
    stream = kvit.Stream(device)
    measure.make_current(device)
    rng = np.random.default_rng(SEED)
    with display.progress("decode") as step:
        step(0.0, "random numbers")
        memory = measure.RandomMemory(setting.dtype, stream, SEED)
        step(0.0, "the ceiling")
        ceiling = measure.read_ceiling(device, stream, memory)
        results = []
        for i, cell in enumerate(options.cells):
            step((i + 1) / (len(options.cells) + 1), str(cell))
            inputs = Inputs.make(cell, setting, stream, memory, rng)
            us, kernel = time_kvit(inputs)
            peers = _time_peers(inputs) if options.peers else {}
            results.append(Result(cell, setting.kv_bytes(cell), us, kernel, len(inputs.pools), peers))
    return ceiling, results


def time_kvit(inputs: Inputs) -> tuple[float, str]:
    """Microseconds of a decode call, and its kernel, proven right before and faultless after. Raises Mismatch."""
    views = inputs.views()
    op = kvit.Attention(views[0], inputs.cell.query_heads)
    prove(inputs, op, views)

    def decode(view: kvit.CacheView) -> None:
        op(inputs.q, view, inputs.table, out=inputs.out, stream=inputs.stream)

    us = measure.graph_us(inputs.stream, [lambda view=view: decode(view) for view in views])
    op.check(inputs.stream)
    return us, op.entry.symbol


def prove(inputs: Inputs, op: kvit.Attention, views: Sequence[kvit.CacheView]) -> None:
    """Compare the first and the last cache's result with the reference, outputs full of NaN before. Raises Mismatch."""
    for copy in sorted({0, len(views) - 1}):
        inputs.poison()
        op(inputs.q, views[copy], inputs.table, out=inputs.out, lse=inputs.lse, stream=inputs.stream)
        op.check(inputs.stream)
        inputs.check(copy, inputs.out.numpy(), inputs.lse.numpy())


def _time_peers(inputs: Inputs) -> dict[str, float | str]:
    from peers import PEERS

    inputs.stream.synchronize()
    found: dict[str, float | str] = {}
    for name, peer in PEERS.items():
        try:
            found[name] = peer(inputs)
        except Exception as error:  # a peer that is missing or fails must not end the run; the table says why
            words = " ".join(str(error).split())
            found[name] = f"{type(error).__name__}: {words[:200]}"
    return found


if __name__ == "__main__":
    sys.exit(main())
