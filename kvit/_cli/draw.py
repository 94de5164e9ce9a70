"""`kvit draw`: thread maps, layouts of shared memory and the pages of a cache, in the terminal or as an SVG file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kvit.errors import ShapeError

# A tile of K as kernels have it, unless the command says otherwise.
_BITS, _CHANNELS, _TOKENS, _WARPS = 16, 128, 64, 4


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser("draw", help="thread maps, layouts and pages as pictures", description=__doc__)
    kinds = parser.add_subparsers(metavar="what", required=True)
    tile = argparse.ArgumentParser(add_help=False)
    tile.add_argument("--channels", type=int, default=_CHANNELS, help="of a row (default: %(default)s)")
    tile.add_argument("--tokens", type=int, default=_TOKENS, help="of the tile (default: %(default)s)")
    tile.add_argument("--bits", type=int, default=_BITS, choices=(4, 8, 16, 32), help="of an element (default: 16)")
    tile.add_argument("--rows", type=int, default=16, help="of the tile to draw (default: %(default)s)")
    tile.add_argument("--svg", type=Path, metavar="FILE", help="write a picture instead of text")

    threads = kinds.add_parser("map", parents=[tile], help="which thread moves what")
    threads.add_argument("--access", type=int, help="channels that a lane moves at once (default: 16 bytes of them)")
    threads.add_argument("--warps", type=int, default=_WARPS, help="that share the tile (default: %(default)s)")
    threads.add_argument("--lanes", type=int, help="of a warp along a row (default: what a row has room for)")
    threads.set_defaults(run=draw_map)

    layout = kinds.add_parser("layout", parents=[tile], help="which banks of shared memory hold what")
    layout.add_argument("--atom", type=int, nargs=2, metavar=("S", "C"), help="tokens and channels (default: kvit's)")
    layout.add_argument("--swizzle", type=int, nargs=3, metavar=("BITS", "BASE", "SHIFT"), help="within an atom")
    layout.add_argument("--warps", type=int, default=_WARPS, help="that write the tile (default: %(default)s)")
    layout.set_defaults(run=draw_layout)

    pages = kinds.add_parser("pages", help="which sequence has which page, as a new cache deals them out")
    pages.add_argument("lengths", type=int, nargs="+", help="tokens of each sequence")
    pages.add_argument("--page-size", type=int, default=16, help="tokens of a page (default: %(default)s)")
    pages.add_argument("--pages", type=int, help="of the cache (default: as many as are needed)")
    pages.add_argument("--forks", type=int, default=0, help="of the first sequence, which share its pages")
    pages.add_argument("--svg", type=Path, metavar="FILE", help="write a picture instead of text")
    pages.set_defaults(run=draw_pages)


def draw_map(options: argparse.Namespace) -> int:
    """A thread map. Raises LayoutError for one that would not compile."""
    from kvit.iterators import RakedThreadMap, thread_map_svg

    access = 128 // options.bits if options.access is None else options.access
    found = RakedThreadMap(options.channels, options.tokens, access, options.warps, options.lanes)
    return _show(options, found.draw(options.rows), lambda: thread_map_svg(found, options.rows))


def draw_layout(options: argparse.Namespace) -> int:
    """A layout, with what copying into it costs. Raises LayoutError for one that would not compile."""
    from kvit.iterators import IDENTITY, SmemLayout, Swizzle, kv_layout, kv_thread_map, layout_svg, report

    if options.atom is None and options.swizzle is None:
        found = kv_layout(options.bits, options.channels, options.tokens)
    else:
        atom = options.atom or (options.tokens, options.channels)
        swizzle = IDENTITY if options.swizzle is None else Swizzle(*options.swizzle)
        found = SmemLayout(options.tokens, options.channels, *atom, swizzle)
    threads = kv_thread_map(options.bits, options.channels, options.tokens, options.warps)
    text = f"{found.draw(options.bits, options.rows)}\n{threads}:\n{report(found, threads, options.bits)}"
    return _show(options, text, lambda: layout_svg(found, options.bits, options.rows))


def draw_pages(options: argparse.Namespace) -> int:
    """Pages of sequences that grow in a new pool, one after the other. Raises CacheFull, ShapeError."""
    import kvit
    from kvit.iterators import pages_svg

    if min(options.lengths) < 0 or options.forks < 0:
        raise ShapeError("lengths and forks must be 0 at least")
    needed = sum(-(-length // options.page_size) for length in options.lengths) if options.page_size > 0 else 0
    pool = kvit.PagePool(options.pages or max(1, needed), options.page_size)
    seqs = [pool.sequence() for _ in options.lengths]
    for seq, length in zip(seqs, options.lengths, strict=True):
        pool.grow([seq], [length]).keep()
    seqs += [seqs[0].fork() for _ in range(options.forks)]
    names = {f"sequence {i}": list(seq.pages) for i, seq in enumerate(seqs)}
    lengths = {f"sequence {i}": len(seq) for i, seq in enumerate(seqs)}
    text = "\n".join(f"{name}  {lengths[name]} tokens  pages {pages}" for name, pages in names.items())
    return _show(options, text, lambda: pages_svg(names, pool.num_pages, lengths, options.page_size))


def _show(options: argparse.Namespace, text: str, picture: Any) -> int:
    if options.svg is None:
        print(text)
    else:
        options.svg.write_text(picture(), encoding="utf-8")
        print(f"wrote {options.svg}")
    return 0
