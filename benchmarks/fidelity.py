"""What quantised K and V cost: how far attention's output moves, for each pair of codecs and kind of numbers.

python benchmarks/fidelity.py [--pairs int8:int4 16:int8] [--kernel [--device host]] [--json FILE]

The truth is float64 attention over K and V in 16 bits, before any codec. By default rows go through kvit.reference and
all else stays float64: the codec's error alone. --kernel asks kvit's kernels, whose own rounding then counts too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import measure
import numpy as np
from numpy.typing import NDArray

import kvit
from kvit import dtypes, reference
from kvit._cli import display
from kvit.reference import PAIRS, Pair

SEED = 20
QUERIES, QUERY_HEADS, KV_HEADS = 16, 64, 16  # KV heads are drawn apart: many make the figures steady
PAGE_SIZE = 16
OUTLIER_FACTOR = 10  # how much larger an outlier channel is; one channel in 32 is one

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]


def gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Independent normal numbers of variance one: what a codec finds easiest."""
    return rng.standard_normal(shape)


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Student's t with 3 degrees of freedom, of variance one: now and then a number far out widens its whole row."""
    return rng.standard_t(3, shape) / np.sqrt(3)


def outlier_channels(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Normal numbers, OUTLIER_FACTOR times larger in a few channels of each head: they widen every row, as K often is.

    Seen in trained models: Liu et al., KIVI, 2024.
    """
    *_, heads, head_dim = shape
    size = np.ones((heads, head_dim))
    for head in size:
        head[rng.choice(head_dim, head_dim // 32, replace=False)] = OUTLIER_FACTOR
    return rng.standard_normal(shape) * size


KINDS: dict[str, Draw] = {"Gaussian": gaussian, "heavy-tailed": heavy_tailed, "outliers": outlier_channels}


@dataclass(frozen=True)
class Result:
    """The error of one pair over one kind of numbers."""

    pair: Pair
    kind: str
    head_dim: int
    rms: float  # of the error of all outputs, relative to that of the outputs
    worst: float  # the same of the single query head that fares worst

    def percent(self) -> str:
        """RMS / worst, with as many digits as mean something."""
        return " / ".join(f"{100 * x:.0f}" if x >= 1 else f"{100 * x:.3g}" for x in (self.rms, self.worst))


class Case:
    """Queries, K and V of one sequence in 16 bits, and the exact output."""

    def __init__(self, kind: str, head_dim: int, tokens: int, dtype: str):
        rng = np.random.default_rng([SEED, list(KINDS).index(kind), head_dim])
        stored = dtypes.numpy_dtype(dtypes.dtype_of(dtype))
        self.kind, self.dtype = kind, dtype
        self.q = rng.standard_normal((QUERIES, QUERY_HEADS, head_dim)).astype(stored)
        self.k, self.v = (KINDS[kind](rng, (tokens, KV_HEADS, head_dim)).astype(stored) for _ in range(2))
        self.exact = reference.attention(self.q, self.k, self.v, causal=False).out

    def result(self, pair: Pair, out: NDArray) -> Result:
        """How far `out` is from exact."""
        error = out.astype(np.float64) - self.exact
        heads = np.linalg.norm(error, axis=-1) / np.linalg.norm(self.exact, axis=-1)
        rms = np.linalg.norm(error) / np.linalg.norm(self.exact)
        return Result(pair, self.kind, self.q.shape[-1], float(rms), float(heads.max()))


def by_reference(case: Case, pair: Pair) -> NDArray[np.float64]:
    """Attention over rows that went through their codecs; float8 with a scale of one."""
    k, v = (codec.decode(*codec.encode(x)) for codec, x in zip(pair.codecs(case.dtype), (case.k, case.v), strict=True))
    return reference.attention(case.q, k, v, causal=False).out


def by_kernel(case: Case, pair: Pair, device: str) -> NDArray:
    """The same through a kvit.PagedCache on a device. Raises KvitError where no kernel covers the pair."""
    tokens, kv_heads, head_dim = case.k.shape
    k, v = (codec.name for codec in pair.codecs(case.dtype))
    cache = kvit.PagedCache(
        -(-tokens // PAGE_SIZE), PAGE_SIZE, kv_heads, head_dim, dtype=case.dtype, k=k, v=v, device=device
    )
    sequence = cache.sequence()
    q, k, v = (kvit.Buffer.from_numpy(x, device) for x in (case.q, case.k, case.v))
    cache.append([sequence], k, v)
    out = kvit.attention(q, cache, [sequence], causal=False).numpy()
    cache.check()
    return out


def table(results: Sequence[Result], dtype: str) -> str:
    """One line a pair, one column a kind and head_dim: relative RMS error in percent, and that of the worst head."""
    columns = list(dict.fromkeys((result.kind, result.head_dim) for result in results))
    found = {(result.pair, (result.kind, result.head_dim)): result for result in results}
    dims = list(dict.fromkeys(head_dim for _, head_dim in columns))
    header = ("K", "V", *(f"bytes, d{d}" for d in dims), *(f"{kind}, d{head_dim}" for kind, head_dim in columns))
    rows = [
        (
            pair.k,
            pair.v,
            *(pair.row_bytes(dtype, head_dim) for head_dim in dims),
            *(found[pair, column].percent() for column in columns),
        )
        for pair in dict.fromkeys(result.pair for result in results)
    ]
    return display.table(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    options = _parse(arguments)
    try:
        kvit.Device.of(options.device if options.kernel else "host")
    except kvit.KvitError as error:
        hint = "; give --device host, where kernels compute the same" if isinstance(error, kvit.NoGpuError) else ""
        return measure.refuse("fidelity", type(error)(f"{str(error).partition('. ')[0]}{hint}"))
    results, refusals = [], {}
    with display.progress("fidelity") as step:
        cases = [
            Case(kind, head_dim, options.tokens, options.dtype) for kind in KINDS for head_dim in options.head_dims
        ]
        for i, pair in enumerate(options.pairs):
            step(i / len(options.pairs), str(pair))
            try:
                results += [case.result(pair, _output(case, pair, options)) for case in cases]
            except kvit.KvitError as error:
                refusals[str(pair)] = str(error)
    by = f"kvit's kernels on {options.device}" if options.kernel else "kvit.reference"
    print(f"error of attention over {options.tokens} tokens in {options.dtype}, by {by}: RMS / worst head, percent\n")
    if results:
        print(table(results, options.dtype))
    for pair, reason in refusals.items():
        print(f"{pair}: {reason}", file=sys.stderr)
    if options.json:
        about = {"tokens": options.tokens, "dtype": options.dtype, "by": by}
        rows = [asdict(result) for result in results]
        options.json.write_text(json.dumps({**about, "results": rows}, indent=2) + "\n", encoding="utf-8")
    return 0 if results else 1


def _output(case: Case, pair: Pair, options: argparse.Namespace) -> NDArray:
    return by_kernel(case, pair, options.device) if options.kernel else by_reference(case, pair)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fidelity", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--pairs", nargs="+", type=Pair.argument, default=PAIRS, metavar="K:V", help="16 is the 16-bit dtype"
    )
    parser.add_argument("--head-dims", nargs="+", type=int, default=(64, 128), metavar="D")
    parser.add_argument("--tokens", type=int, default=1024, help="of the sequence (1024)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of q, k and v")
    parser.add_argument("--kernel", action="store_true", help="through kvit.PagedCache instead of kvit.reference")
    parser.add_argument("--device", default="cuda:0", help='of --kernel: "cuda:0", or "host"')
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args(arguments)
    if options.tokens < 1:
        parser.error(f"--tokens {options.tokens} leaves nothing to attend to; give at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
