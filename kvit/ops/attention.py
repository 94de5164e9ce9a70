"""Attention over pages: the operation on raw buffers, and the same on a PagedCache."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import _checks, _explain, codecs, dtypes, registry, tuning
from ._batch import counts_of, sequences_of
from ._faults import FaultRecord
from ._native import ops
from ._native.attention_call import AttentionCall
from ._native.buffer import Buffer
from ._native.context import Device
from ._native.stream import Stream
from ._native.tensor import Tensor
from ._operation import Launch, Operation, split_tokens
from .errors import DtypeError, LayoutError, ShapeError
from .registry import Entry
from .views import CacheView, PageTable

if TYPE_CHECKING:
    from .cache import PagedCache
    from .sequence import Sequence


class Attention(Operation, AttentionCall):
    """Attention of new tokens to the cache, for one shape of cache. Chooses its kernel once; a call is one launch.

    view                 CacheView of the caches to come: their dtype, KV heads, head_dim and layout count, not their
                         memory
    query_heads          a multiple of the view's KV heads; query head h reads KV head h // (query_heads / kv_heads)
    dtype                of queries and outputs; the view's if absent
    scale                of the scores, before exp; head_dim ** -0.5 if absent
    causal               query i of the n new tokens of a sequence sees its keys up to length - n + i; else all of them
    tokens_per_sequence  how many new tokens a sequence usually has: a hint for the choice of the kernel, nothing more
    workspace            the `workspace` of another Attention to share; calls that share one must not run side by side
    kernel               symbol of the kernel to use, or some of its axes, {"rows": 16}; the one that kvit.tuning finds
                         cheapest if absent. `explain` shows the candidates
    split_tokens         cuts every head of every sequence at multiples of so many tokens, a multiple of the kernel's
                         tile (`entry.facts["tile_tokens"]`); where the work is cut evenly over the GPU if absent
    reads_ahead          lets a launch read what is old before the launch in front of it in the stream has ended:
                         lengths, `tokens`, page tables, float8's scales, and K and V with their parameters of all but
                         the new tokens. Whoever says True promises that the launch in front writes none of these. The
                         new tokens' K and V, and q, are read after it.
                         On GPUs of compute capability 9.0 and more that hides what a launch must do before its first
                         bytes arrive; elsewhere, and in calls by graph, it changes nothing. Launches of kvit let the
                         next one start only when the one before them has ended; if the one in front lets it start
                         earlier, the promise is also about those before
    launch               "direct": every call launches the kernel; on GPUs from compute capability 9.0 on it may begin
                         before the kernel before it in the stream has ended. "graph": every call launches a
                         graph of the kernel, whose parameters it sets before: less time on the host, but it begins
                         when all before it has ended, and calls take turns, on whatever streams they are. In a capture
                         both are the same

    What a call gives is the same each time, bit for bit. Where a head is cut decides the last bits, though: without
    split_tokens that depends on the whole batch and on the GPU's size. With it a sequence gives the same bits in any
    batch, at any place in it, and on any number of multiprocessors; where causal, so does each of its new tokens,
    however many come with it. A sequence of more than 1024 splits is cut at multiples of the least 2**i * split_tokens
    that leave 1024 or fewer.

    Raises ShapeError (heads, split_tokens), KernelMissing (nothing built covers the shape, or not as `kernel` says),
    NoGpuError, LayoutError (no such kernel reads pages like the view's), ValueError (an unknown launch).
    Defined by kvit.reference.paged_attention. Splitting and merging: Dao et al., Flash-Decoding, 2023; the even cut of
    the work: Osama et al., Stream-K, 2023.
    """

    def __init__(
        self,
        view: CacheView,
        query_heads: int,
        *,
        dtype: Any = None,
        scale: float | None = None,
        causal: bool = True,
        tokens_per_sequence: int = 1,
        workspace: Tensor | None = None,
        kernel: tuning.Wanted = None,
        split_tokens: int | None = None,
        reads_ahead: bool = False,
        launch: Launch = "direct",
        _faults: FaultRecord | None = None,
    ):
        group = _checks.group_size(query_heads, view.kv_heads)
        Operation.__init__(self, view, _faults, launch)
        self.query_heads = query_heads
        if dtype is not None:
            self.dtype = dtypes.dtype_of(dtype)
        self.scale = view.head_dim**-0.5 if scale is None else float(scale)
        self.causal = bool(causal)
        self.reads_ahead = bool(reads_ahead)
        device = Device.of(self.device)
        self._choice = _choose(self.dtype, view, group * max(1, tokens_per_sequence), device, kernel)
        self._token_bytes = _token_bytes(view)
        self.entry = self._choice.entry
        self.split_tokens = None if split_tokens is None else _whole_tiles(split_tokens, self.entry)

        self.grid: int = device.num_sms * self.entry.facts["ctas_per_sm"]
        self._strands = math.gcd(self.grid, view.kv_heads)
        self.workspace: Tensor = self._make_workspace() if workspace is None else self._checked(workspace)
        kernel_launch = ops.AttentionLaunch(
            self.entry,
            device,
            self.grid,
            self._strands,
            Tensor.from_pointer(
                self.workspace.pointer, (self.workspace_bytes // 4,), "float32", self.device, owner=self.workspace
            ),
            self._faults.buffer,
            query_heads,
            group,
            self.scale,
            self.causal,
            (self.split_tokens or 0) // self.entry.facts["tile_tokens"],
            self.reads_ahead,
            launch == "graph",
        )
        AttentionCall.__init__(self, kernel_launch, self._faults, view._packed, self.dtype.code)

    @property
    def workspace_bytes(self) -> int:
        """Bytes that calls use besides their arguments: fixed by the GPU and the shape, whatever the batch."""
        # What a CTA leaves for others to join: of each row its outputs, and 16 bytes of their maximum and sum.
        parts = self.entry.facts["parts" if self.split_tokens is None else "split_parts"]
        return self.grid * parts * self.entry.axes["rows"] * (self.head_dim + 2) * 4

    def _make_workspace(self) -> Buffer:
        workspace = Buffer.empty(self.workspace_bytes, "uint8", self.device)
        workspace.fill_bytes(0)  # which says that nobody has written it yet; every call leaves it so
        workspace.stream.synchronize()
        return workspace

    def _checked(self, workspace: Tensor) -> Tensor:
        _checks.require_device(self.device, workspace=workspace)
        if workspace.nbytes != self.workspace_bytes:
            raise ShapeError(
                f"workspace has {workspace.nbytes} bytes and this operation needs {self.workspace_bytes}; "
                "share one between operations of the same kernel, either all with split_tokens or all without"
            )
        return workspace

    def _fitting(
        self,
        q: Tensor,
        view: CacheView,
        table: PageTable,
        out: Tensor | None,
        lse: Tensor | None,
        tokens: Tensor | None,
        queue: Stream,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, int]:
        """For a call that does not fit as it is: (q, out, lse, tokens, rows of each sequence) that do, or why not.

        Raises what __call__ says. Raw 16-bit integers become the operation's dtype here.
        """
        if not isinstance(view, CacheView) or not isinstance(table, PageTable):
            raise TypeError(
                f"view is a {type(view).__name__} and table a {type(table).__name__}; give a kvit.CacheView and a "
                "kvit.PageTable, or a PagedCache and sequences to kvit.attention"
            )
        q = _checks.tensor("q", q, self.dtype)
        _checks.require_shape("q", q, tokens=None, query_heads=self.query_heads, head_dim=self.head_dim)
        _checks.require_rows("q", q)
        self._check_view(view)
        if why := tuning.why_not(self.entry, _call(view, self._choice.call.rows), None, "host"):
            raise LayoutError(f"{self.entry.symbol} {why}; make another Attention for this view")
        each, indptr = split_tokens("q", q, table.num_sequences, tokens, queue)
        if out is not None:
            out = _checks.tensor("out", out, self.dtype)
            if out.shape != q.shape:
                raise ShapeError(f"out has shape {list(out.shape)} and q {list(q.shape)}; they must be the same")
            _checks.require_rows("out", out)
            _checks.require_writable("out", out)
        if lse is not None:
            lse = _checks.lse("lse", lse, q.shape)
            _checks.require_writable("lse", lse)
        _checks.require_device(self.device, q=q, view=view.k, table=table.lengths, out=out, lse=lse, tokens=indptr)
        return q, out, lse, indptr, each

    def explain(
        self,
        lengths: Iterable[int] | None = None,
        *,
        batch: int | None = None,
        context: int | None = None,
        gbps: float | None = None,
    ) -> str:
        """Which kernel was chosen among which, and why; what a launch of it takes.

        lengths         tokens of each sequence of a call, or
        batch, context  how many sequences, and the tokens of each: adds what such a call reads, how its tiles are dealt
                        out, and how long reading takes at least
        gbps            10**9 bytes per second for that; what the maker says of the card's memory if absent

        Raises ShapeError (a negative length, or lengths together with batch and context).
        """
        return _explain.explain(self, _explain.counted(lengths, batch, context), gbps)

    def __repr__(self) -> str:
        return (
            f"Attention({self.entry.symbol}, {self.query_heads} query heads, {self.kv_heads} KV heads, {self.device})"
        )


def attention(
    q: Any,
    cache: PagedCache,
    seqs: Iterable[Sequence],
    lengths: Iterable[int] | None = None,
    *,
    out: Any = None,
    lse: Any = None,
    return_lse: bool = False,
    causal: bool = True,
    scale: float | None = None,
    stream: Any = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend the last tokens of each sequence to all its tokens in the cache.

    q           [tokens, query_heads, head_dim], sequence after sequence, in the cache's dtype
    seqs        sequences of `cache`; their new K and V were appended before
    lengths     how many rows of q each sequence has; equally many if absent
    out         like q, written in place; allocated if absent
    lse         float32 [tokens, query_heads], written in place; allocated if absent and return_lse
    causal      query i of n sees keys up to length - n + i; else all keys of its sequence
    scale       of the scores, before exp; head_dim ** -0.5 if absent
    stream      Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

    Returns out, or (out, lse) if return_lse. A sequence with no tokens gives zeros and lse = -inf.
    Raises ShapeError, DtypeError, DeviceError, LayoutError, SequenceFreed, KernelMissing; nothing is launched then.
    Defined by kvit.reference.paged_attention.
    """
    queue = Stream.wrap(stream, cache.device)
    q = _checks.tensor("q", q, None, queue)
    _checks.require_shape("q", q, tokens=None, query_heads=None, head_dim=cache.head_dim)
    held = sequences_of(cache, seqs)
    counts = counts_of("q", q.shape[0], len(held), lengths)
    op = cache._attention(q.shape[1], max(counts, default=1), causal, scale)
    q = _checks.tensor("q", q, op.dtype)
    if return_lse and lse is None:
        lse = Buffer.empty(q.shape[:2], "float32", cache.device, queue)
    table, indptr = cache._tables.send([(seq.pages, len(seq)) for seq in held], counts, queue)
    out = op(q, cache.view, table, out=out, lse=lse, tokens=indptr, stream=queue)
    return (out, lse) if return_lse else out


def _choose(dtype: dtypes.Dtype, view: CacheView, rows: int, device: Device, kernel: tuning.Wanted) -> tuning.Choice:
    """The decode kernel for `rows` query rows of each KV head of a sequence."""
    key = {"dtype": dtype.short, "kv": codecs.key_of(*view.codecs), "head_dim": view.head_dim}
    found = registry.candidates("decode", **key)
    if not found:
        registry.find("decode", **key)  # raises KernelMissing and says what is built
    if dtype is not view.dtype:
        raise DtypeError(f"queries of {dtype} over a cache for {view.dtype}; both must be the same")
    return tuning.choose(found, _call(view, rows), device.compute_capability, wanted=kernel)


def _whole_tiles(split_tokens: int, entry: Entry) -> int:
    """split_tokens, if it is a number of whole tiles of the kernel. Raises ShapeError."""
    tokens, tile = operator.index(split_tokens), entry.facts["tile_tokens"]
    most = (2**31 - 1) // tile * tile
    if tokens % tile or not 0 < tokens <= most:
        below = tokens // tile * tile
        nearest = sorted({min(max(near, tile), most) for near in (below, below + tile)})
        raise ShapeError(
            f"split_tokens is {tokens}; the tiles of {entry.symbol} have {tile} tokens, and a split is a number of "
            f"whole tiles; the nearest that would do: {', '.join(map(str, nearest))}"
        )
    return tokens


def _call(view: CacheView, rows: int) -> tuning.Call:
    """What the choice of a kernel for this cache depends on."""
    steps = [step for pool in (view.k, view.v) for step in zip(pool.strides[:-1], pool.shape[:-1], strict=True)]
    multiple = math.gcd(*(stride for stride, length in steps if length > 1))  # 0, of which all are, without strides
    kv = codecs.key_of(*view.codecs)
    by_pointer = view._packed.blocks is not None
    has_lines = view._packed.may_have_lines
    return tuning.Call(view.dtype.short, kv, view.head_dim, rows, view.page_size, multiple, by_pointer, has_lines)


def _token_bytes(view: CacheView) -> int:
    """What a call reads for each token: K, V and their parameters, unless those serve all tokens."""
    codes = sum(codec.dtype.bytes_for(view.head_dim) for codec in view.codecs)
    own = [params for params in (view.k_params, view.v_params) if params is not None and len(params.shape) > 1]
    return view.kv_heads * (codes + codecs.PARAM_BYTES * len(own))
