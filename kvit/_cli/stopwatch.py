"""How long calls take, by graphs of kvit's own runtime that are replayed between two events."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import kvit

_WARM_UP = 1  # replays before those that count: clocks rise, caches fill
_MOST_CALLS = 256  # of a graph
_LEAST_US = 1e-3  # of a call: events count in steps of half a microsecond, and no call takes none


class Replay:
    """Calls in a graph, each over memory of its own, so that the cache of the GPU holds nothing of the next.

    stream  any but the default one
    calls   each gives work to the stream and does not wait, allocate, or copy from or to the host
    ms      what a replay is to take at least: its own start is spread over so much work
    """

    def __init__(self, stream: kvit.Stream, calls: Sequence[Callable[[], object]], ms: float) -> None:
        self._stream = stream
        self._start, self._end = (kvit.Event(stream.device) for _ in range(2))
        calls[0]()  # a kernel is loaded when it is first launched, which a capture does not allow
        took = self._between(lambda: [call() for call in calls])
        rounds = min(math.ceil(ms / max(took, 1e-3)), _MOST_CALLS // len(calls))
        self._calls = max(1, rounds) * len(calls)
        with kvit.Graph.capture(stream) as self._graph:
            for i in range(self._calls):
                calls[i % len(calls)]()

    def us(self) -> float:
        """Microseconds of a call, by one replay."""
        return max(_LEAST_US, self._between(self._graph.launch) * 1e3 / self._calls)

    def _between(self, give: Callable[[], object]) -> float:
        self._start.record(self._stream)
        give()
        self._end.record(self._stream)
        self._end.synchronize()
        return self._start.elapsed_ms(self._end)


def take_turns(contenders: Sequence[Replay], replays: int) -> list[float]:
    """Median microseconds of a call of each. They take turns at replays: clocks and heat are the same for all."""
    times: list[list[float]] = [[] for _ in contenders]
    for turn in range(_WARM_UP + replays):
        for i in range(len(contenders)):
            which = (i + turn) % len(contenders)
            times[which].append(contenders[which].us())
    return [statistics.median(found[_WARM_UP:]) for found in times]
