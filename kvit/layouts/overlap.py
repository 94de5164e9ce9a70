"""Where the rows of a cache lie, and whether pages can be rewritten without reading what was already overwritten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kvit import codecs
from kvit.errors import LayoutError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from kvit._native.packed_cache import PackedCache
    from kvit._native.tensor import Tensor
    from kvit.codecs import Codec


class Rows(NamedTuple):
    """Rows of one pool: row (page, token, head) at base + page * page_stride + ..., in chunks if it is cut."""

    name: str
    base: int  # address; in blocks, bytes from a block's beginning
    page_stride: int
    token_stride: int
    head_stride: int
    row_bytes: int
    chunk_bytes: int
    chunk_stride: int
    tokens: int  # of a page
    heads: int
    blocks: int  # address of the table of blocks; 0: pages lie at page_stride
    spans: tuple[tuple[int, int], ...]  # [lowest, one past the highest) address of any row

    @property
    def page_end(self) -> int:
        """One past the last byte of the first page, for strides that are not negative."""
        chunks = self.row_bytes // self.chunk_bytes
        last = (self.tokens - 1) * self.token_stride + (self.heads - 1) * self.head_stride
        return self.base + last + (chunks - 1) * self.chunk_stride + self.chunk_bytes

    def intervals(self, origin: int) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
        """Where the pieces of a page's rows begin and end, counted from `origin`."""
        import numpy

        axes = (
            (self.tokens, self.token_stride),
            (self.heads, self.head_stride),
            (self.row_bytes // self.chunk_bytes, self.chunk_stride),
        )
        begins = numpy.array([self.base - origin], numpy.int64)
        for count, stride in axes:
            begins = (begins[:, None] + numpy.arange(count, dtype=numpy.int64) * stride).reshape(-1)
        return begins, begins + self.chunk_bytes


def rows_of(
    name: str,
    packed: PackedCache,
    sides: tuple[Codec, Codec],
    chunks: tuple[tuple[int, int], tuple[int, int]] | None,
) -> tuple[Rows | None, ...]:
    """What the pools of a cache occupy: K, V, K parameters, V parameters; None where there is none.

    chunks  (bytes, stride) of the pieces that rows of K and of V are cut into; None: rows are dense
    """
    tensors = (packed.k, packed.v, packed.k_params, packed.v_params)
    blocks = 0 if packed.blocks is None else packed.blocks.pointer
    shape = packed.shape
    found: list[Rows | None] = []
    for pool, (tensor, place) in enumerate(zip(tensors, packed.pools, strict=True)):
        if tensor is None:
            found.append(None)
            continue
        row_bytes = sides[pool].dtype.bytes_for(shape[3 + pool]) if pool < 2 else codecs.PARAM_BYTES
        piece = (row_bytes, 0) if chunks is None or pool >= 2 else chunks[pool]
        pieces: tuple[Tensor, ...] = packed.memory if blocks else (tensor,)
        label = f"{name}.{('k', 'v', 'k_params', 'v_params')[pool]}"
        spans = tuple(piece.span() for piece in pieces)
        found.append(Rows(label, *place, row_bytes, *piece, shape[1], shape[2], blocks, spans))
    return tuple(found)


def meet(a: Rows, b: Rows) -> bool:
    """Whether a row of one lies over a row of the other; also where that cannot be told from strides alone."""
    if not any(low < other_high and other_low < high for low, high in a.spans for other_low, other_high in b.spans):
        return False
    if a.blocks != b.blocks or (not a.blocks and (a.page_stride != b.page_stride or a.page_stride <= 0)):
        return True
    return _cross(a.intervals(a.base), b.intervals(a.base), 0 if a.blocks else a.page_stride)


def _cross(a: Any, b: Any, period: int) -> bool:
    """Whether two sets of intervals cross, each repeated at multiples of the period (0: not repeated)."""
    import numpy

    if period:
        (a_begin, a_end), (b_begin, b_end) = ((begin % period, begin % period + end - begin) for begin, end in (a, b))
        b_begin, b_end = (numpy.concatenate([side - period, side, side + period]) for side in (b_begin, b_end))
    else:
        (a_begin, a_end), (b_begin, b_end) = a, b
    order = numpy.argsort(b_begin)
    reach = numpy.maximum.accumulate(b_end[order])  # how far the intervals up to here go
    before = numpy.searchsorted(b_begin[order], a_end, side="left") - 1  # the last that begins before this one ends
    return bool(((before >= 0) & (reach[before] > a_begin)).any())


def refuse_if_they_meet(written: Rows | None, other: Rows | None, why: str) -> None:
    """Raise LayoutError if rows that are written lie over others."""
    if written is not None and other is not None and meet(written, other):
        raise LayoutError(
            f"{written.name} lies over {other.name} (or so close that strides do not tell them apart), and {why}; "
            "give memory apart from it"
        )


def is_in_place(source: Rows, target: Rows) -> bool:
    """Whether each page's new rows lie over its old ones, so that rewriting it in the order of its rows is safe.

    Each new row begins and ends no further than the old one: what is written was read before, in any batch of rows.
    Raises LayoutError where they meet otherwise.
    """
    if not meet(source, target):
        return False
    outer, inner = (
        (source.token_stride, source.tokens), (source.head_stride, source.heads)
    )  # fmt: skip
    if source.token_stride < source.head_stride:
        outer, inner = inner, outer
    nested = inner[0] >= source.row_bytes or inner[1] == 1
    nested = nested and (outer[0] >= (inner[1] - 1) * inner[0] + source.row_bytes or outer[1] == 1)
    pages_apart = bool(source.blocks) or source.page_end - source.base <= source.page_stride
    shrinks = (
        target.base == source.base
        and target.blocks == source.blocks
        and target.page_stride == source.page_stride
        and 0 < target.token_stride <= source.token_stride
        and 0 < target.head_stride <= source.head_stride
        and target.row_bytes <= source.row_bytes
        and source.chunk_bytes == source.row_bytes
        and target.chunk_bytes == target.row_bytes
    )
    if not (nested and pages_apart and shrinks):
        raise LayoutError(
            f"{target.name} lies over {source.name}, and not as a page can be rewritten: in place, a page's new rows "
            "begin where its old ones do, at the same page stride, and at token and head strides that are not larger"
        )
    return True


def refuse_parameters_of_other_pages(params: Rows, source: Rows, source_params: Rows | None) -> None:
    """In place, a page's new parameters may lie in what that page has been until then, or apart from all pages."""
    old = [rows for rows in (source, source_params) if rows is not None]
    if not any(meet(params, rows) for rows in old):
        return
    begin, end = min(rows.base for rows in old), max(rows.page_end for rows in old)
    same_pages = all(rows.page_stride == params.page_stride and rows.blocks == params.blocks for rows in old)
    one_page = bool(source.blocks) or end - begin <= source.page_stride
    if not (same_pages and one_page and begin <= params.base and params.page_end <= end):
        raise LayoutError(
            f"{params.name} lies over {source.name}, but not each page's within that page; give the parameters memory "
            "of their own, or the end of their page"
        )
