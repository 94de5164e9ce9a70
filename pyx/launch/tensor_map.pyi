# The tensor maps of K and V of a cache, for kernels that copy by them.
from typing import Any

def pack_tensor_map(
    device: Any,
    base: int,
    strides: tuple[int, int, int],
    *,
    row_bytes: int,
    num_pages: int,
    page_size: int,
    num_heads: int,
    box_tokens: int,
) -> bytes: ...
