"""`kvit info --budget`: how many tokens fit, for every way to store K and V that is built."""

from __future__ import annotations

import argparse
import re
from typing import Any

from kvit import codecs, dtypes
from kvit._cli import display
from kvit.errors import ShapeError
from kvit.layouts.parameters import compute_dtype
from kvit.selection import registry

_UNITS = {unit: 1000**power for power, unit in enumerate(("", "kb", "mb", "gb", "tb"))}
_UNITS |= {unit: 1024**power for power, unit in enumerate(("b", "kib", "mib", "gib", "tib"))}


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `kvit info`."""
    group = parser.add_argument_group("how many tokens fit", "With --budget, all sizes of the model are needed.")
    group.add_argument("--budget", type=parse_bytes, help="bytes for K and V of all layers, such as 40GiB or 24GB")
    group.add_argument("--layers", type=_count, help="of the model, each with a cache of its own")
    group.add_argument("--kv-heads", type=_count)
    group.add_argument("--head-dim", type=_count)
    group.add_argument("--page-size", type=_count, default=64, help="tokens of a page; default: 64")
    group.add_argument("--dtype", default="bfloat16", help="of queries: bfloat16 or float16; default: bfloat16")
    group.add_argument("--k", help="only with K stored so: int8, int4, float8_e4m3, ...")
    group.add_argument("--v", help="only with V stored so")


def is_asked(options: argparse.Namespace) -> bool:
    """Whether the command line asks for this. Raises ShapeError where it asks by halves."""
    sizes = {f"--{name.replace('_', '-')}": getattr(options, name) for name in ("layers", "kv_heads", "head_dim")}
    missing = [name for name, value in sizes.items() if value is None]
    if options.budget is None:
        if len(missing) < len(sizes) or options.k or options.v:
            raise ShapeError("sizes of a model are given without a budget; add --budget, such as --budget 40GiB")
        return False
    if missing:
        raise ShapeError(f"--budget needs {', '.join(missing)} too: what a token takes depends on the model")
    return True


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """The pairs that are built, the largest tokens first, as JSON has it.

    Only whole pages count. What a cache needs once and not per token (float8's scales, page tables) is left out: some
    KiB. Raises KernelMissing (a pair or head_dim that is not built), DtypeError (no name of a dtype or a codec).
    """
    compute = compute_dtype(dtypes.dtype_of(options.dtype))
    shape = {"variant": "simple", "dtype": compute.short, "head_dim": options.head_dim}
    if options.k or options.v:
        sides = codecs.pair_of((options.k or compute, options.v or compute))
        entries = [registry.find("append", kv=codecs.key_of(*sides), **shape)]
    else:
        entries = list(registry.candidates("append", **shape))
        if not entries:
            registry.find("append", kv="b16", **shape)  # raises KernelMissing and says what is built
    token_rows = options.layers * options.kv_heads
    plain = token_rows * codecs.pair_bytes(*codecs.pair_of(compute), options.head_dim)
    pairs = []
    for entry in entries:
        k, v = codecs.pair_of_key(str(entry.axes["kv"]), compute)
        token_bytes = token_rows * codecs.pair_bytes(k, v, options.head_dim)
        pages = options.budget // (token_bytes * options.page_size)
        pairs.append(
            {
                "k": k.name,
                "v": v.name,
                "token_bytes": token_bytes,
                "pages": pages,
                "tokens": pages * options.page_size,
                "times_16_bit": plain / token_bytes,
            }
        )
    pairs.sort(key=lambda pair: pair["token_bytes"], reverse=True)
    names = ("budget", "layers", "kv_heads", "head_dim", "page_size")
    return {**{name: getattr(options, name) for name in names}, "dtype": compute.name, "pairs": pairs}


def text(found: dict[str, Any]) -> str:
    """What `collect` returned, for a terminal."""
    title = (
        f"{display.size(found['budget'])} for {found['layers']} layers of {found['kv_heads']} KV heads, head_dim "
        f"{found['head_dim']}, {found['dtype']}, in pages of {found['page_size']}"
    )
    rows = [
        (pair["k"], pair["v"], pair["token_bytes"], pair["tokens"], f"{pair['times_16_bit']:.2f}")
        for pair in found["pairs"]
    ]
    return f"{title}\n{display.table(('K', 'V', 'bytes per token', 'tokens', 'times 16-bit'), rows, '  ')}"


def parse_bytes(words: str) -> int:
    """A number of bytes: "40GiB" is 40 * 1024^3, "40GB" is 40 * 1000^3, "4096" is itself."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", words.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{words!r} is no amount of memory; write it like 40GiB, 24GB or 4096")
    return int(float(match[1]) * _UNITS[match[2]])


def _count(words: str) -> int:
    if not words.isdecimal() or int(words) < 1:
        raise argparse.ArgumentTypeError(f"{words!r} must be a number of at least 1")
    return int(words)
