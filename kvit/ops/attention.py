"""Attention over pages: the operation on raw buffers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvit import _checks, dtypes
from kvit._native import attention_launch
from kvit._native.attention_call import AttentionCall
from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import LayoutError, ShapeError
from kvit.layouts.latent_rows import LatentRows
from kvit.layouts.views import CacheView, PageTable
from kvit.ops import aliases, explain
from kvit.ops import modifiers as _modifiers
from kvit.ops.faults import FaultRecord
from kvit.ops.operation import Launch, Operation, rows_per_sequence
from kvit.ops.plan import AttentionPlan, call_on, plan_attention, plan_on
from kvit.selection import cards, choose
from kvit.selection.registry import KernelInfo


class Attention(Operation, AttentionCall):
    """Attention of new tokens to the cache, for one shape of cache. Chooses its kernel once; a call is one launch.

    view                 CacheView or LatentRows of the caches to come: their dtype, KV heads, head_dim and layout
                         count, not their memory
    query_heads          a multiple of the view's KV heads; query head h reads KV head h // (query_heads / kv_heads)
    dtype                of queries and outputs; the view's if absent
    scale                of the scores, before exp; head_dim ** -0.5 if absent
    causal               query i of the n new tokens of a sequence sees its keys up to length - n + i; else all of them
    window               keys that a query sees up to its own, its own among them; or (left, right): from its own on so
                         many too, which says something where not causal. None: all
    chunk                a query sees keys of its own chunk: positions [0, chunk), [chunk, 2 chunk), and so on
    spans, tree          whether calls may bring these arrays: __call__ says what they do
    softcap              a score s becomes softcap * tanh(s / softcap)
    sinks                float32 [query_heads] on the device: a score of no key, which joins the sum once, and the lse
    alibi                float32 [query_heads] on the device, slopes: a score loses one for each position between query
                         and key, after the cap
    temperature          float32 [positions] on the device: the scores of a query at a position are multiplied by its
                         element, those behind the last position by the last; before the cap
    tokens_per_sequence  how many new tokens a sequence usually has: a hint for the choice of the kernel, nothing more
    workspace            the `workspace` of another Attention to share, or as many bytes, all zero; calls that share one
                         must not run side by side. A launch that fails on the host leaves it zero; one that fails on a
                         GPU loses the context, and the operation with it
    kernel               symbol of the kernel to use, or some of its axes, {"rows": 16}; the cheapest for the view and
                         the GPU if absent. `explain` shows the candidates
    split_tokens         cuts every head of every sequence at multiples of so many tokens, a multiple of the kernel's
                         tile (`kernel.facts["tile_tokens"]`); where the work is cut evenly over the GPU if absent
    reads_ahead          lets a launch read what is old before the launch in front of it in the stream has ended:
                         lengths, query_indptr, page tables, spans, trees, float8's scales, and K and V with their
                         parameters of all but the new tokens. Whoever says True promises that the launch in front
                         writes none of these. The new tokens' K and V, and q, are read after it.
                         On GPUs of compute capability 9.0 and more that hides what a launch must do before its first
                         bytes arrive; elsewhere, and in calls by graph, it changes nothing. Launches of kvit let the
                         next one start only when the one before them has ended; if the one in front lets it start
                         earlier, the promise is also about those before
    launch               "direct": every call launches the kernel; on GPUs from compute capability 9.0 on it may begin
                         before the kernel before it in the stream has ended. "graph": every call launches a
                         graph of the kernel, whose parameters it sets before: less time on the host, but it begins
                         when all before it has ended, and calls take turns, on whatever streams they are. In a capture
                         both are the same
    faults               record of faults to share with other operations; its own if absent

    All of window, chunk, spans, tree, softcap, sinks, alibi and temperature may be combined, as docs/attention.md says.
    The operation keeps sinks, alibi and temperature, and every launch reads them: they may be rewritten in place.

    What a call gives is the same each time, bit for bit. Where a head is cut decides the last bits, though: without
    split_tokens that depends on the whole batch and on the GPU's size. With it a sequence gives the same bits in any
    batch, at any place in it, and on any number of multiprocessors; where causal, so does each of its new tokens,
    however many come with it. A sequence of more than 1024 splits is cut at multiples of the least 2**i * split_tokens
    that leave 1024 or fewer.
    Raises ShapeError (heads, split_tokens), KernelMissing (nothing built covers the shape, or not as `kernel` says),
    NoGpuError, LayoutError (no such kernel reads pages like the view's), ValueError (an unknown launch), KvitError (a
    file of `kvit tune` that cannot be read).
    Defined by kvit.reference.paged_attention. Splitting and merging: Dao et al., Flash-Decoding, 2023; the even cut of
    the work: Osama et al., Stream-K, 2023.
    """

    _views = CacheView | LatentRows

    def __init__(
        self,
        view: CacheView | LatentRows,
        query_heads: int,
        *,
        dtype: Any = None,
        scale: float | None = None,
        causal: bool = True,
        window: _modifiers.Window = None,
        chunk: int | None = None,
        spans: bool = False,
        tree: bool = False,
        softcap: float | None = None,
        sinks: Any = None,
        alibi: Any = None,
        temperature: Any = None,
        tokens_per_sequence: int = 1,
        workspace: Tensor | None = None,
        kernel: choose.Wanted = None,
        split_tokens: int | None = None,
        reads_ahead: bool = False,
        launch: Launch = "direct",
        faults: FaultRecord | None = None,
    ):
        Operation.__init__(self, view, faults, launch)
        if dtype is not None:
            self.dtype = dtypes.dtype_of(dtype)
        self.plan: AttentionPlan = plan_attention(
            view,
            query_heads,
            dtype=self.dtype,
            scale=view.head_dim**-0.5 if scale is None else _checks.number("scale", scale),
            causal=_checks.flag("causal", causal),
            modifiers=_modifiers.modifiers(
                view.device,
                _checks.group_size(query_heads, view.kv_heads) * view.kv_heads,
                window=window,
                chunk=chunk,
                softcap=softcap,
                sinks=sinks,
                alibi=alibi,
                temperature=temperature,
                spans=spans,
                tree=tree,
            ),
            tokens_per_sequence=tokens_per_sequence,
            wanted=kernel,
            split_tokens=split_tokens,
            reads_ahead=_checks.flag("reads_ahead", reads_ahead),
            launch=launch,
        )
        plan = self.plan
        _modifiers.require_whole_scores(view, plan.modifiers)
        self.workspace: Tensor = self._make_workspace() if workspace is None else self._checked(workspace)
        kernel_launch = attention_launch.AttentionLaunch(
            plan.kernel,
            Device.of(self.device),
            plan.grid,
            plan.partitions,
            Tensor.from_pointer(
                self.workspace.pointer, (plan.workspace_bytes,), "uint8", self.device, owner=self.workspace
            ),
            self.faults.buffer,
            plan.query_heads,
            plan.group,
            plan.scale,
            plan.causal,
            plan.split_tiles,
            plan.reads_ahead,
            launch == "graph",
            plan.modifiers,
        )
        AttentionCall.__init__(self, kernel_launch, self.faults, view.packed, self.dtype.code)

    @property
    def kernel(self) -> KernelInfo:
        """The kernel that calls launch."""
        return self.plan.kernel

    @property
    def query_heads(self) -> int:
        """Query heads of every call."""
        return self.plan.query_heads

    @property
    def scale(self) -> float:
        """Of the scores, before exp."""
        return self.plan.scale

    @property
    def causal(self) -> bool:
        """Whether a query sees no key behind its own."""
        return self.plan.causal

    @property
    def reads_ahead(self) -> bool:
        """Whether a launch reads what is old before the launch in front of it has ended."""
        return self.plan.reads_ahead

    @property
    def split_tokens(self) -> int | None:
        """Heads are cut at multiples of so many tokens; None: evenly over the GPU."""
        return self.plan.split_tokens

    @property
    def grid(self) -> int:
        """CTAs of a launch."""
        return self.plan.grid

    @property
    def workspace_bytes(self) -> int:
        """Bytes that calls use besides their arguments: fixed by the GPU and the shape, whatever the batch."""
        return self.plan.workspace_bytes

    def require_view(self, view: CacheView | LatentRows) -> None:
        """Raise ShapeError, DtypeError or LayoutError unless calls can read this cache."""
        self._check_view(view)
        if why := choose.why_not(self.kernel, call_on(view, self.plan.rows)):
            raise LayoutError(f"{self.kernel.symbol} {why}; make another Attention for this view")

    def _make_workspace(self) -> Buffer:
        workspace = Buffer.empty(self.workspace_bytes, "uint8", self.device)
        workspace.fill_bytes(0)  # which says that nobody has written it yet; every call leaves it so
        workspace.stream.synchronize()
        return workspace

    def _checked(self, workspace: Any) -> Tensor:
        workspace = _checks.tensor("workspace", workspace)
        _checks.require_device(self.device, workspace=workspace)
        _checks.require_writable("workspace", workspace)
        _checks.require_block("workspace", workspace)
        if workspace.nbytes != self.workspace_bytes:
            raise ShapeError(
                f"workspace has {workspace.nbytes} bytes and this operation needs {self.workspace_bytes}; "
                "share one between operations of the same kernel, either all with split_tokens or all without"
            )
        return workspace

    def _fitting(
        self,
        q: Tensor,
        view: CacheView | LatentRows,
        table: PageTable,
        out: Tensor | None,
        lse: Tensor | None,
        query_indptr: Tensor | None,
        spans: Tensor | None,
        tree: Tensor | None,
        stream: Stream,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, int]:
        """For a call that does not fit as it is: (q, out, lse, query_indptr, spans, tree, rows of each) that do, or why
        not.

        Raises what __call__ says. Raw 16-bit integers become the operation's dtype here.
        """
        if not isinstance(view, self._views) or not isinstance(table, PageTable):
            raise TypeError(
                f"view is a {type(view).__name__} and table a {type(table).__name__}; give a kvit.CacheView and a "
                "kvit.PageTable, or a PagedCache and sequences to kvit.attention"
            )
        _checks.made("table", table, PageTable, "a kvit.PageTable")
        q = _checks.tensor("q", q, self.dtype)
        _checks.require_shape("q", q, tokens=None, query_heads=self.query_heads, head_dim=self.head_dim)
        _checks.require_rows("q", q)
        self.require_view(view)
        each, indptr = rows_per_sequence("q", q, table.num_sequences, query_indptr, stream)
        if out is not None:
            out = _checks.tensor("out", out, self.dtype)
            if out.shape != (*q.shape[:2], self.v_dim):
                raise ShapeError(
                    f"out has shape {list(out.shape)}; q of {list(q.shape)} gives {[*q.shape[:2], self.v_dim]}"
                )
            _checks.require_rows("out", out)
            _checks.require_writable("out", out)
        if lse is not None:
            lse = _checks.lse("lse", lse, q.shape)
            _checks.require_writable("lse", lse)
        _checks.require_device(
            self.device, q=q, view=view.k, table=table.lengths, out=out, lse=lse, query_indptr=indptr
        )
        spans, tree = _modifiers.of_call(self.plan.modifiers, self.device, q.shape[0], spans, tree)
        read = (
            ("q", q),
            ("query_indptr", indptr),
            *_modifiers.named(self.plan.modifiers, spans, tree),
            *aliases.numbers_of(table),
            *aliases.pools_of("view", view.packed),
        )
        aliases.require_apart("out", out, *read, same=("q",))
        aliases.require_apart("lse", lse, ("out", out), *read)
        return q, out, lse, indptr, spans, tree, each

    def explain(
        self,
        lengths: Iterable[int] | None = None,
        *,
        batch: int | None = None,
        context: int | None = None,
        gbps: float | None = None,
        card: str | cards.Card | None = None,
    ) -> str:
        """Which kernel was chosen among which, and why; what a launch of it takes.

        lengths         tokens of each sequence of a call, or
        batch, context  how many sequences, and the tokens of each: adds bytes, tiles, and the least time of reading
        gbps            10**9 bytes per second for that; what maker or driver say of the card's memory if absent
        card            the card that is meant, which need not be there: its name, as its driver says it ("NVIDIA H20"),
                        or a kvit.selection.cards.Card with its facts; that of the device if absent

        Raises ShapeError (lengths that are none, or given twice), DeviceError (no facts are known of `card`),
        KernelMissing and LayoutError (nothing that is built serves the call on it).
        """
        plan = self.plan if card is None else plan_on(self.plan, cards.card_from(card))
        return explain.explain(plan, explain.counted(lengths, batch, context), gbps)

    @_checks.words_of_made
    def __repr__(self) -> str:
        heads = f"{self.query_heads} query heads, {self.kv_heads} KV heads"
        return f"Attention({self.kernel.symbol}, {heads}, {self.device})"
