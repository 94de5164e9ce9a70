"""How fast latent rows (MLA) are read: kvit on a few batches, proven before they are timed, beside the ceiling.

python benchmarks/latent.py [--cells 64x4096:128 8x8192:128 64x4096:16,n2] [--kernel '{"copies": "cp_async"}']
                            [--peers] [--json FILE]

A cell is named BATCHxCONTEXT:HEADS, and by commas what is not the default: p16, pages of 16 tokens; n2, two new tokens
of each sequence. A row has 576 channels in 16 bits, and V is the first 512 of them. TFLOP/s count both products.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measure
import ml_dtypes
import numpy as np
import peers
from cells import ROTATED_BYTES
from inputs import dense

import kvit
from kvit import reference
from kvit._cli import display, info
from kvit._cli.compare import LSE_BOUND, Mismatch, attention_bound, expect_close

SEED = 22
ROW, LATENT = 576, 512  # channels of a row, and of V
DTYPE = "bfloat16"
_CHECKED_SEQUENCES = 3
_CHECKED_HEADS = 4

REACH_US = {
    "64x4096:16": 72, "64x4096:64": 78, "64x4096:128": 114, "1x8192:128": 17, "8x8192:128": 38,
}  # fmt: skip
"""Cell -> what must be reached on an H200 whose ceiling is 4666 GB/s, in microseconds."""


@dataclass(frozen=True)
class Cell:
    """A batch of sequences of one length."""

    batch: int
    context: int
    heads: int
    page_size: int = 64
    new_tokens: int = 1

    def __str__(self) -> str:
        words = [f"{self.batch}x{self.context}:{self.heads}"]
        words += [f"p{self.page_size}"] * (self.page_size != 64) + [f"n{self.new_tokens}"] * (self.new_tokens != 1)
        return ",".join(words)

    @property
    def num_bytes(self) -> int:
        """Of all rows."""
        return self.batch * self.context * ROW * 2

    @property
    def flops(self) -> int:
        """Of both products; that later tokens hide a few keys is left out."""
        return 2 * self.batch * self.context * self.heads * self.new_tokens * (ROW + LATENT)


def parse(name: str) -> Cell:
    """The cell of this name. Raises ValueError."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*):([1-9]\d*)(?:,p([1-9]\d*))?(?:,n([1-9]\d*))?", name)
    if match is None:
        raise ValueError(f"{name!r} is no cell; cells look like 64x4096:128 or 8x8192:16,p16,n2")
    batch, context, heads, page_size, new_tokens = (int(number) if number else None for number in match.groups())
    return Cell(batch, context, heads, page_size or 64, new_tokens or 1)  # type: ignore[arg-type]


