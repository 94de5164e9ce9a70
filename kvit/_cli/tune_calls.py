"""What `kvit tune` measures: ways to keep K and V, and calls over them, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from kvit.errors import KernelMissing
from kvit.selection import registry

_FIRST_CODECS = ("b16", "i8", "i4", "e4m3")  # the usual ones
_FIRST_HEAD_DIMS = (128, 64, 256)
_PAGES: tuple[tuple[Literal["NHD", "HND"], int], ...] = (("HND", 64), ("NHD", 64), ("HND", 16))

SMALL_PAGES = 31
"""Most tokens of a page for which the pages of 16 speak; those of 64 speak for larger ones."""


class Store(NamedTuple):
    """How K and V are kept."""

    kv: str  # axis value of the kernels
    head_dim: int
    layout: Literal["NHD", "HND"]
    page_size: int

    def __str__(self) -> str:
        return f"{self.kv}, head_dim {self.head_dim}, {self.layout}, pages of {self.page_size}"


class Load(NamedTuple):
    """A batch of sequences that are equally long."""

    batch: int
    context: int  # tokens of each, a multiple of 64, the new ones among them
    new_tokens: int  # of each

    def __str__(self) -> str:
        new = "1 new token" if self.new_tokens == 1 else f"{self.new_tokens} new tokens"
        return f"{self.batch} x {self.context} with {new}"


class Rung(NamedTuple):
    """Calls of so many query rows for each KV head, for which the choice is the same, and the loads to measure."""

    least_rows: int
    most_rows: int | None  # None: any number
    loads: tuple[Load, ...]


class Work(NamedTuple):
    """Calls of one device: how large they are."""

    kv_heads: int
    group: int  # query heads that share a KV head
    rungs: tuple[Rung, ...]
    replay_ms: float  # of a graph, at least
    replays: int  # that count

    @property
    def most_tokens(self) -> int:
        """Of the largest load, new ones and old."""
        return max(load.batch * load.context for rung in self.rungs for load in rung.loads)


def _rung(least_rows: int, most_rows: int | None, new_tokens: int, *shapes: tuple[int, int]) -> Rung:
    return Rung(least_rows, most_rows, tuple(Load(*shape, new_tokens) for shape in shapes))


# Rows of a rung are measured at its upper end, 4 query heads to a KV head, where kernels of 8, 16, 64 and 128 rows
# have the fewest idle; but decode's first with one new token.
_ON_GPU = Work(
    kv_heads=8,
    group=4,
    rungs=(
        _rung(1, 8, 1, (1, 4096), (8, 4096), (64, 2048)),
        _rung(9, 16, 4, (1, 4096), (8, 4096), (64, 2048)),
        _rung(17, 32, 8, (1, 4096), (8, 4096)),
        _rung(33, 48, 12, (1, 4096), (8, 4096)),
        _rung(49, 64, 16, (1, 4096), (8, 4096)),
        _rung(65, 256, 64, (1, 4096), (8, 2048)),
        _rung(257, None, 512, (1, 4096), (8, 2048)),
    ),
    replay_ms=1.0,
    replays=5,
)
# As many kinds of calls, but tiny ones: the host computes them to try the command, and its times mean nothing.
_ON_HOST = Work(
    kv_heads=2,
    group=4,
    rungs=(
        _rung(1, 8, 1, (1, 64), (2, 64)),
        _rung(9, 16, 4, (2, 64)),
        _rung(17, 64, 16, (2, 64)),
        _rung(65, None, 40, (1, 128)),
    ),
    replay_ms=0.0,
    replays=1,
)


def work_on(is_host: bool) -> Work:
    """The calls that are measured on a GPU, or on the host."""
    return _ON_HOST if is_host else _ON_GPU


def stores() -> list[Store]:
    """Every way to keep K and V that has plain kernels of its own, the usual ones first.

    Rows of other channels, and those that K and V share, are left to the rules that kvit ships.
    Raises KernelMissing where nothing is built.
    """
    built = {(str(kernel.axes["kv"]), kernel.axes["head_dim"]) for kernel in registry.candidates("decode")}
    plain = [(kv, head_dim) for kv, head_dim in _in_order(built) if _is_plain(kv, head_dim)]
    if not plain:
        raise KernelMissing("no decode kernel is built, so there is nothing to measure; reinstall kvit")
    return [Store(*key, *pages) for key in plain for pages in _PAGES]


def _in_order(built: set[tuple[str, registry.AxisValue]]) -> Iterator[tuple[str, int]]:
    codecs = sorted({kv for kv, _ in built} - set(_FIRST_CODECS))
    for head_dim in _FIRST_HEAD_DIMS:
        yield from ((kv, head_dim) for kv in (*_FIRST_CODECS, *codecs) if (kv, head_dim) in built)


def _is_plain(kv: str, head_dim: int) -> bool:
    return bool(registry.candidates("decode", dtype="bf16", kv=kv, head_dim=head_dim, variant="plain"))
