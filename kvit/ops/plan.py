"""What an Attention does, decided once: its kernel, its grid, where heads are cut, and the memory that it works in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from kvit import _checks, codecs, dtypes
from kvit._native.context import Device
from kvit.errors import DtypeError, ShapeError
from kvit.layouts.latent_rows import LatentRows
from kvit.layouts.views import CacheView
from kvit.ops.modifiers import Modifiers
from kvit.ops.operation import Launch
from kvit.selection import choose, registry, tuning
from kvit.selection.call import Call
from kvit.selection.cards import Card, card_of
from kvit.selection.registry import KernelInfo
from kvit.selection.rules import L2_PROMOTION, Rule, setting
from kvit.selection.tuning import RuleSet

_FAMILIES = ("decode", "prefill", "latent", "latent_rows")


class AttentionPlan(NamedTuple):
    """All that is fixed before an Attention's first call: by the view, the GPU and the caller; never by lengths."""

    choice: choose.Choice  # the kernel, and what it was compared with
    card: Card  # that the kernel was chosen for
    rules: RuleSet  # by which
    device: str  # or the name of a card that is not there, of a plan for it
    query_heads: int
    kv_heads: int
    grid: int  # CTAs
    partitions: int  # lines of work, each with its share of KV heads and of CTAs
    split_tokens: int | None  # heads are cut at multiples of so many tokens; None: evenly over the grid
    workspace_bytes: int  # that calls use besides their arguments, whatever the batch
    token_bytes: int  # that a call reads of K, V and their parameters for each token
    scale: float  # of the scores, before exp
    causal: bool
    modifiers: Modifiers  # of masks and scores
    reads_ahead: bool
    launch: Launch

    @property
    def kernel(self) -> KernelInfo:
        """The kernel that was chosen."""
        return self.choice.kernel

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.query_heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Query rows of each KV head of a sequence that the kernel was chosen for: new tokens x group."""
        return self.choice.call.rows

    @property
    def l2_promotion(self) -> Rule | None:
        """The rule for what L2 fetches at once; None of a kernel that copies without tensor maps."""
        copies_by_maps = self.kernel.facts["box_tokens"] and self.card.compute_capability is not None
        return setting(self.rules.rules, L2_PROMOTION, self.card) if copies_by_maps else None

    @property
    def split_tiles(self) -> int:
        """Tiles of a split; 0 without split_tokens."""
        return (self.split_tokens or 0) // self.kernel.facts["tile_tokens"]


def plan_attention(
    view: CacheView | LatentRows,
    query_heads: int,
    *,
    dtype: dtypes.Dtype,
    scale: float,
    causal: bool,
    modifiers: Modifiers,
    tokens_per_sequence: int,
    wanted: choose.Wanted,
    split_tokens: int | None,
    reads_ahead: bool,
    launch: Launch,
) -> AttentionPlan:
    """The plan of an Attention; the arguments are those of kvit.Attention.

    Raises ShapeError (heads, split_tokens), DtypeError (queries of another dtype than the view's), KernelMissing,
    LayoutError (no kernel reads such pages).
    """
    group = _checks.group_size(query_heads, view.kv_heads)
    tokens_per_sequence = _checks.whole("tokens_per_sequence", tokens_per_sequence)
    if tokens_per_sequence < 0:
        raise ShapeError(f"tokens_per_sequence is {tokens_per_sequence}; it counts the new tokens of a sequence")
    device = Device.of(view.device)
    rows = group * max(1, tokens_per_sequence)
    card = card_of(device)
    rules = tuning.rules_for(card)
    choice = _choose_kernel(dtype, view, rows, _variant(modifiers, wanted), card, rules, wanted)
    sizes = _sizes(choice.kernel, card, view.kv_heads, split_tokens)
    return AttentionPlan(
        choice=choice,
        card=card,
        rules=rules,
        device=view.device,
        query_heads=group * view.kv_heads,
        kv_heads=view.kv_heads,
        grid=sizes.grid,
        partitions=sizes.partitions,
        split_tokens=sizes.split_tokens,
        workspace_bytes=sizes.workspace_bytes,
        token_bytes=_token_bytes(view),
        scale=scale,
        causal=causal,
        modifiers=modifiers,
        reads_ahead=reads_ahead,
        launch=launch,
    )


def plan_on(plan: AttentionPlan, card: Card) -> AttentionPlan:
    """What the same call would be on another card, which need not be there.

    Raises KernelMissing and LayoutError (nothing built serves it there), ShapeError (split_tokens is no whole number of
    tiles of the kernel that it takes there).
    """
    rules = tuning.rules_for(card)
    asked = plan.choice
    choice = choose.choose(asked.candidates, asked.call, card, wanted=asked.wanted, rules=rules.rules)
    sizes = _sizes(choice.kernel, card, plan.kv_heads, plan.split_tokens)
    return plan._replace(choice=choice, card=card, rules=rules, device=card.name, **sizes._asdict())


class _Sizes(NamedTuple):
    """What a kernel takes on a card."""

    grid: int
    partitions: int
    split_tokens: int | None
    workspace_bytes: int


def _sizes(kernel: KernelInfo, card: Card, kv_heads: int, split_tokens: int | None) -> _Sizes:
    split = None if split_tokens is None else _whole_tiles(split_tokens, kernel)
    grid = card.num_sms * kernel.facts["ctas_per_sm"]
    return _Sizes(grid, math.gcd(grid, kv_heads), split, _workspace_bytes(kernel, grid, split is not None))


def call_on(view: CacheView | LatentRows, rows: int) -> Call:
    """What the choice of a kernel for this cache depends on; `rows` as in AttentionPlan."""
    steps = [step for pool in (view.k, view.v) for step in zip(pool.strides[:-1], pool.shape[:-1], strict=True)]
    multiple = math.gcd(*(stride for stride, length in steps if length > 1))  # 0, of which all are, without strides
    kv = codecs.key_of(*view.codecs)
    by_pointer = view.packed.blocks is not None
    is_packed = view.packed.may_be_packed
    return Call(view.dtype.short, kv, view.dims, rows, view.page_size, multiple, by_pointer, is_packed, view.shares_kv)


def _variant(modifiers: Modifiers, wanted: choose.Wanted) -> str:
    """That of kernels which do what is asked for. Who asks for a general kernel by name gets one."""
    if modifiers.variant == "plain" and wanted is not None:
        named = wanted.get("variant") if isinstance(wanted, Mapping) else str(wanted).rpartition("_")[2]
        if named == "general":
            return "general"
    return modifiers.variant


def _choose_kernel(
    dtype: dtypes.Dtype,
    view: CacheView | LatentRows,
    rows: int,
    variant: str,
    card: Card,
    rules: RuleSet,
    wanted: choose.Wanted,
) -> choose.Choice:
    if isinstance(view, LatentRows) and dtype is not view.dtype:
        raise DtypeError(f"queries of {dtype} over LatentRows, which are for {view.dtype}; convert the queries first")
    key = {"dtype": dtype.short, "kv": codecs.key_of(*view.codecs)}
    found = _serving(view.dims, variant, key)
    if variant == "plain" and not any(kernel.family == "decode" for kernel in found):
        found += _serving(view.dims, "general", key)  # rows of other channels than decode is built for
    if not found:
        registry.find("decode", head_dim=view.dims, variant=variant, **key)  # raises KernelMissing, says what is built
    if dtype is not view.dtype:
        raise DtypeError(f"queries of {dtype} over a cache for {view.dtype}; both must be the same")
    call = call_on(view, rows)._replace(variant=variant)
    return choose.choose(found, call, card, wanted=wanted, rules=rules.rules)


def _serving(dims: registry.AxisValue, variant: str, key: Mapping[str, str]) -> tuple[KernelInfo, ...]:
    return tuple(kernel for family in _FAMILIES for kernel in registry.serving(family, dims, variant=variant, **key))


def _whole_tiles(split_tokens: int, kernel: KernelInfo) -> int:
    """split_tokens, if it is a number of whole tiles of the kernel. Raises ShapeError."""
    tokens, tile = _checks.whole("split_tokens", split_tokens), kernel.facts["tile_tokens"]
    most = (2**31 - 1) // tile * tile
    if tokens % tile or not 0 < tokens <= most:
        below = tokens // tile * tile
        nearest = sorted({min(max(near, tile), most) for near in (below, below + tile)})
        raise ShapeError(
            f"split_tokens is {tokens}; the tiles of {kernel.symbol} have {tile} tokens, and a split is a number of "
            f"whole tiles; the nearest that would do: {', '.join(map(str, nearest))}"
        )
    return tokens


def _workspace_bytes(kernel: KernelInfo, grid: int, has_splits: bool) -> int:
    """A head, and what each CTA leaves for others to join: the kernel says how much of both."""
    return (
        kernel.facts["workspace_head_bytes"] + grid * kernel.facts["split_part_bytes" if has_splits else "part_bytes"]
    )


def _token_bytes(view: CacheView | LatentRows) -> int:
    """What a call reads for each token: K, V and their parameters, unless those serve all tokens."""
    if isinstance(view, LatentRows):
        return view.token_bytes
    dims = (view.k_dim, 0 if view.shares_kv else view.v_dim)
    codes = sum(codec.dtype.bytes_for(dim) for codec, dim in zip(view.codecs, dims, strict=True))
    own = [params for params in (view.k_params, view.v_params) if params is not None and len(params.shape) > 1]
    return view.kv_heads * (codes + codecs.PARAM_BYTES * len(own))
