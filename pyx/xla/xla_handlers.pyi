# The handlers that XLA calls for kvit's custom calls.
from collections.abc import Callable
from typing import Any

from kvit._native.tensor import Tensor

def install(
    function: Callable[[bytes, list[Tensor], list[Tensor], int, str], Callable[[], Any]],
) -> None: ...
def forget() -> None: ...
def capsules() -> dict[str, Any]: ...
