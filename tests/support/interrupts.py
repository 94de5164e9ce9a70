"""Exceptions at every line of kvit's Python code, as a signal's handler may raise them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import kvit

_OF_KVIT = os.path.dirname(kvit.__file__) + os.sep


class Interrupt(BaseException):
    """What a signal's handler raises: no `except Exception` stops it."""


@contextlib.contextmanager
def interrupt_at(line: int, everywhere: bool = False) -> Iterator[Callable[[], int]]:
    """Raise Interrupt in front of the so many-th line of kvit that runs in the block. Gives how many lines ran.

    everywhere  lines of other Python code count too, such as the methods of a Path
    """
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if not everywhere and not frame.f_code.co_filename.startswith(_OF_KVIT):
            return None
        if event == "line":
            count += 1
            if count == line:
                sys.settrace(None)
                raise Interrupt(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: count
    finally:
        sys.settrace(before)


def at_every_line(
    prepare: Callable[[], Any], call: Callable[[Any], object], step: int = 1, everywhere: bool = False
) -> Iterator[tuple[Any, bool]]:
    """(what `prepare` made, whether the call came to its end), once for every line of kvit that the call runs.

    step        leaves lines out, where a call has very many
    everywhere  as interrupt_at has it

    The last time nothing is raised.
    """
    line, is_done = 1 - step, False
    while not is_done:
        line += step
        prepared = prepare()
        with contextlib.suppress(Interrupt), interrupt_at(line, everywhere):
            call(prepared)
            is_done = True
        yield prepared, is_done


class Signals:
    """A handler of SIGALRM that raises an exception of its own each time, and all that it raised."""

    def __init__(self, kind: type[BaseException]):
        self.kind = kind
        self.raised: list[BaseException] = []

    def handle(self, number: int, frame: Any) -> None:
        self.raised.append(self.kind(7))
        raise self.raised[-1]

    def __enter__(self) -> Signals:
        self.before = signal.signal(signal.SIGALRM, self.handle)
        return self

    def __exit__(self, *problem: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)
