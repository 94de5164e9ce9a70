"""How fast prompts are computed: calls of many new tokens, over pages in any order, proven before they are timed.

python benchmarks/prefill.py [--cells anchors mixed 512@131072:8/1] [--kernel '{"rows": 16}']
                             [--peers] [--json FILE] [--plot FILE]

A cell is named by its sequences, COUNTxNEW_TOKENS@LENGTH (a prompt is as long as its new tokens), and by commas what is
not the default: codec, d64, p16, full. TFLOP/s count both products over the pairs that are seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np
import peers
from inputs import FLOAT8_SCALES, dense
from numpy.typing import NDArray
from prompts import FAMILIES, REACH_TFLOPS, REACH_US, Prompt, select

import kvit
from kvit import reference
from kvit._cli import display, info
from kvit._cli.compare import CODED_SCORE_BOUND, LSE_BOUND, Mismatch, attention_bound, expect_close

SEED = 21
DTYPE = "bfloat16"
_CHECKED_TOKENS = 6  # of a sequence, that are compared with the reference
_CHECKED_SEQUENCES = 3
_APPENDED = 16384  # tokens a call that fills the cache


@dataclass(frozen=True)
class Result:
    """One cell, measured."""

    prompt: Prompt
    us: float
    kernel: str
    peer_us: float | str | None = None  # FlashAttention-3's, or why there is none; None where it was not asked

    @property
    def tflops(self) -> float:
        """10**12 operations per second."""
        return self.prompt.flops / self.us / 1e6

    @property
    def reached(self) -> float | None:
        """How much of what must be reached on an H200; None where nothing is known of the cell."""
        name = str(self.prompt)
        if name in REACH_US:
            return REACH_US[name] / self.us
        return self.tflops / REACH_TFLOPS[name] if name in REACH_TFLOPS else None


class Inputs:
    """A cache full of random tokens, in pages in random order, and random queries of a cell."""

    def __init__(self, prompt: Prompt, memory: measure.RandomMemory, stream: kvit.Stream, rng: np.random.Generator):
        self.prompt, self.stream, device = prompt, stream, stream.device
        counts, lengths, heads, page = prompt.counts, prompt.lengths, prompt.kv_heads, prompt.page_size
        slots = [-(-length // page) for length in lengths]
        pages = np.split(rng.permutation(sum(slots)).astype(np.int32), np.cumsum(slots)[:-1])
        shape = (sum(slots), heads, page)
        scales = {f"{side}_scale": self._upload(np.float32(x)) for side, x in zip("kv", FLOAT8_SCALES, strict=True)}
        is_integer, is_int4 = prompt.kv.startswith("int"), prompt.kv == "int4"
        pools = [
            kvit.Buffer.empty(
                (*shape, prompt.head_dim // 2 if is_int4 else prompt.head_dim),
                "uint8" if is_integer else prompt.kv, device, stream,
            ) for _ in range(2)
        ]  # fmt: skip
        extras = scales if prompt.kv.startswith("float8") else {}
        if is_integer:
            extras = {f"{side}_params": kvit.Buffer.empty((*shape, 2), DTYPE, device, stream) for side in "kv"}
        self.view = kvit.CacheView(*pools, layout="HND", kv=prompt.kv, dtype=DTYPE, **extras)
        self.table = kvit.PageTable(self._upload(dense(pages, 0)), lengths=self._upload(np.array(lengths, np.int32)))
        self.indptr = self._upload(np.cumsum([0, *counts]).astype(np.int32))
        self._fill(pages, memory)
        rows = (sum(counts), prompt.query_heads, prompt.head_dim)
        self.q = memory.bytes(2 * int(np.prod(rows)))
        self.queries = memory.read(0, self.q.nbytes).view(self._numpy_dtype()).reshape(rows)
        self.q = kvit.Tensor.from_pointer(self.q.pointer, rows, DTYPE, device, owner=self.q)
        self.out = kvit.Buffer.empty(rows, DTYPE, device, stream)
        self.lse = kvit.Buffer.empty(rows[:2], "float32", device, stream)

    def attend(self, op: kvit.Attention, lse: Any = None) -> None:
        """One call of the cell."""
        op(self.q, self.view, self.table, out=self.out, lse=lse, query_indptr=self.indptr, stream=self.stream)

    def prove(self, op: kvit.Attention) -> None:
        """Compare rows of a result with the reference, outputs full of NaN before. Raises Mismatch."""
        for buffer in (self.out, self.lse):
            buffer.fill_bytes(0xFF, self.stream)
        self.attend(op, self.lse)
        op.check(self.stream)
        out, lse = self.out.numpy(), self.lse.numpy()
        prompt, begins = self.prompt, np.cumsum([0, *self.prompt.counts])
        is_coded = prompt.kv not in ("bfloat16", "float16")
        k, v, indptr = self._gathered()
        picked = {0, len(prompt.counts) // 2, len(prompt.counts) - 1}
        for sequence in sorted(picked)[:_CHECKED_SEQUENCES]:
            count, length, base = prompt.counts[sequence], prompt.lengths[sequence], int(indptr[sequence])
            for token in np.unique(np.linspace(0, count - 1, _CHECKED_TOKENS).astype(int)):
                row, seen = begins[sequence] + token, length - count + token + 1 if prompt.causal else length
                q = self.queries[row : row + 1]
                keys, values = k[base : base + seen], v[base : base + seen]
                state = reference.attention(q, keys, values)
                magnitude = reference.attention(q, keys, np.abs(values)).out
                bound = attention_bound(magnitude, q.dtype) + is_coded * (2 * CODED_SCORE_BOUND + 2**-7) * magnitude
                where = f"{prompt}, token {token} of sequence {sequence}"
                expect_close(f"out of {where}", out[row : row + 1], state.out, bound)
                lse_bound = CODED_SCORE_BOUND + 2**-6 if is_coded else LSE_BOUND  # gathered rows are rounded
                expect_close(f"lse of {where}", lse[row : row + 1], state.lse, lse_bound)

    def _fill(self, pages: list[NDArray[np.int32]], memory: measure.RandomMemory) -> None:
        """Appends random rows to every sequence, some thousands at a time."""
        prompt, append = self.prompt, kvit.Append(self.view)
        row_bytes = 2 * prompt.kv_heads * prompt.head_dim
        for length, of_sequence in zip(prompt.lengths, pages, strict=True):
            for first in range(0, length, _APPENDED):
                count = min(_APPENDED, length - first)
                shape = (count, prompt.kv_heads, prompt.head_dim)
                held = memory.bytes(2 * count * row_bytes + 4096 * (first + length))
                k, v = (
                    kvit.Tensor.from_pointer(
                        held.pointer + side * count * row_bytes + 4096 * (first // 16), shape, DTYPE,
                        self.stream.device, owner=held,
                    ) for side in range(2)
                )  # fmt: skip
                table = kvit.PageTable(
                    self._upload(of_sequence[None]), lengths=self._upload(np.array([first + count], np.int32))
                )
                indptr = self._upload(np.array([0, count], np.int32))
                append(k, v, self.view, table, query_indptr=indptr, stream=self.stream)
        append.check(self.stream)

    def _gathered(self) -> tuple[NDArray, NDArray, NDArray]:
        """K and V of all tokens as the cache gives them back, and where each sequence begins."""
        indptr = np.cumsum([0, *self.prompt.lengths]).astype(np.int32)
        shape = (int(indptr[-1]), self.prompt.kv_heads, self.prompt.head_dim)
        k, v = (kvit.Buffer.empty(shape, DTYPE, self.stream.device, self.stream) for _ in range(2))
        kvit.Gather(self.view)(self.view, self.table, out=(k, v), query_indptr=self._upload(indptr), stream=self.stream)
        return k.numpy(), v.numpy(), indptr

    def _upload(self, array: Any) -> kvit.Buffer:
        return kvit.Buffer.from_numpy(np.asarray(array), self.stream.device, self.stream)

    def _numpy_dtype(self) -> np.dtype:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)


def time_prompt(
    prompt: Prompt, memory: measure.RandomMemory, stream: kvit.Stream, rng: np.random.Generator,
    kernel: Any = None, replays: int = measure.REPLAYS, with_peer: bool = False,
) -> Result:  # fmt: skip
    """Proven, then timed, and a peer in turns with it. Raises Mismatch, KvitError."""
    inputs = Inputs(prompt, memory, stream, rng)
    tokens = max(prompt.counts)
    op = kvit.Attention(
        inputs.view, prompt.query_heads, causal=prompt.causal, tokens_per_sequence=tokens, kernel=kernel
    )
    inputs.prove(op)
    peer = measure.ready(peers.fa3_prompts, inputs) if with_peer else None
    beside = [] if peer is None or isinstance(peer, str) else [peer]
    us, *peer_us = measure.take_turns([measure.Replay(stream, [lambda: inputs.attend(op)]), *beside], replays)
    op.check(stream)
    return Result(prompt, us, op.kernel.symbol, peer_us[0] if peer_us else peer)


def table(results: Sequence[Result]) -> str:
    """The results as text."""
    has_peer = any(it.peer_us is not None for it in results)
    header = ("cell", "us", "TFLOP/s", "of what must be reached", *["FA3, us"] * has_peer, "kernel")
    rows = [
        (
            str(it.prompt), f"{it.us:.1f}", f"{it.tflops:.0f}",
            "" if it.reached is None else f"{it.reached:.1%}", *[_said(it.peer_us)] * has_peer,
            it.kernel.removeprefix("kvit_"),
        ) for it in results
    ]  # fmt: skip
    return display.table(header, rows)


def _said(peer_us: float | str | None) -> str:
    return f"{peer_us:.1f}" if isinstance(peer_us, float) else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    options = _parse(arguments)
    results: list[Result] = []
    try:
        device = measure.need_gpu(options.device)
        stream, rng = kvit.Stream(device), np.random.default_rng(SEED)
        measure.make_current(device)
        memory = measure.RandomMemory(DTYPE, stream, SEED)
        for i, prompt in enumerate(options.cells):
            results.append(time_prompt(prompt, memory, stream, rng, options.kernel, options.replays, options.peers))
            said = f"{results[-1].us:.1f} us, {results[-1].tflops:.0f} TFLOP/s"
            peer = results[-1].peer_us
            said += f"; FlashAttention-3: {peer}" if isinstance(peer, str) else ""
            print(f"[{i + 1}/{len(options.cells)}] {prompt}: {said}", file=sys.stderr, flush=True)
    except (kvit.KvitError, Mismatch) as error:
        return measure.refuse("prefill", error)
    print(f"{device.name}, kvit {info.version()}\n\n{table(results)}")
    if options.json:
        cells = [
            {
                "name": str(it.prompt),
                **asdict(it.prompt),
                "us": it.us,
                "tflops": it.tflops,
                "kernel": it.kernel,
                "fa3": it.peer_us,
            }
            for it in results
        ]
        options.json.write_text(json.dumps({"device": device.name, "cells": cells}, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        plot(options.plot, results, device.name)
    return 0


def plot(path: Path, results: Sequence[Result], title: str) -> None:
    """A bar for each cell, and a mark where it must be on an H200."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.32 * len(results)), layout="constrained")
    names = [str(it.prompt) for it in results]
    axes.barh(names, [it.tflops for it in results], color="tab:blue")
    reach = [it.tflops / it.reached if it.reached else float("nan") for it in results]
    axes.scatter(reach, names, marker="|", s=200, color="black", label="must reach (H200)")
    axes.set(xlabel="TFLOP/s", title=f"{title}: prefill")
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prefill", description=__doc__.split("\n")[0])
    families = ", ".join(FAMILIES)
    parser.add_argument(
        "--cells", nargs="+", default=[], metavar="CELL", help=f"names, patterns of them, or families: {families} (all)"
    )
    parser.add_argument("--kernel", type=json.loads, help="a kernel's symbol or axes, as JSON: '{\"rows\": 16}'")
    parser.add_argument("--peers", action="store_true", help="time FlashAttention-3 in turns, on contiguous tokens")
    parser.add_argument("--replays", type=int, default=measure.REPLAYS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    options = parser.parse_args(arguments)
    try:
        options.cells = select(options.cells)
    except ValueError as error:
        parser.error(f"argument --cells: {error}")
    return options


if __name__ == "__main__":
    sys.exit(main())
