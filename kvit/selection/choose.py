"""Which of the kernels that could serve a call does: a cost tuple over them, and rules for what was measured.

Pure: a choice depends on its arguments alone, so that any machine can ask what any GPU would run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from kvit.errors import KernelMissing, LayoutError
from kvit.selection import capabilities
from kvit.selection.call import Call
from kvit.selection.cards import Card
from kvit.selection.registry import AxisValue, KernelInfo, best_target
from kvit.selection.rules import Rule, installed_rules

Wanted: TypeAlias = str | Mapping[str, AxisValue] | None
"""What a user asks for: a kernel's symbol, or some of its axes."""


class Choice(NamedTuple):
    """The kernel for a call, and what it was compared with."""

    kernel: KernelInfo
    call: Call
    terms: tuple[str, ...]  # what the numbers of a cost count; an earlier one outweighs all later ones
    ranked: tuple[tuple[tuple[int, ...], KernelInfo], ...]  # (cost, kernel), the cheapest first
    refused: tuple[tuple[KernelInfo, str], ...]  # kernels that cannot serve the call, and why
    rules: tuple[Rule, ...]  # that gave terms of the cost
    wanted: Wanted  # what the user asked for
    candidates: tuple[KernelInfo, ...]  # all of them, in their order: another card chooses from the same


def choose(
    candidates: Iterable[KernelInfo],
    call: Call,
    card: Card,
    *,
    wanted: Wanted = None,
    rules: Iterable[Rule] | None = None,
) -> Choice:
    """The cheapest of the kernels that can serve the call.

    candidates  kernels at the call's dtype, kv and head_dim, at least one, all with the same axes; of equally cheap
                ones the first is taken
    card        the GPU, or the host, which runs every kernel
    wanted      narrows the candidates
    rules       those that kvit ships if absent; of several that speak of an axis the first decides

    The cost, its first number before its second: the place of each axis in the order that a rule with `first` gives it;
    passes over K and V, one for each `rows` query rows, where those of a kernel that computes longer than it reads
    count `pass_cost` each; the place of each axis in the order of another rule; query rows that stay idle. The family
    of a kernel counts as an axis. A kernel's needs are facts of it in index.json:
    `page_multiple` tokens, `stride_multiple` bytes, `needs_strides`, `is_packed`, `shares_kv`; and its shared memory.
    Raises KernelMissing (`wanted` is none of the candidates, or the GPU runs none), LayoutError (none reads the pages).
    """
    kernels = tuple(candidates)
    arch, compute_capability = card.arch, card.compute_capability
    asked = tuple(kernel for kernel in kernels if _is_wanted(kernel, wanted))
    if not asked:
        raise KernelMissing(f"kernel={wanted!r} is none of those for {call}; {_listed(kernels)}")
    on_gpu = {kernel: why_not_on(kernel, compute_capability) for kernel in asked}
    reasons = [(kernel, on_gpu[kernel] or why_not(kernel, call)) for kernel in asked]
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
        if (rule.axis == "family" or rule.axis in fitting[0].axes) and rule.applies(call, card):
            deciding.setdefault(rule.axis, rule)
    before = [rule for rule in deciding.values() if rule.first]
    after = [rule for rule in deciding.values() if not rule.first]

    def cost(kernel: KernelInfo) -> tuple[int, ...]:
        height = int(kernel.axes["rows"])
        passes = -(-call.rows // height)
        return (
            *(_place(rule, kernel) for rule in before),
            passes * kernel.facts.get("pass_cost", 1),
            *(_place(rule, kernel) for rule in after),
            passes * height - call.rows,
        )

    ranked = tuple(sorted(((cost(kernel), kernel) for kernel in fitting), key=lambda pair: pair[0]))
    terms = (*(rule.axis for rule in before), "passes over K and V", *(rule.axis for rule in after), "idle rows")
    return Choice(ranked[0][1], call, terms, ranked, refused, (*before, *after), wanted, kernels)


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


def _place(rule: Rule, kernel: KernelInfo) -> int:
    value = kernel.family if rule.axis == "family" else kernel.axes[rule.axis]
    return rule.order.index(value) if value in rule.order else len(rule.order)
