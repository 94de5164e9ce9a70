"""A cache of two kinds of pages: the first and the newest tokens of a sequence in 16 bits, those between in codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from kvit import _checks
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit.cache import calls
from kvit.cache.ageing import aged, gathered, require_room
from kvit.cache.attention import attention
from kvit.cache.layers import LayerSpec
from kvit.cache.mixed_sequence import MixedSequence
from kvit.cache.mixed_step import MixedStep
from kvit.cache.paged_cache import PagedCache
from kvit.errors import ShapeError, refuse_copy
from kvit.layouts.key_smoothing import KeySmoothing
from kvit.layouts.views import Layout
from kvit.ops.merge import merge_state
from kvit.ops.rope import Rope

_AS_THEY_ARE: dict[str, Any] = dict.fromkeys(("k", "v", "k_scale", "v_scale"))


class MixedCache(_checks.Made):
    """K and V of many sequences, of which the newest tokens and the first ones stay in 16 bits, and the others are
    codes.

        cache = kvit.MixedCache(1000, 16, 8, 128, k="int4_hadamard", v="int4_hadamard", window=128, exact_pages=200)
        seq = cache.sequence()
        seq.append(k, v)
        out = cache.attention(q, [seq])

    pages        for tokens in codes; a page holds page_size tokens of all KV heads, in every layer
    page_size    any number of tokens from 1
    kv_heads, head_dim, layers, dtype, layout, rope, smoothing, device
                 as in PagedCache
    k, v         how the tokens between are stored, as in PagedCache
    k_scale, v_scale
                 of float8, as in PagedCache
    window       newest tokens of each sequence that stay in 16 bits, at least
    sinks        first tokens that stay in 16 bits, rounded up to whole pages: models attend to them more than to others
    exact_pages  in 16 bits, for the newest and first tokens of all sequences and those of the appends to come

    Tokens are appended in 16 bits. When a page more than the window is there, whole pages of the oldest of them are
    encoded, in launches between the calls. A sequence then has fewer than sinks + window + page_size tokens in 16 bits
    when an append is over, and so many more while a step of a long prompt is open.

    Attention reads both in two launches and joins them in a third. Masks but causal ones, and what depends on
    positions, are not offered. Not safe to call from several threads.
    Raises what PagedCache raises, and ShapeError (window, sinks; layers of a window, or whose K and V share rows, or
    have v_dim of their own). KIVI (Liu et al., 2024) and StreamingLLM (Xiao et al., 2024) say why.
    """

    def __init__(
        self,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        window: int,
        exact_pages: int,
        sinks: int = 1,
        k: Any = None,
        v: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        dtype: Any = "bfloat16",
        layers: int | Iterable[LayerSpec] = 1,
        layout: Layout = "HND",
        rope: Rope | None = None,
        smoothing: KeySmoothing | None = None,
        device: str | Device = "cuda:0",
    ):
        if isinstance(layers, Iterable) or not hasattr(layers, "__index__"):
            layers = _checked(layers)
        [page_size] = _checks.require_counts(page_size=page_size)
        self.window, sinks = _checks.whole("window", window), _checks.whole("sinks", sinks)
        if min(self.window, sinks) < 0:
            raise ShapeError(f"window is {window} and sinks {sinks}; give numbers of tokens from 0 on")
        self.sinks: int = -(-sinks // page_size) * page_size
        shape = page_size, kv_heads, head_dim
        alike: dict[str, Any] = {
            "dtype": dtype, "layout": layout, "rope": rope, "smoothing": smoothing, "device": device
        }  # fmt: skip
        of_exact = [spec._replace(**_AS_THEY_ARE) for spec in layers] if isinstance(layers, list) else layers
        self.coded = PagedCache(pages, *shape, k=k, v=v, k_scale=k_scale, v_scale=v_scale, layers=layers, **alike)
        self.exact = PagedCache(exact_pages, *shape, layers=of_exact, **alike)
        self.page_size: int = page_size

    @property
    def num_layers(self) -> int:
        """Layers that have K and V here."""
        return self.exact.num_layers

    @property
    def device(self) -> str:
        """ "cuda:N" or "host"."""
        return self.exact.device

    @property
    def nbytes(self) -> int:
        """Bytes of K, V and their parameters in all layers and both kinds of pages, used or not."""
        return self.exact.nbytes + self.coded.nbytes

    def sequence(self) -> MixedSequence:
        """A new sequence without tokens; it takes pages as it grows."""
        return MixedSequence(self, self.exact.sequence(), self.coded.sequence())

    def step(self, seqs: Iterable[MixedSequence], new_tokens: Iterable[int] | int, *, stream: Any = None) -> MixedStep:
        """Begin a step: room for new tokens of sequences in all layers, as PagedCache.step.

        Raises CacheFull (of either kind of pages: codes of those that will leave the window are counted), and what
        PagedCache.step raises; nothing has changed then.
        """
        members, stream = self.members_of(seqs), Stream.wrap(stream, self.device)
        counts = calls.new_tokens_of(new_tokens, len(members))
        each = [counts] * len(members) if isinstance(counts, int) else counts
        ages = [aged(self, len(seq.exact) + new) for seq, new in zip(members, each, strict=True)]
        require_room(self, members, ages)
        return MixedStep(self, members, ages, self.exact.step([seq.exact for seq in members], counts, stream=stream))

    def append(
        self,
        seqs: Iterable[MixedSequence],
        k: Any,
        v: Any,
        new_tokens: Iterable[int] | None = None,
        *,
        q: Any = None,
        q_out: Any = None,
        rotate: bool = True,
        stream: Any = None,
    ) -> None:
        """Add tokens to the end of sequences, as PagedCache.append; those that leave the window become codes.

        k, v  [tokens, kv_heads, head_dim]; of a cache of several layers, an array for each layer
        q     [tokens, query_heads, head_dim], of a cache of one layer: turned and smoothed as k is

        Queries of more tokens than the window has are attended inside of a step, before the others become codes.
        All or nothing, and raises, as PagedCache.append and MixedCache.step; but where no memory is left for encoding,
        that error comes when the tokens are there already, in 16 bits: len(seq) tells, and the next step encodes them.
        """
        stream, is_single = Stream.wrap(stream, self.device), self.num_layers == 1
        rows = [(k, v)] if is_single else list(zip(*self._of_each_layer(k, v), strict=True))
        if not is_single and (q is not None or q_out is not None):
            raise ShapeError("q is of one layer, and append fills all of them; use cache.step and step.append")
        rows = [
            tuple(_checks.tensor(name, x, None, stream) for name, x in zip("kv", pair, strict=True)) for pair in rows
        ]
        if q is not None:
            q = _checks.tensor("q", q, None, stream)
        members = self.members_of(seqs)
        _checks.require_shape("k", rows[0][0], tokens=None, kv_heads=None, head_dim=None)
        counts = calls.counts_of("k", rows[0][0].shape[0], len(members), new_tokens)
        with self.step(members, counts, stream=stream) as step:
            for layer, (of_k, of_v) in enumerate(rows):
                step.append(of_k, of_v, layer=layer, q=q, q_out=q_out, rotate=rotate)

    def attention(
        self,
        q: Any,
        seqs: Iterable[MixedSequence] | MixedStep,
        new_tokens: Iterable[int] | None = None,
        *,
        layer: int = 0,
        out: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        scale: float | None = None,
        stream: Any = None,
    ) -> Any:
        """Attend the last tokens of each sequence to all its tokens, each to those up to its own.

        q           [tokens, query_heads, head_dim], sequence after sequence, in the cache's dtype
        seqs        sequences of this cache, or an open step of it, whose new tokens are attended
        new_tokens  how many rows of q each sequence has, no more than it has newest tokens in 16 bits; equally many if
                    absent
        layer       of a cache of several
        out         like q, written in place; allocated if absent
        lse         float32 [tokens, query_heads], written in place; allocated if absent and return_lse
        scale       of the scores, before exp; head_dim ** -0.5 if absent

        Returns out, or (out, lse) if return_lse. Where no sequence has a token in codes, the call is that of
        kvit.attention; else its two parts are joined by kvit.merge_state, in memory that the call allocates.
        Raises ShapeError, DtypeError, DeviceError, LayoutError, SequenceFreed, KernelMissing.
        Defined by kvit.reference.paged_attention of both kinds of pages and kvit.reference.merge_state.
        """
        exact, coded = self.exact.layer(layer), self.coded.layer(layer)
        is_step = isinstance(seqs, MixedStep)
        if is_step and seqs.cache is not self:
            raise ShapeError("the step is of another cache; begin one of its own: cache.step(...)")
        stream = seqs.exact.stream_of(stream) if is_step else Stream.wrap(stream, self.device)
        q = _checks.tensor("q", q, None, stream)
        _checks.require_shape("q", q, tokens=None, query_heads=None, head_dim=exact.head_dim)
        members = seqs.members if is_step else self.members_of(seqs)
        how = {"scale": scale, "stream": stream}
        if is_step:
            newest, counts = seqs.exact, seqs.counts
        else:
            newest, counts = [seq.exact for seq in members], calls.counts_of("q", q.shape[0], len(members), new_tokens)
            self._require_newest(members, counts)
        if not any(len(seq.coded) for seq in members):
            return attention(q, exact, newest, new_tokens, out=out, lse=lse, return_lse=return_lse, **how)
        each = [counts] * len(members) if isinstance(counts, int) else counts
        parts = [
            attention(q, exact, newest, new_tokens, return_lse=True, **how),
            attention(q, coded, [seq.coded for seq in members], each, causal=False, return_lse=True, **how),
        ]
        (out_a, lse_a), (out_b, lse_b) = parts
        out, lse = merge_state(out_a, lse_a, out_b, lse_b, out=out, lse=lse, stream=stream)
        return (out, lse) if _checks.flag("return_lse", return_lse) else out

    def gather(self, seqs: Iterable[MixedSequence], *, layer: int = 0, stream: Any = None) -> tuple[Any, Any, Any]:
        """The tokens of sequences in a layer, in order, end to end and decoded, as PagedCache.gather returns them."""
        return gathered(self, self.members_of(seqs), layer, Stream.wrap(stream, self.device))

    def check(self, stream: Any = None) -> None:
        """Wait for the work of `stream`, by default of the last calls, and raise PageTableError if a kernel met one."""
        self.exact.check(stream)
        self.coded.check(stream)

    def members_of(self, seqs: Iterable[MixedSequence]) -> tuple[MixedSequence, ...]:
        """The sequences of a call. Raises TypeError, ShapeError (of another cache)."""
        found = calls.members(seqs)
        for i, seq in enumerate(found):
            _checks.made(f"seqs[{i}]", seq, MixedSequence, "a sequence of a kvit.MixedCache: cache.sequence()")
            if seq.cache is not self:
                raise ShapeError(f"seqs[{i}] is of another cache; give sequences of this one")
            seq.settle()
        return found

    def _of_each_layer(self, k: Any, v: Any) -> list[list[Any]]:
        each = [_checks.listed(name, x, "an array for each layer") for name, x in (("k", k), ("v", v))]
        if {len(each[0]), len(each[1])} != {self.num_layers}:
            raise ShapeError(
                f"k has rows for {len(each[0])} layers and v for {len(each[1])}, and the cache has {self.num_layers} "
                "layers; give an array for each layer, or use cache.step"
            )
        return each

    def _require_newest(self, members: tuple[MixedSequence, ...], counts: list[int] | int) -> None:
        """Raise ShapeError for queries of tokens that are codes already: they would see keys behind their own."""
        each = [counts] * len(members) if isinstance(counts, int) else counts
        for i, (seq, count) in enumerate(zip(members, each, strict=True)):
            newest = len(seq.exact) - (self.sinks if len(seq.coded) else 0)
            if len(seq.coded) and count > newest:
                raise ShapeError(
                    f"seqs[{i}] has {count} queries, and its newest {newest} tokens are in 16 bits; attend so many "
                    "inside of the step that appends them: cache.step(...)"
                )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "it owns its pages; make another MixedCache and append what gather gives")

    @_checks.words_of_made
    def __repr__(self) -> str:
        return f"MixedCache(newest {self.window} and first {self.sinks} tokens: {self.exact!r}; others: {self.coded!r})"


def _checked(layers: Iterable[Any]) -> list[LayerSpec]:
    """Layers whose tokens may lie in two caches. Raises ShapeError, TypeError."""
    found = []
    for i, spec in enumerate(
        _checks.listed("layers", layers, "a list of kvit.LayerSpec, or one number for all layers")
    ):
        _checks.instance(f"layers[{i}]", spec, LayerSpec, "a kvit.LayerSpec, or one number for all layers")
        wrong = [name for name in ("v_dim", "shares_kv", "window") if getattr(spec, name)]
        if wrong:
            raise ShapeError(
                f"layers[{i}] has {' and '.join(wrong)}, which a MixedCache does not offer; use PagedCache"
            )
        found.append(spec)
    return found
