"""How tokens of a MixedCache leave 16 bits: rows of whole pages are decoded, encoded, and dropped where they were."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from kvit._native.buffer import Buffer
from kvit._native.stream import Stream
from kvit.cache import calls
from kvit.cache.mixed_sequence import MixedSequence
from kvit.cache.storage import upload
from kvit.errors import CacheFull


def aged(cache: Any, exact: int) -> int:
    """How many of a sequence's `exact` tokens in 16 bits leave the window: whole pages, behind the sinks."""
    return max(0, exact - cache.sinks - cache.window) // cache.page_size * cache.page_size


def require_room(cache: Any, members: tuple[MixedSequence, ...], ages: list[int]) -> None:
    """Raise CacheFull if codes of so many tokens have no place."""
    needed = cache.coded.pages_needed([seq.coded for seq in members], ages) if any(ages) else 0
    free = cache.coded.num_free_pages
    if needed > free:
        raise CacheFull(
            f"tokens that leave the window need {needed} more pages of codes, and {free} are free of "
            f"{cache.coded.num_pages}; free or truncate sequences, or make a cache of more pages"
        )


def age(cache: Any, members: tuple[MixedSequence, ...], ages: list[int], stream: Stream) -> None:
    """Encode the first tokens behind the sinks of each sequence, and drop them from the pages in 16 bits."""
    moved = [(seq, count) for seq, count in zip(members, ages, strict=True) if count]
    if not moved:
        return
    seqs, counts = [seq for seq, _ in moved], [count for _, count in moved]
    ends = [cache.sinks + count for count in counts]
    table = calls.table_of([(seq.exact.pages, end) for seq, end in zip(seqs, ends, strict=True)], 1, stream)
    indptr = upload([0, *accumulate(counts)], stream)
    with cache.coded.step([seq.coded for seq in seqs], counts, stream=stream) as step:
        rows: dict[tuple[int, int], list[Buffer]] = {}  # layers alike use the same memory, one after another
        for place, target in zip(cache.exact.places, cache.coded.layers, strict=True):
            key = (target.kv_heads, target.head_dim)
            if key not in rows:
                rows[key] = [Buffer.empty((sum(counts), *key), target.dtype, cache.device, stream) for _ in range(2)]
            place.group.gather(place.rows, table, query_indptr=indptr, out=tuple(rows[key]), stream=stream)
            target.append(step, *rows[key], rotate=False)
        for seq, count in moved:
            seq.begin_ageing(count)
    for seq, _ in moved:
        seq.settle(stream)


def gathered(
    cache: Any, members: tuple[MixedSequence, ...], layer: int, stream: Stream
) -> tuple[Buffer, Buffer, Buffer]:
    """k, v and indptr, as MixedCache.gather says."""
    starts = [0, *accumulate(map(len, members))]
    exact, coded = cache.exact.layer(layer), cache.coded.layer(layer)
    shape = (starts[-1], exact.kv_heads, exact.head_dim)
    k, v = (Buffer.empty(shape, exact.dtype, cache.device, stream) for _ in range(2))
    for begin, seq in zip(starts, members, strict=False):
        first = min(cache.sinks, len(seq.exact)) if len(seq.coded) else len(seq.exact)
        between = begin + first + len(seq.coded)
        end = between + len(seq.exact) - first
        place = cache.exact.places[layer]
        for low, high, length in ((begin, begin + first, first), (between, end, len(seq.exact))):
            if high > low:
                table = calls.table_of([(seq.exact.pages, length)], 1, stream)
                place.group.gather(place.rows, table, out=(k[low:high], v[low:high]), stream=stream)
        if len(seq.coded):
            coded.gather([seq.coded], out=(k[begin + first : between], v[begin + first : between]), stream=stream)
    return k, v, upload(starts, stream)
