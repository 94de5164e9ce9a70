# The host backend: kernels compiled by g++, loaded from libkvit_host.so, run on ordinary memory.
from os import PathLike
from typing import Any, Literal

def configure(
    *,
    scheduler: Literal["fibers", "threads"] | None = None,
    workers: int | None = None,
    library: str | PathLike[str] | None = None,
    seed: int | None = None,
) -> dict[str, Any]: ...
def kernels() -> list[str]: ...
