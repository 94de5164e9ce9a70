"""Which of the kernels that could serve a call does: a cost tuple over them, and rules.json for what was measured.

Pure: a choice depends on its arguments alone, so that any machine can ask what any GPU would run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from kvit.errors import KernelMissing, LayoutError
from kvit.selection import capabilities
from kvit.selection.registry import AxisValue, KernelInfo, best_target, parse_arch

Wanted: TypeAlias = str | Mapping[str, AxisValue] | None
"""What a user asks for: a kernel's symbol, or some of its axes."""

_UNTRIED: tuple[Mapping[str, AxisValue], ...] = (
    {"family": "prefill", "copies": "tma", "variant": "general"},
    {"family": "latent"},
)
"""Kernels that the host backend alone has tried: a GPU takes them only where the caller names them, or their copies."""


class Call(NamedTuple):
    """What the choice depends on. No length and no address is among it."""

    dtype: str  # axis values of the family
    kv: str
    head_dim: AxisValue  # of K and V, or "192x128"
    rows: int  # query rows of each KV head of a sequence: new tokens x group
    page_size: int
    stride_multiple: int = 16  # of which all strides of K and V are multiples, in bytes
    by_pointer: bool = False  # pages are found by a pointer each, not by their number and a stride
    is_packed: bool = True  # rows of fewer than 128 bytes, and integers' parameters, lie one after the other
    shares_kv: bool = False  # rows of V are the first channels of the rows of K

    def __str__(self) -> str:
        return f"dtype={self.dtype} kv={self.kv} head_dim={self.head_dim}"


class Rule(NamedTuple):
    """One line of rules.json: which values of an axis come first, and where."""

    axis: str
    order: tuple[AxisValue, ...]  # the best first; values that are not named come last
    why: str
    arch: str | None = None  # "sm_90", "sm_90+" for newer ones too, "host"; None: everywhere
    when: Mapping[str, Any] = {}  # field of Call -> its value, a list of values, or {"min": ..., "max": ...}

    def applies(self, call: Call, arch: str) -> bool:
        """Whether the rule speaks of such a call on such an architecture."""
        return self._is_of(arch) and all(_holds(wish, getattr(call, name)) for name, wish in self.when.items())

    def _is_of(self, arch: str) -> bool:
        if self.arch is None or not self.arch.endswith("+"):
            return self.arch in (None, arch)
        return arch != "host" and parse_arch(arch).version >= parse_arch(self.arch[:-1]).version


class Choice(NamedTuple):
    """The kernel for a call, and what it was compared with."""

    kernel: KernelInfo
    call: Call
    terms: tuple[str, ...]  # what the numbers of a cost count; an earlier one outweighs all later ones
    ranked: tuple[tuple[tuple[int, ...], KernelInfo], ...]  # (cost, kernel), the cheapest first
    refused: tuple[tuple[KernelInfo, str], ...]  # kernels that cannot serve the call, and why
    rules: tuple[Rule, ...]  # of rules.json, that gave terms of the cost
    wanted: Wanted  # what the user asked for


