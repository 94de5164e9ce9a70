"""What the decode benchmark measures: cells, their sequences, how many bytes each reads, and the grid. Needs no GPU."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from anchors import CARDS, Anchor, of_card
from numpy.typing import NDArray

from kvit import codecs, dtypes
from kvit.errors import DtypeError

ROTATED_BYTES = 220_000_000
"""Inputs of a cell rotate over at least so much memory, so that no L2 cache holds what is read again."""

MOST_COPIES = 64
"""A cell too small to reach that many bytes in so many caches rotates over so many."""

LAYOUTS = ("NHD", "HND")
LENGTHS = ("uniform", "lognormal", "giant")
_SEED = 20
_SIGMA = 1.0  # of the logarithm of lengths: one sequence in six is 2.7 times the median or longer


@dataclass(frozen=True)
class Cell:
    """A batch of sequences, each with one new token, and how their K and V are kept."""

    batch: int
    context: int  # tokens of a sequence; their mean where lengths differ
    query_heads: int = 32
    kv_heads: int = 8
    kv: str = "bfloat16"  # codec of K and V, or K+V
    head_dim: int = 128
    page_size: int = 64
    layout: str = "NHD"
    lengths: str = "uniform"  # "lognormal"; "giant": the first sequence has half of all tokens

    def __str__(self) -> str:
        words = [f"{self.batch}x{self.context}:{self.query_heads}/{self.kv_heads}"]
        words += [self.kv] * (self.kv != "bfloat16") + [f"d{self.head_dim}"] * (self.head_dim != 128)
        words += [f"p{self.page_size}"] * (self.page_size != 64) + [self.layout]
        return ",".join(words + [self.lengths] * (self.lengths != "uniform"))

    @classmethod
    def parse(cls, text: str) -> Cell:
        """The cell of a name: BATCHxCONTEXT[:QUERY/KV], then by commas, in any order, what is not the default.

        Raises ValueError.
        """
        first, *words = text.split(",")
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?::([1-9]\d*)/([1-9]\d*))?", first)
        if match is None:
            raise ValueError(f"{text!r} is no cell; cells look like 64x8192 or 16x4096:32/8,int8,d64,p16,HND,lognormal")
        cell = cls(*(int(number) for number in match.groups() if number is not None))
        for word in words:
            cell = replace(cell, **_field(word, text))
        if cell.query_heads % cell.kv_heads:
            raise ValueError(f"{text!r}: query heads must be a multiple of KV heads")
        return cell

    @property
    def codecs(self) -> tuple[codecs.Codec, codecs.Codec]:
        """Of K and of V."""
        k, _, v = self.kv.partition("+")
        return codecs.codec_of(k), codecs.codec_of(v or k)

    @property
    def dtype(self) -> dtypes.Dtype:
        """Of queries and outputs."""
        return dtypes.float16 if dtypes.float16 in {codec.dtype for codec in self.codecs} else dtypes.bfloat16

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.query_heads // self.kv_heads

    def tokens(self) -> NDArray[np.int32]:
        """Tokens of each sequence: the same in every run, and as many in all whatever `lengths` says."""
        total = self.batch * self.context
        if self.lengths == "lognormal":
            shares = np.exp(_SIGMA * np.random.default_rng([_SEED, self.batch]).standard_normal(self.batch))
        elif self.lengths == "giant" and self.batch > 1:
            shares = np.array([self.batch - 1.0] + [1.0] * (self.batch - 1))
        else:
            shares = np.ones(self.batch)
        ends = np.rint(np.cumsum(shares) / shares.sum() * total).astype(np.int64)
        return np.diff(ends, prepend=0).astype(np.int32)

    def slots(self) -> NDArray[np.int32]:
        """Pages of each sequence."""
        return -(-self.tokens() // self.page_size)

    @property
    def token_bytes(self) -> int:
        """K, V and their parameters of a token."""
        return self.kv_heads * codecs.pair_bytes(*self.codecs, self.head_dim)

    @property
    def kv_bytes(self) -> int:
        """Bytes that the cell has to read: codes and parameters of its tokens."""
        return self.token_bytes * self.batch * self.context

    def row_bytes(self, codec: codecs.Codec) -> int:
        """Codes of a token and KV head."""
        return codec.dtype.bytes_for(self.head_dim)

    @property
    def copies(self) -> int:
        """How many caches the cell's calls rotate over."""
        return min(MOST_COPIES, max(1, math.ceil(ROTATED_BYTES / self.kv_bytes)))


