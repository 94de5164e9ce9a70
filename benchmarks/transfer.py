"""How fast append and gather move rows: kvit for every codec, with and without rotation, beside a copy on this card.

python benchmarks/transfer.py [--cells 8x512 64x1] [--stored bfloat16 int8 int8/int4] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import measure
import numpy as np
from transfer_inputs import Call, Cell, Inputs, Setting

import kvit
from kvit import codecs
from kvit._cli import devices, display, info
from kvit._cli.compare import Mismatch

SEED = 30
STORED = (
    ("bfloat16", "bfloat16"),
    ("int8", "int8"),
    ("int4", "int4"),
    ("float8_e4m3", "float8_e4m3"),
    ("int8", "int4"),
)


@dataclass(frozen=True)
class Result:
    """One operation on one cell, measured."""

    operation: str  # append, append + rope, append + rope + q, gather
    cell: Cell
    num_bytes: int  # read and written
    us: float
    kernel: str
    copy_gbps: float = 0.0  # of a copy by the driver that reads and writes as many bytes in all

    @property
    def gbps(self) -> float:
        """10**9 bytes per second."""
        return self.num_bytes / self.us / 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    options = _parse(arguments)
    setting = Setting(options.kv_heads, options.query_heads, options.head_dim, options.page_size, options.dtype)
    try:
        copies, results = _measure(options, setting)
    except (kvit.KvitError, Mismatch) as error:
        return measure.refuse("transfer", error)
    device = kvit.Device.of(options.device)
    best = max(copies.values())
    print(f"{device.name}, driver {devices.driver_release() or '?'}, kvit {info.version()}")
    print(f"{setting.dtype}, {setting.kv_heads} KV heads of {setting.head_dim}, pages of {setting.page_size}")
    for num_bytes, gbps in copies.items():
        print(f"copying {display.size(num_bytes)}: {gbps:.0f} GB/s, read and written")
    print()
    print(table(results, best))
    if options.json:
        found = {
            "device": device.name,
            "driver": devices.driver_release(),
            "setting": asdict(setting),
            "copies": [{"num_bytes": num_bytes, "gbps": round(gbps, 1)} for num_bytes, gbps in copies.items()],
            "results": [
                {
                    **asdict(result),
                    "us": round(result.us, 3),
                    "gbps": round(result.gbps, 1),
                    "copy_gbps": round(result.copy_gbps, 1),
                    "of_copy": round(result.gbps / result.copy_gbps, 4),
                    "of_best_copy": round(result.gbps / best, 4),
                }
                for result in results
            ],
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="transfer", description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", type=_cell, default=[(8, 512), (64, 1)], help="SEQUENCESxTOKENS")
    parser.add_argument("--stored", nargs="+", type=_stored, default=STORED, help="codec of both, or K/V")
    parser.add_argument("--layouts", nargs="+", choices=("NHD", "HND"), default=("NHD", "HND"))
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--query-heads", type=int, default=32)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=64, help="tokens of a page (64)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args(arguments)


def _cell(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no cell; cells look like 8x512")
    return int(match[1]), int(match[2])


def _stored(text: str) -> tuple[str, str]:
    try:
        k, v = (codecs.codec_of(name) for name in (text.split("/") * 2)[:2])
    except kvit.KvitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return k.name, v.name


def _measure(options: argparse.Namespace, setting: Setting) -> tuple[dict[int, float], list[Result]]:
    """The rates of copying so many bytes, and every operation on every cell."""
    device = measure.need_gpu(options.device)
    stream = kvit.Stream(device)
    measure.make_current(device)
    rng = np.random.default_rng(SEED)
    cells = [
        Cell(*tokens, stored, layout)
        for tokens in options.cells
        for stored in options.stored
        for layout in options.layouts
    ]
    with display.progress("transfer") as step:
        step(0.0, "random numbers")
        memory = measure.RandomMemory(setting.dtype, stream, SEED)
        step(0.0, "copies")
        copies = {num_bytes: measure.copy_gbps(stream, memory, num_bytes) for num_bytes in (1 << 30, 1 << 27)}
        results = []
        for i, cell in enumerate(cells):
            step((i + 1) / (len(cells) + 1), str(cell))
            results += time_cell(Inputs(cell, setting, stream, memory, rng))
        rates = {size: measure.copy_gbps(stream, memory, size) for size in {it.num_bytes // 32 * 16 for it in results}}
    return copies, [replace(result, copy_gbps=rates[result.num_bytes // 32 * 16]) for result in results]


def time_cell(inputs: Inputs) -> Iterator[Result]:
    """Every operation on the cell, proven right before it is timed and faultless after. Raises Mismatch."""
    cell, setting, stream = inputs.cell, inputs.setting, inputs.stream
    rope = kvit.Rope(setting.head_dim)
    for name, turns, with_queries in (
        ("append + rope", True, False),
        ("append + rope + q", True, True),
        ("append", False, False),
    ):
        op = kvit.Append(inputs.views[0], rope=rope if turns else None)
        append = appending(inputs, op, with_queries)
        prove_append(inputs, op, append, with_queries)
        us = rotating_us(inputs, append)
        op.check(stream)
        num_bytes = cell.kv_bytes(setting) + with_queries * cell.query_bytes(setting)
        yield Result(name, cell, num_bytes, us, op.kernel.symbol)

    gather_op = kvit.Gather(inputs.views[0])
    gather = gathering(inputs, gather_op)
    prove_gather(inputs, gather_op, gather)  # of the rows that the last append left
    us = rotating_us(inputs, gather)
    gather_op.check(stream)
    yield Result("gather", cell, cell.kv_bytes(setting), us, gather_op.kernel.symbol)


def rotating_us(inputs: Inputs, call: Call) -> float:
    """Microseconds of the call, over the copies in turn."""
    return measure.graph_us(inputs.stream, [partial(call, copy) for copy in range(inputs.copies)])


def appending(inputs: Inputs, op: kvit.Append, with_queries: bool) -> Call:
    """An append of a copy's rows to its cache."""

    def append(copy: int) -> None:
        q, k, v = inputs.packed(copy)
        queries = {"q": q, "q_out": inputs.q_out} if with_queries else {}
        op(k, v, inputs.views[copy], inputs.table, query_indptr=inputs.query_indptr, stream=inputs.stream, **queries)

    return append


