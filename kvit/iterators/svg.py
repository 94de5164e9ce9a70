"""Thread maps, layouts of shared memory and pages of a cache as pictures: SVG, which every browser shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from colorsys import hls_to_rgb
from html import escape

import numpy as np

from kvit.errors import ShapeError
from kvit.iterators.banks import matrix_conflicts
from kvit.iterators.raked_thread_map import WARP, RakedThreadMap
from kvit.iterators.smem_layout import SmemLayout

_CELL = 26  # pixels
_MARGIN = 80


def thread_map_svg(thread_map: RakedThreadMap, rows: int = 64) -> str:
    """Who makes each access of the first `rows` tokens: a colour for each warp, the lane's number in it.

    One cell is one access; pointing at it says warp, lane, token and channels.
    """
    _require_rows(rows)
    cells = []
    for warp in range(thread_map.warp_count):
        for lane in range(WARP):
            for access in thread_map.accesses(warp, lane):
                if access.at.s >= rows:
                    continue
                last = access.at.c + thread_map.access_c - 1
                title = f"warp {warp}, lane {lane}: token {access.at.s}, channels {access.at.c} to {last}"
                place = access.at.c // thread_map.access_c, access.at.s
                cells.append(_cell(*place, _colour(warp, thread_map.warp_count, lane / WARP), str(lane), title))
    width = thread_map.dim_c // thread_map.access_c
    return _picture(f"{thread_map}: lane of every access, a colour for each warp", width, rows, thread_map.dim_s, cells)


def layout_svg(layout: SmemLayout, bits: int, rows: int = 64) -> str:
    """The bank group (16 bytes, 0 to 7) of every 16-byte vector of the first `rows` tokens, a colour for each.

    Eight tokens below each other in eight colours are read by a matrix load without conflict; the caption says how many
    turns the worst takes. Pointing at a cell says token, channels and byte.
    """
    _require_rows(rows)
    vector = 128 // bits
    if layout.c % vector:
        raise ShapeError(f"{layout}: rows of {layout.c} elements of {bits} bits are no whole number of 16 bytes")
    cells = []
    for s in range(min(rows, layout.s)):
        for c in range(0, layout.c, vector):
            byte = int(layout.index(s, c)) * bits // 8
            group = byte // 16 % 8
            title = f"token {s}, channels {c} to {c + vector - 1}: byte {byte}, banks {group * 4} to {group * 4 + 3}"
            cells.append(_cell(c // vector, s, _colour(group, 8, 0.5), str(group), title))
    turns = f"; turns of the worst matrix: {matrix_conflicts(layout, bits)}" if layout.s % 8 == 0 else ""
    caption = f"{layout}, {bits}-bit elements: bank group of every 16-byte vector{turns}"
    return _picture(caption, layout.c // vector, rows, layout.s, cells)


def pages_svg(
    sequences: Mapping[str, Sequence[int]], num_pages: int, lengths: Mapping[str, int], page_size: int
) -> str:
    """Whose each page of a cache is: a colour for each sequence, shared pages in stripes, free ones white.

    sequences  names, and the pages that hold them, in the order of their tokens
    lengths    of them, in tokens

    Pointing at a page says who has it, and which of their tokens it holds.
    """
    owners: dict[int, list[tuple[int, str, int]]] = {}
    for number, (name, pages) in enumerate(sequences.items()):
        for slot, page in enumerate(pages):
            if not 0 <= page < num_pages:
                raise ShapeError(f"{name} has page {page}; the cache has pages 0 to {num_pages - 1}")
            owners.setdefault(page, []).append((number, name, slot))
    width = 16
    cells = []
    for page in range(num_pages):
        held = owners.get(page, [])
        tokens = (
            f"{name} tokens {slot * page_size} to {min((slot + 1) * page_size, lengths[name]) - 1}"
            for _, name, slot in held
        )
        title = f"page {page}: {', '.join(tokens) or 'free'}"
        share = 1 / max(1, len(held))
        for i, (number, _, _) in enumerate(held):
            colour = _colour(number, len(sequences), 0.5)
            cells.append(_cell(page % width, page // width, colour, "", title, first=i * share, share=share))
        cells.append(_cell(page % width, page // width, "none" if held else "white", str(page), title))
    rows = -(-num_pages // width)
    caption = f"{num_pages} pages of {page_size} tokens: " + ", ".join(f"{name} {lengths[name]}" for name in sequences)
    return _picture(caption, width, rows, rows, cells, label="row")


def _require_rows(rows: int) -> None:
    if rows < 1:
        raise ShapeError(f"rows is {rows}; draw 1 at least")


def _colour(number: int, count: int, shade: float) -> str:
    parts = hls_to_rgb(number / max(1, count), 0.88 - 0.28 * shade, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)  # hsl() is not for every program that shows SVG


def _cell(column: int, row: int, colour: str, text: str, title: str, first: float = 0.0, share: float = 1.0) -> str:
    x, y = _MARGIN + (column + first) * _CELL, _MARGIN + row * _CELL
    shape = (
        f'<rect x="{x:g}" y="{y}" width="{share * _CELL:g}" height="{_CELL}" fill="{colour}" stroke="#888">'
        f"<title>{escape(title)}</title></rect>"
    )
    if text:
        shape += f'<text x="{x + _CELL / 2:g}" y="{y + _CELL * 0.68:g}" text-anchor="middle">{escape(text)}</text>'
    return shape


def _picture(caption: str, columns: int, rows: int, all_rows: int, cells: list[str], label: str = "token") -> str:
    shown = min(rows, all_rows)
    rest = f" ({shown} of {all_rows} rows)" if shown < all_rows else ""
    width = max(_MARGIN * 2 + columns * _CELL, 8 * len(caption) + _MARGIN)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_MARGIN * 2 + shown * _CELL}" '
        'font-family="monospace" font-size="12">',
        f'<text x="{_MARGIN}" y="{_MARGIN / 2:g}">{escape(caption + rest)}</text>',
        *_labels(shown, label),
        *cells,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _labels(rows: int, label: str) -> Iterator[str]:
    for row in np.arange(0, rows, 8):
        y = _MARGIN + row * _CELL + _CELL * 0.68
        yield f'<text x="{_MARGIN - 6}" y="{y:g}" text-anchor="end">{label} {row}</text>'