@functools.cache
def installed_rules() -> tuple[Rule, ...]:
    """The rules that kvit ships."""
    return parse_rules((Path(__file__).parent / "rules.json").read_text(encoding="utf-8"))


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Rules from their JSON. Raises TypeError for a key that no rule has or one that is missing."""
    rules = tuple(Rule(**{**row, "order": tuple(row["order"])}) for row in json.loads(text))
    for rule in rules:
        unknown = [name for name in rule.when if name not in Call._fields]
        if unknown:
            raise TypeError(f"`when` names {unknown[0]}; a call has {', '.join(Call._fields)}")
    return rules


def choose(
    candidates: Iterable[KernelInfo],
    call: Call,
    compute_capability: tuple[int, int] | None,
    *,
    wanted: Wanted = None,
    rules: Iterable[Rule] | None = None,
) -> Choice:
    """The cheapest of the kernels that can serve the call.

    candidates          kernels at the call's dtype, kv and head_dim, at least one, all with the same axes; of equally
                        cheap ones the first is taken
    compute_capability  (major, minor) of the GPU; None: the host, which runs every kernel
    wanted              narrows the candidates
    rules               rules.json's if absent

    The cost, its first number before its second: passes over K and V, one for each `rows` query rows, where those of
    a kernel that computes longer than it reads count `pass_cost` each; the place of each axis in the order that a rule
    gives it, the first rule that applies; query rows that stay idle. A kernel's needs are facts of it in index.json:
    `page_multiple` tokens, `stride_multiple` bytes, `needs_strides`, `is_packed`, `shares_kv`; and its shared memory.
    Raises KernelMissing (`wanted` is none of the candidates, or the GPU runs none), LayoutError (none reads the pages).
    """
    kernels = tuple(candidates)
    arch = "host" if compute_capability is None else capabilities.name_of(compute_capability)
    asked = tuple(kernel for kernel in kernels if _is_wanted(kernel, wanted))
    if not asked:
        raise KernelMissing(f"kernel={wanted!r} is none of those for {call}; {_listed(kernels)}")
    on_gpu = {kernel: why_not_on(kernel, compute_capability) for kernel in asked}
    reasons = [(kernel, on_gpu[kernel] or why_not(kernel, call)) for kernel in asked]
    if compute_capability is not None and not _names_copies(wanted):
        reasons = [(kernel, reason or _untried(kernel)) for kernel, reason in reasons]
    fitting = [kernel for kernel, reason in reasons if reason is None]
    refused = tuple((kernel, reason) for kernel, reason in reasons if reason is not None)
    if not fitting:
        if compute_capability is not None and not any(
            best_target(compute_capability, kernel.archs) for kernel in asked
        ):
            asked[0].target(compute_capability)  # raises KernelMissing, with the next step
        words = "; ".join(f"{kernel.symbol} {reason}" for kernel, reason in refused)
        if all(on_gpu.values()):
            raise KernelMissing(f"no kernel runs on {arch}: {words}; {_listed(kernels)}")
        raise LayoutError(f"no kernel reads this cache on {arch}: {words}; {_listed(kernels)}")

    deciding: dict[str, Rule] = {}
    for rule in installed_rules() if rules is None else rules:
        if rule.axis in fitting[0].axes and rule.applies(call, arch):
            deciding.setdefault(rule.axis, rule)

    def cost(kernel: KernelInfo) -> tuple[int, ...]:
        height = int(kernel.axes["rows"])
        passes = -(-call.rows // height)
        places = (_place(rule.order, kernel.axes[axis]) for axis, rule in deciding.items())
        return passes * kernel.facts.get("pass_cost", 1), *places, passes * height - call.rows

    ranked = tuple(sorted(((cost(kernel), kernel) for kernel in fitting), key=lambda pair: pair[0]))
    terms = ("passes over K and V", *deciding, "idle rows")
    return Choice(ranked[0][1], call, terms, ranked, refused, tuple(deciding.values()), wanted)


def why_not_on(kernel: KernelInfo, compute_capability: tuple[int, int] | None) -> str | None:
    """Why a GPU cannot run this kernel, or None where it can. The host, None, runs all."""
    if compute_capability is None:
        return None
    arch, limit = capabilities.name_of(compute_capability), capabilities.shared_bytes(compute_capability)
    if best_target(compute_capability, kernel.archs) is None:
        return f"is built for {', '.join(kernel.archs) or 'the host alone'}, not for {arch}"
    if kernel.shared_bytes > limit:
        return f"needs {kernel.shared_bytes} shared bytes per CTA; {arch} has {limit}"
    return None


def why_not(kernel: KernelInfo, call: Call) -> str | None:
    """Why this kernel cannot read the call's pages, or None where it can."""
    facts = kernel.facts
    tokens, num_bytes = facts.get("page_multiple", 1), facts.get("stride_multiple", 1)
    if call.page_size % tokens:
        return f"needs pages of a multiple of {tokens} tokens; these have {call.page_size}"
    if call.stride_multiple % num_bytes:
        return f"needs strides of a multiple of {num_bytes} bytes; these are multiples of {call.stride_multiple}"
    if call.by_pointer and facts.get("needs_strides", 0):
        return "needs pages that lie at equal distances; these are found by a pointer each"
    if facts.get("is_packed", 0) and not call.is_packed:
        return "needs rows and parameters that lie one after the other in a page, as in HND; these do not"
    if facts.get("shares_kv", 0) and not call.shares_kv:
        return "needs rows of V that are the first channels of the rows of K, in the same memory; these are not"
    return None


def _untried(kernel: KernelInfo) -> str | None:
    """Why a GPU does not take this kernel unasked, or None where it does."""
    is_untried = any(row.items() <= {"family": kernel.family, **kernel.axes}.items() for row in _UNTRIED)
    return "has not run on a GPU yet; kernel= takes it by its symbol or its copies" if is_untried else None


def _names_copies(wanted: Wanted) -> bool:
    return isinstance(wanted, str) or (wanted is not None and "copies" in wanted)


def _is_wanted(kernel: KernelInfo, wanted: Wanted) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return kernel.symbol == wanted
    if isinstance(wanted, Mapping):
        return wanted.items() <= dict(kernel.axes).items()
    raise TypeError(f"kernel is a {type(wanted).__name__}; give a symbol, or a mapping of axes to values")


def _listed(kernels: Iterable[KernelInfo]) -> str:
    return f"choose from {', '.join(kernel.symbol for kernel in kernels)}"


def _holds(wish: Any, value: Any) -> bool:
    if isinstance(wish, Mapping):
        return wish.get("min", value) <= value <= wish.get("max", value)
    return value in wish if isinstance(wish, list) else value == wish


def _place(order: tuple[AxisValue, ...], value: AxisValue) -> int:
    return order.index(value) if value in order else len(order)
