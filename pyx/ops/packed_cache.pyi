# K and V of a cache as kernels take them, packed once.
from kvit._native.tensor import Tensor

class PackedCache:
    """K and V of a cache as kernels take them."""

    k: Tensor
    v: Tensor
    k_params: Tensor | None
    v_params: Tensor | None
    blocks: Tensor | None
    memory: tuple[Tensor, ...]
    meets_itself: bool
    @property
    def shape(self) -> tuple[int, int, int, int, int]: ...
    @property
    def pools(self) -> tuple[tuple[int, int, int, int], ...]: ...
    @property
    def may_be_packed(self) -> bool: ...
    def __init__(
        self,
        k: Tensor,
        v: Tensor,
        k_strides: tuple[int, int, int],
        v_strides: tuple[int, int, int],
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        k_dim: int,
        v_dim: int,
        dtype: int = 0,
        k_params: Tensor | None = None,
        v_params: Tensor | None = None,
        k_params_strides: tuple[int, int, int] | None = None,
        v_params_strides: tuple[int, int, int] | None = None,
        blocks: Tensor | None = None,
        offsets: tuple[int, int, int, int] | None = None,
        memory: tuple[Tensor, ...] = (),
        hadamard: tuple[int, int] = (0, 0),
    ) -> None: ...
    @staticmethod
    def places(
        k: Tensor, v: Tensor, layout: str, page_size: int | None
    ) -> tuple[int, int, int, int, int, tuple[int, int, int], tuple[int, int, int]] | None: ...

class HoldsCache:
    """Base of kvit.CacheView."""

    packed: PackedCache
