# A view of somebody's memory: what every operation takes.
from collections.abc import Sequence
from typing import Any

from kvit._native.context import Device
from kvit.dtypes import Dtype

class Tensor:
    @staticmethod
    def wrap(source: Any, dtype: Any = None, stream: int = 0) -> Tensor: ...
    @staticmethod
    def from_pointer(
        pointer: int,
        shape: Sequence[int],
        dtype: Any,
        device: str | Device = "host",
        *,
        strides: Sequence[int] | None = None,
        readonly: bool = False,
        owner: Any = None,
    ) -> Tensor: ...
    def span(self) -> tuple[int, int]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def device(self) -> str: ...
    @property
    def pointer(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
