"""Work in several threads that begin together."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_side_by_side(work: Callable[[int], Any], count: int = 8) -> list[Any]:
    """work(0), work(1), ... each in a thread, all at once. Returns what they return; raises what one did."""
    barrier = threading.Barrier(count)

    def begin(i: int) -> Any:
        barrier.wait()
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))
