"""Work captured from a stream, to be launched as a whole."""

from types import TracebackType
from typing import Any

from kvit._native.stream import Stream

class Graph:
    """Work of one stream, captured once and launched as a whole as often as wanted, for one driver call."""

    @staticmethod
    def capture(stream: Stream) -> Graph: ...
    def __enter__(self) -> Graph: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def launch(self, stream: Any = None) -> None: ...
    @property
    def device(self) -> str: ...
    @property
    def is_ready(self) -> bool: ...
