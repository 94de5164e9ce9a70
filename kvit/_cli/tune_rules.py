"""From measured times to rules: pure, so that any times can be tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kvit._cli.tune_calls import SMALL_PAGES, Load, Rung, Store
from kvit.selection.axes import AxisValue
from kvit.selection.call import Call
from kvit.selection.registry import KernelInfo
from kvit.selection.rules import L2_PROMOTION, Rule

MARGIN = 0.98
"""What is chosen without measurements stays, unless another takes less than this share of its time."""

_FIRST_AXES = ("family", "copies")  # each axis decides among the kernels that the one before it left


class Figure(NamedTuple):
    """Times of one call by every kernel that was measured."""

    store: Store
    rung: Rung
    load: Load
    call: Call
    us: Mapping[KernelInfo, float]  # the one that kvit's own rules choose first


class Group(NamedTuple):
    """Figures of calls between which the choice cannot tell, or need not: one order of kernels serves them all."""

    when: Mapping[str, Any]  # of the rules
    figures: tuple[Figure, ...]

    @property
    def scores(self) -> dict[KernelInfo, float]:
        """Time of each kernel by that of the fastest, the geometric mean over the figures."""
        first, *others = self.figures
        everywhere = [kernel for kernel in first.us if all(kernel in figure.us for figure in others)]
        return {kernel: math.exp(_mean(self._logs(kernel))) for kernel in everywhere}

    @property
    def shipped(self) -> KernelInfo:
        """What kvit's own rules choose."""
        return next(iter(self.figures[0].us))

    @property
    def best(self) -> KernelInfo:
        """The fastest, if the one that kvit's own rules choose is not nearly as fast."""
        scores = self._weighed()
        return min(scores, key=lambda kernel: scores[kernel])

    def rules(self) -> list[Rule]:
        """An order for each axis on which kernels differ, by which the fastest is chosen."""
        left, found = self._weighed(), []
        for axis in (*_FIRST_AXES, *(axis for axis in self.shipped.axes if axis not in _FIRST_AXES)):
            times: dict[AxisValue, float] = {}
            for kernel, score in left.items():
                value = value_of(kernel, axis)
                times[value] = min(score, times.get(value, math.inf))
            order = sorted(times, key=lambda value: times[value])
            if len(order) > 1:
                found.append(Rule(axis, tuple(order), self._why(axis, order, left), when=self.when, first=True))
            left = {kernel: score for kernel, score in left.items() if value_of(kernel, axis) == order[0]}
        return found

    def _weighed(self) -> dict[KernelInfo, float]:
        scores = self.scores
        return scores | {self.shipped: scores[self.shipped] * MARGIN}

    def _logs(self, kernel: KernelInfo) -> list[float]:
        return [math.log(figure.us[kernel] / min(figure.us.values())) for figure in self.figures]

    def _why(self, axis: str, order: Sequence[AxisValue], kernels: Iterable[KernelInfo]) -> str:
        """The times of the fastest kernel of each value."""
        fastest: dict[AxisValue, KernelInfo] = {}
        scores = self.scores
        for kernel in sorted(kernels, key=lambda kernel: scores[kernel]):
            fastest.setdefault(value_of(kernel, axis), kernel)
        lines = (
            f"{figure.load} ({figure.store.layout}, pages of {figure.store.page_size}): "
            + ", ".join(f"{value} {figure.us[fastest[value]]:.1f}" for value in order)
            for figure in self.figures
        )
        return f"microseconds of a call, {'; '.join(lines)}"


def groups_of(figures: Iterable[Figure]) -> list[Group]:
    """The figures by what rules can tell of their calls, in the order in which they were measured."""
    found: dict[str, Group] = {}
    for figure in figures:
        when = _when(figure)
        group = found.setdefault(str(when), Group(when, ()))
        found[str(when)] = group._replace(figures=(*group.figures, figure))
    return list(found.values())


def promotion_rule(us: Mapping[str, Mapping[int, float]]) -> Rule:
    """The order of what L2 fetches at once.

    us  of each call, in words: bytes -> its time, what kvit's own rules choose first
    """
    shipped, *others = next(iter(us.values()))
    scores = {
        promoted: math.exp(_mean([math.log(times[promoted] / min(times.values())) for times in us.values()]))
        for promoted in (shipped, *others)
    }
    scores[shipped] *= MARGIN
    order = sorted(scores, key=lambda promoted: scores[promoted])
    lines = (
        f"{call}: {', '.join(f'{promoted} bytes {times[promoted]:.1f}' for promoted in order)}"
        for call, times in us.items()
    )
    return Rule(L2_PROMOTION, tuple(order), f"microseconds of a call, {'; '.join(lines)}")


def value_of(kernel: KernelInfo, axis: str) -> AxisValue:
    """The kernel's value of an axis; its family counts as one."""
    return kernel.family if axis == "family" else kernel.axes[axis]


def _when(figure: Figure) -> dict[str, Any]:
    call, rung = figure.call, figure.rung
    is_small = call.page_size <= SMALL_PAGES
    rows = {"min": rung.least_rows} | ({} if rung.most_rows is None else {"max": rung.most_rows})
    return {
        "kv": call.kv,
        "head_dim": call.head_dim,
        "variant": call.variant,
        "is_packed": call.is_packed,
        "page_size": {"max": SMALL_PAGES} if is_small else {"min": SMALL_PAGES + 1},
        "rows": rows,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