@dataclass(frozen=True)
class Ceiling:
    """The fastest that anything read memory in this run."""

    gbps: float  # 10**9 bytes per second
    num_bytes: int
    kernel: str
    grid: int


def param_bytes(codec: codecs.Codec) -> int:
    """Of a token and KV head. A float8 pool has one scale for all."""
    return codecs.PARAM_BYTES if codec.params == "pair" else 0


def _field(word: str, text: str) -> dict[str, int | str]:
    """The field of a cell that a word of its name gives."""
    number = re.fullmatch(r"([dp])([1-9]\d*)", word)
    if number is not None:
        return {"head_dim" if number[1] == "d" else "page_size": int(number[2])}
    if word in LAYOUTS:
        return {"layout": word}
    if word in LENGTHS:
        return {"lengths": word}
    try:
        names = [codecs.codec_of(name).name for name in word.split("+")]
    except DtypeError as error:
        raise ValueError(f"{text!r}: {word!r} is no codec, d64, p16, layout or kind of lengths: {error}") from None
    if len(names) > 2:
        raise ValueError(f"{text!r}: {word!r} names {len(names)} codecs; give one, or K+V")
    return {"kv": "+".join(dict.fromkeys(names))}


def places(text: str, layouts: Sequence[str] = LAYOUTS) -> list[Cell]:
    """The cell of a name, or, where the name has no layout, a cell in each of `layouts`. Raises ValueError."""
    cell, is_placed = Cell.parse(text), set(text.split(",")) & set(LAYOUTS)
    return [cell] if is_placed else [replace(cell, layout=layout) for layout in layouts]


def anchors_of(card: str) -> dict[Cell, Anchor]:
    """What is known of the card of this name, on the day when it was measured: nothing of most cards."""
    known = of_card(card)
    return {cell: anchor for text, anchor in known.cells.items() for cell in places(text)} if known else {}


def _family(texts: Iterable[str], **fields: Sequence[int | str]) -> tuple[Cell, ...]:
    """Cells of these names, each with every value of one field."""
    ((field, values),) = fields.items()
    return tuple(replace(Cell.parse(text), **{field: value}) for text in texts for value in values)


FAMILIES: dict[str, tuple[Cell, ...]] = {
    "anchors": tuple(dict.fromkeys(replace(Cell.parse(text), layout="NHD") for card in CARDS for text in card.cells)),
    "pages": _family(("8x4096", "64x8192", "8x4096,int8", "64x8192,int8"), page_size=(1, 8, 16, 64, 256)),
    "groups": _family(("16x8192", "16x8192,int8", "16x8192,int4"), query_heads=(8, 16, 32, 64, 128)),
    "short": _family(("512x512", "128x1024"), kv=("bfloat16", "int8", "int4")),
    "d256": _family(("16x4096:16/4,d256",), kv=("bfloat16", "int8")),
    "ragged": _family(("16x8192", "64x8192", "16x8192,int8", "64x8192,int8"), lengths=LENGTHS),
}
"""What is measured for which question, in one layout; a cell may answer several."""


def _placed(cells: Iterable[Cell], layouts: Sequence[str]) -> Iterator[Cell]:
    """Each in every layout. In pages of one token all layouts are one."""
    for cell in cells:
        for layout in layouts[:1] if cell.page_size == 1 else layouts:
            yield replace(cell, layout=layout)


def select(wanted: Sequence[str], layouts: Sequence[str]) -> list[Cell]:
    """The cells of these names, families, and patterns of names; of the whole grid where nothing is named.

    A name may be of a cell that is not on the grid; without a layout in it, it stands for a cell in each of `layouts`.
    Raises ValueError.
    """
    grid = {name: list(_placed(cells, layouts)) for name, cells in FAMILIES.items()}
    every = [cell for cells in grid.values() for cell in cells]
    found: list[Cell] = [] if wanted else every
    for text in wanted:
        matching = grid.get(text) or [cell for cell in every if fnmatch.fnmatchcase(str(cell), text)]
        if not matching and any(sign in text for sign in "*?["):
            raise ValueError(f"no cell of the grid matches {text!r}; families are {', '.join(FAMILIES)}")
        if not matching:
            matching = places(text, layouts)
        found += matching
    return list(dict.fromkeys(found))