class Inputs:
    """Caches that calls rotate over, all with the same page table, and random queries."""

    def __init__(self, cell: Cell, memory: measure.RandomMemory, stream: kvit.Stream, rng: np.random.Generator):
        self.cell, self.stream = cell, stream
        slots = -(-cell.context // cell.page_size)
        self.pages = list(rng.permutation(cell.batch * slots).astype(np.int32).reshape(cell.batch, slots))
        self.shape = (cell.batch * slots, cell.page_size, 1, ROW)
        copies = max(1, -(-ROTATED_BYTES // cell.num_bytes))
        self.pool_bytes = int(np.prod(self.shape)) * 2
        self.memory, self.held = memory, memory.bytes(copies * self.pool_bytes)
        self.views = [self._view(self.held.pointer + i * self.pool_bytes) for i in range(copies)]
        lengths = np.full(cell.batch, cell.context, np.int32)
        self.table = kvit.PageTable(self._upload(dense(self.pages, 0)), lengths=self._upload(lengths))
        rows = (cell.batch * cell.new_tokens, cell.heads)
        self.queries = (rng.standard_normal((*rows, ROW), np.float32) / 8).astype(ml_dtypes.bfloat16)
        self.q = self._upload(self.queries)
        self.out = kvit.Buffer.empty((*rows, LATENT), DTYPE, stream.device, stream)
        self.lse = kvit.Buffer.empty(rows, "float32", stream.device, stream)

    def attend(self, op: kvit.Attention, view: kvit.CacheView, lse: Any = None) -> None:
        """One call of the cell."""
        op(self.q, view, self.table, out=self.out, lse=lse, stream=self.stream)

    def prove(self, op: kvit.Attention) -> None:
        """Compare rows of a result with the reference, outputs full of NaN before. Raises Mismatch."""
        cell = self.cell
        for buffer in (self.out, self.lse):
            buffer.fill_bytes(0xFF, self.stream)
        self.attend(op, self.views[0], self.lse)
        op.check(self.stream)
        out, lse = self.out.numpy(), self.lse.numpy()
        heads = np.unique(np.linspace(0, cell.heads - 1, _CHECKED_HEADS).astype(int))
        for sequence in np.unique(np.linspace(0, cell.batch - 1, _CHECKED_SEQUENCES).astype(int)):
            keys = self._rows(self.pages[sequence])
            for token in range(cell.new_tokens):
                row, seen = sequence * cell.new_tokens + token, cell.context - cell.new_tokens + token + 1
                part = np.ix_([row], heads)
                k, v = keys[:seen], keys[:seen, :, :LATENT]
                state = reference.attention(self.queries[part], k, v)
                magnitude = reference.attention(self.queries[part], k, np.abs(v)).out
                where = f"{cell}, token {token} of sequence {sequence}"
                expect_close(f"out of {where}", out[part], state.out, attention_bound(magnitude, out.dtype))
                expect_close(f"lse of {where}", lse[part], state.lse, LSE_BOUND)

    def _rows(self, pages: np.ndarray) -> np.ndarray:
        """Rows of a sequence in the first cache, [tokens, 1, channels]."""
        num_bytes = self.pool_bytes // self.shape[0]
        found = [self.memory.read(int(page) * num_bytes, num_bytes) for page in pages]
        rows = np.concatenate(found).view(ml_dtypes.bfloat16).reshape(-1, 1, ROW)
        return rows[: self.cell.context]

    def _view(self, pointer: int) -> kvit.CacheView:
        strides = tuple(2 * int(np.prod(self.shape[i + 1 :])) for i in range(4))
        parts = [
            kvit.Tensor.from_pointer(
                pointer, (*self.shape[:-1], channels), DTYPE, self.stream.device, strides=strides, owner=self.held
            ) for channels in (ROW, LATENT)
        ]  # fmt: skip
        return kvit.CacheView(*parts)

    def _upload(self, array: np.ndarray) -> kvit.Buffer:
        return kvit.Buffer.from_numpy(array, self.stream.device, self.stream)


@dataclass(frozen=True)
class Result:
    """One cell, measured."""

    cell: Cell
    us: float
    ahead_us: float  # with reads_ahead=True
    kernel: str
    peer_us: float | str | None = None  # FlashInfer's, or why there is none; None where it was not asked


def time_cell(
    cell: Cell, memory: measure.RandomMemory, stream: kvit.Stream, rng: np.random.Generator,
    kernel: Any = None, with_peer: bool = False,
) -> Result:  # fmt: skip
    """Proven, then timed, both launches and a peer in turns. Raises Mismatch, KvitError."""
    inputs = Inputs(cell, memory, stream, rng)
    ops = [
        kvit.Attention(
            inputs.views[0], cell.heads, tokens_per_sequence=cell.new_tokens, kernel=kernel, reads_ahead=is_ahead
        ) for is_ahead in (False, True)
    ]  # fmt: skip
    for op in ops:
        inputs.prove(op)
    peer = measure.ready(peers.flashinfer_latent, inputs) if with_peer else None
    beside = [] if peer is None or isinstance(peer, str) else [peer]

    def calls(op: kvit.Attention) -> list[Any]:
        return [lambda view=view: inputs.attend(op, view) for view in inputs.views]

    us, ahead, *peer_us = measure.take_turns([*(measure.Replay(stream, calls(op)) for op in ops), *beside])
    return Result(cell, us, ahead, ops[0].kernel.symbol, peer_us[0] if peer_us else peer)


def table(results: Sequence[Result]) -> str:
    """The results as text."""
    has_peer = any(it.peer_us is not None for it in results)
    header = ("cell", "us", "ahead", "GB/s", "TFLOP/s", "must reach", *["FlashInfer"] * has_peer, "kernel")
    rows = [
        (
            str(it.cell), f"{it.us:.1f}", f"{it.ahead_us:.1f}", f"{it.cell.num_bytes / it.ahead_us / 1e3:.0f}",
            f"{it.cell.flops / it.ahead_us / 1e6:.0f}", REACH_US.get(str(it.cell), ""),
            *[f"{it.peer_us:.1f}" if isinstance(it.peer_us, float) else "-"] * has_peer,
            it.kernel.removeprefix("kvit_"),
        ) for it in results
    ]  # fmt: skip
    return display.table(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    options = _parse(arguments)
    results: list[Result] = []
    try:
        device = measure.need_gpu(options.device)
        stream, rng = kvit.Stream(device), np.random.default_rng(SEED)
        measure.make_current(device)
        memory = measure.RandomMemory(DTYPE, stream, SEED)
        ceiling = measure.read_ceiling(device, stream, memory)
        with display.progress("latent") as step:
            for i, cell in enumerate(options.cells):
                step(i / len(options.cells), str(cell))
                results.append(time_cell(cell, memory, stream, rng, options.kernel, options.peers))
    except (kvit.KvitError, Mismatch) as error:
        return measure.refuse("latent", error)
    print(f"{device.name}, ceiling {ceiling.gbps:.0f} GB/s, kvit {info.version()}\n\n{table(results)}")
    for it in results:
        if isinstance(it.peer_us, str):
            print(f"{it.cell}: FlashInfer: {it.peer_us}")
    if options.json:
        cells = [{"name": str(it.cell), **asdict(it)} for it in results]
        found = {"device": device.name, "ceiling_gbps": ceiling.gbps, "cells": cells}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="latent", description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", default=list(REACH_US), metavar="CELL", help="names of cells")
    parser.add_argument("--kernel", type=json.loads, help='a kernel\'s symbol or axes, as JSON: \'{"copies": "tma"}\'')
    parser.add_argument("--peers", action="store_true", help="time FlashInfer in turns")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args(arguments)
    try:
        options.cells = [parse(name) for name in options.cells]
    except ValueError as error:
        parser.error(f"argument --cells: {error}")
    return options


if __name__ == "__main__":
    sys.exit(main())
