"""TurboMind's blocks, which operations read and write in place: caches shared with that engine."""

from __future__ import annotations

from typing import Any

from kvit import _checks, codecs, dtypes
from kvit._native.buffer import Buffer
from kvit._native.packed_cache import PackedCache
from kvit._native.tensor import Tensor
from kvit.codecs import Codec
from kvit.errors import DtypeError, LayoutError, ShapeError
from kvit.layouts.parameters import COMPUTE_DTYPES
from kvit.layouts.views import CacheView, PageTable


class TurboMindBlocks(CacheView):
    """One layer of a cache in TurboMind's blocks, read and written in place: a CacheView like any other.

        block      [layer 0][layer 1] ...
        layer      [head 0 K][head 0 V][head 1 K] ...  [head 0 K params][head 0 V params][head 1 K params] ...
        of a head  page_size rows, side by side; parameters (scale, zero) of a row: 4 bytes

    memory     blocks at a stride: uint8 [pages, bytes of a block]; page i is memory[i].
               With `blocks`: the tensor or tensors that the blocks lie in, whatever their shapes
    page_size  tokens of a block
    kv         how K and V are stored, both alike: "float16", "bfloat16", "int8", "int4"; float8 in memory at a stride
    layer      which of the block's equal layers
    offset     bytes from a block's beginning to the layer, where layers differ; else it follows from `layer`
    blocks     int64 [pages] on the device: addresses of blocks, TurboMind's block_ptrs. Kernels read it when they run.
               An entry that is null or no multiple of 16 is reported by check(); on a GPU, one that points elsewhere is
               as bad as any wrong pointer
    dtype      of queries and parameters; that of kv if it is 16-bit, else bfloat16 if absent
    k_scale, v_scale    of float8, as in CacheView

    Raises ShapeError, DtypeError, DeviceError, LayoutError (rows of the layer out of alignment, float8 with blocks).
    Defined by kvit.reference.turbomind_rows. Source: the engine's block.h.
    """

    def __init__(
        self,
        memory: Any,
        *,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        kv: Any = "bfloat16",
        layer: int = 0,
        offset: int | None = None,
        blocks: Any = None,
        dtype: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
    ):
        shape = page_size, kv_heads, head_dim = _checks.require_counts(
            page_size=page_size, kv_heads=kv_heads, head_dim=head_dim
        )
        pair = codecs.pair_of(kv)
        if pair[0] is not pair[1]:
            raise DtypeError(f"kv is {pair[0]} and {pair[1]}; TurboMind's blocks hold K and V in one codec")
        codec = pair[0]
        self.layer_bytes: int = self.bytes_of_layer(page_size, kv_heads, head_dim, codec)
        self.offset: int = (
            _checks.whole("layer", layer) * self.layer_bytes if offset is None else _checks.whole("offset", offset)
        )
        if self.offset < 0:
            raise ShapeError(f"the layer begins at byte {self.offset} of a block; give a layer or an offset from 0")
        compute = dtypes.dtype_of(dtype) if dtype is not None else None
        if compute is None:
            compute = codec.dtype if codec.dtype in COMPUTE_DTYPES else dtypes.bfloat16
        if blocks is None:
            self._view_at_stride(memory, shape, codec, compute, k_scale, v_scale)
        else:
            if k_scale is not None or v_scale is not None or codec.params == "scale":
                raise LayoutError("float8's scales lie outside of blocks; give memory [pages, bytes] without blocks")
            self._view_blocks(memory, blocks, shape, codec, compute)
        self._block_ids: Buffer | None = None

    @staticmethod
    def bytes_of_layer(page_size: int, kv_heads: int, head_dim: int, kv: Any) -> int:
        """Bytes that one layer takes of a block: K, V and their parameters of page_size tokens."""
        page_size, kv_heads, head_dim = _checks.require_counts(
            page_size=page_size, kv_heads=kv_heads, head_dim=head_dim
        )
        return 2 * kv_heads * page_size * codecs.row_bytes(codecs.codec_of(kv), head_dim)

    def table(self, cu_block_nums: Any, lengths: Any) -> PageTable:
        """TurboMind's own table: sequence s has blocks cu_block_nums[s] to cu_block_nums[s + 1], in order.

        cu_block_nums  int32 [sequences + 1] on the device
        lengths        int32 [sequences] on the device, as PageTable says
        """
        if self._block_ids is None:
            import numpy

            self._block_ids = Buffer.from_numpy(numpy.arange(self.num_pages, dtype=numpy.int32), self.device)
        return PageTable(indptr=cu_block_nums, indices=self._block_ids, lengths=lengths)

    def _pools(
        self, shape: tuple[int, int, int], codec: Codec
    ) -> tuple[tuple[int, int, int, int], tuple[tuple[int, int], ...]]:
        """Where K, V, K parameters and V parameters begin in a block; (token, head) strides of rows, and of those."""
        page_size, kv_heads, head_dim = shape
        row = codec.dtype.bytes_for(head_dim)
        data, params = page_size * row, page_size * codecs.PARAM_BYTES
        first_params = self.offset + 2 * kv_heads * data
        begins = (self.offset, self.offset + data, first_params, first_params + params)
        return begins, ((row, 2 * data), (codecs.PARAM_BYTES, 2 * params))

    def _view_at_stride(
        self, memory: Any, shape: tuple[int, int, int], codec: Codec, compute: dtypes.Dtype, k_scale: Any, v_scale: Any
    ) -> None:
        memory = _checks.tensor("memory", memory, dtypes.uint8)
        _checks.require_shape("memory", memory, pages=None, **{"bytes of a block": None})
        _checks.require_dense("memory", memory)
        if memory.shape[1] < self.offset + self.layer_bytes:
            raise ShapeError(
                f"memory has blocks of {memory.shape[1]} bytes; the layer takes bytes {self.offset} to "
                f"{self.offset + self.layer_bytes}"
            )
        page_size, kv_heads, head_dim = shape
        begins, (data, params) = self._pools(shape, codec)

        def pool(begin: int, dtype: dtypes.Dtype, strides: tuple[int, int], channels: int) -> Tensor:
            steps = (memory.strides[0], strides[1], strides[0], dtype.bits // 8)
            return Tensor.from_pointer(
                memory.pointer + begin,
                (memory.shape[0], kv_heads, page_size, channels),
                dtype,
                memory.device,
                strides=steps,
                readonly=memory.readonly,
                owner=memory,
            )

        keeps_params = codec.params == "pair"
        super().__init__(
            pool(begins[0], codec.dtype, data, head_dim),
            pool(begins[1], codec.dtype, data, head_dim),
            layout="HND",
            kv=codec,
            k_params=pool(begins[2], compute, params, 2) if keeps_params else None,
            v_params=pool(begins[3], compute, params, 2) if keeps_params else None,
            k_scale=k_scale,
            v_scale=v_scale,
            dtype=compute,
        )

    def _view_blocks(
        self, memory: Any, blocks: Any, shape: tuple[int, int, int], codec: Codec, compute: dtypes.Dtype
    ) -> None:
        blocks = _checks.tensor("blocks", blocks, dtypes.int64)
        _checks.require_shape("blocks", blocks, pages=None)
        _checks.require_dense("blocks", blocks)
        pieces = _pieces(memory)
        _checks.require_device(blocks.device, **{f"memory[{i}]": piece for i, piece in enumerate(pieces)})
        begins, (data, params) = self._pools(shape, codec)
        if any(number % _checks.VECTOR_BYTES for number in (*begins[:2], *data)):
            raise LayoutError(
                f"K and V begin {begins[0]} and {begins[1]} bytes into a block, rows {data[0]} bytes apart; all must "
                f"be multiples of {_checks.VECTOR_BYTES}"
            )
        readonly = any(piece.readonly for piece in pieces)

        def no_rows(dtype: dtypes.Dtype) -> Tensor:
            return Tensor.from_pointer(0, (0,), dtype, blocks.device, readonly=readonly)

        self.k = self.v = no_rows(codec.dtype)
        self.k_params = self.v_params = no_rows(compute) if codec.params == "pair" else None
        if compute not in COMPUTE_DTYPES or (codec.dtype in COMPUTE_DTYPES and codec.dtype is not compute):
            raise DtypeError(
                f"dtype is {compute} and kv {codec}; queries are float16 or bfloat16, and like 16-bit rows"
            )
        self.codecs, self.dtype, self.layout = (codec, codec), compute, "HND"
        self.num_pages = blocks.shape[0]
        self.page_size, self.kv_heads, self.k_dim = shape
        self.v_dim = self.k_dim
        steps = (0, *data), (0, *params)
        self.packed = PackedCache(
            self.k, self.v, steps[0], steps[0], self.num_pages, *shape, self.v_dim, compute.code,
            self.k_params, self.v_params, steps[1], steps[1],
            blocks=blocks, offsets=begins, memory=pieces, hadamard=(codec.hadamard_block(self.k_dim),) * 2,
        )  # fmt: skip

    @property
    def blocks(self) -> Tensor | None:
        """Addresses of the blocks; None if they lie at a stride."""
        return self.packed.blocks

    @property
    def nbytes(self) -> int:
        """Bytes of this layer in all blocks."""
        return self.num_pages * self.layer_bytes

    @_checks.words_of_made
    def __repr__(self) -> str:
        where = "at a stride" if self.blocks is None else "through pointers"
        return f"TurboMindBlocks({super().__repr__()[10:-1]}, layer at byte {self.offset}, {where})"


def _pieces(memory: Any) -> tuple[Tensor, ...]:
    """The tensors of `memory`, one or several."""
    pieces = memory if isinstance(memory, list | tuple) else (memory,)
    return tuple(_checks.tensor("memory", piece) for piece in pieces)