def gathering(inputs: Inputs, op: kvit.Gather) -> Call:
    """A gather of a copy's cache."""

    def gather(copy: int) -> None:
        k, v = inputs.outputs(copy)
        op(inputs.views[copy], inputs.table, out=(k, v), query_indptr=inputs.query_indptr, stream=inputs.stream)

    return gather


def prove_append(inputs: Inputs, op: kvit.Append, append: Call, with_queries: bool) -> None:
    """Compare what the first and the last copy hold after an append with the reference. Raises Mismatch."""
    for copy in sorted({0, inputs.copies - 1}):
        inputs.poison(copy)
        append(copy)
        op.check(inputs.stream)
        inputs.check_appended(copy, op.rope, inputs.q_out if with_queries else None)


def prove_gather(inputs: Inputs, op: kvit.Gather, gather: Call) -> None:
    """Compare what comes out of the first and the last copy with the reference. Raises Mismatch."""
    for copy in sorted({0, inputs.copies - 1}):
        inputs.gathered[copy].fill_bytes(0xFF, inputs.stream)
        gather(copy)
        op.check(inputs.stream)
        inputs.check_gathered(copy)


def table(results: Sequence[Result], best: float) -> str:
    """The results as text; `best` is the rate of the fastest copy of any size."""
    names = ("operation", "sequences x tokens", "K / V", "layout", "MB", "us", "GB/s")
    header = (*names, "of a copy of as much", "of the best copy")
    rows = [
        (
            result.operation,
            f"{result.cell.sequences} x {result.cell.tokens}",
            " / ".join(dict.fromkeys(result.cell.stored)),
            result.cell.layout,
            f"{result.num_bytes / 1e6:.1f}",
            f"{result.us:.2f}",
            f"{result.gbps:.0f}",
            f"{result.gbps / result.copy_gbps:.1%}",
            f"{result.gbps / best:.1%}",
        )
        for result in results
    ]
    return display.table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
