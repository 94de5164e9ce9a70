"""Rules of the choice as data: which values of an axis come first, for which calls, on which cards."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from kvit.selection import json_file
from kvit.selection.axes import AxisValue
from kvit.selection.call import Call
from kvit.selection.cards import Card
from kvit.selection.registry import parse_arch

SHIPPED = "kvit"
"""The source of rules.json."""

L2_PROMOTION = "l2_promotion_bytes"
"""What L2 fetches at once at most for a copy by a tensor map, in bytes. Of a card, not of a kernel."""

SETTINGS: Mapping[str, tuple[AxisValue, ...]] = {L2_PROMOTION: (128, 256)}
"""What rules may decide of a card besides the order of kernels, and the values that there are."""

CARD_FACTS = ("name", "num_sms", "memory_gbps", "sm_gbps")
"""What the key `card` of a rule may ask for, besides the architecture."""


class Rule(NamedTuple):
    """One line of rules.json, or of a file of `kvit tune`: which values of an axis come first, and where."""

    axis: str  # of the kernels; or "family"; or one of SETTINGS
    order: tuple[AxisValue, ...]  # the best first; values that are not named come last
    why: str
    arch: str | None = None  # "sm_90", "sm_90+" for newer ones too, "host"; None: everywhere
    card: Mapping[str, Any] = {}  # one of CARD_FACTS -> its value, a list of values, or {"min": ..., "max": ...}
    when: Mapping[str, Any] = {}  # field of Call -> the same
    first: bool = False  # whether the place in this order outweighs passes over K and V
    source: str = SHIPPED  # or the path of the file

    def applies(self, call: Call, card: Card) -> bool:
        """Whether the rule speaks of such a call on such a card."""
        return self.is_of(card) and all(_holds(wish, getattr(call, name)) for name, wish in self.when.items())

    def is_of(self, card: Card) -> bool:
        """Whether the rule speaks of such a card. What is not known of a card fulfils no wish."""
        return _is_arch(self.arch, card) and all(_holds(wish, getattr(card, name)) for name, wish in self.card.items())


@functools.cache
def installed_rules() -> tuple[Rule, ...]:
    """The rules that kvit ships."""
    return parse_rules(json_file.load(Path(__file__).parent / "rules.json"))


def parse_rules(rows: Any, source: str = SHIPPED) -> tuple[Rule, ...]:
    """Rules from what JSON made of their file. Raises TypeError for a key, a name or a value that no rule can have."""
    if not isinstance(rows, list):
        raise TypeError(f"rules are a {type(rows).__name__}; they must be a list of objects")
    return tuple(_parse(row, source) for row in rows)


def setting(rules: Iterable[Rule], name: str, card: Card) -> Rule:
    """The first rule about this one of SETTINGS that speaks of the card; the first value of its order is to be used."""
    every = (*rules, *installed_rules())
    return next(rule for rule in every if rule.axis == name and rule.is_of(card))


def _parse(row: Any, source: str) -> Rule:
    if not isinstance(row, dict):
        raise TypeError(f"a rule is {row!r}; it must be an object with axis, order and why")
    if slip := next((key for key in row if key not in Rule._fields[:-1]), None):
        raise TypeError(f"a rule has the key {slip!r}; rules have {', '.join(Rule._fields[:-1])}")
    if lack := next((key for key in ("axis", "order", "why") if key not in row), None):
        raise TypeError(f"a rule lacks {lack}; each has axis, order and why")
    axis, order = row["axis"], row["order"]
    for key in ("axis", "why"):
        if not isinstance(row[key], str):
            _refuse(key, row[key], "text")
    if not (isinstance(order, list) and order and all(_is_value(value) for value in order)):
        _refuse("order", order, "a list of texts or whole numbers, at least one")
    if axis in SETTINGS:
        if wrong := next((value for value in order if value not in SETTINGS[axis]), None):
            _refuse(axis, wrong, " or ".join(map(str, SETTINGS[axis])))
        if row.get("when") or row.get("first"):
            raise TypeError(f"a rule about {axis} has `when` or `first`; it is decided for a card, not for a call")
    if not isinstance(row.get("first", False), bool):
        _refuse("first", row["first"], "true or false")
    if row.get("arch") not in (None, "host"):
        _require_arch(row["arch"])
    _require_wishes("when", row.get("when", {}), "a call", Call._fields)
    _require_wishes("card", row.get("card", {}), "a card", CARD_FACTS)
    return Rule(**{**row, "order": tuple(order), "source": source})


def _require_arch(arch: Any) -> None:
    try:
        if parse_arch(arch.removesuffix("+")).kind == "sm":
            return
    except (AttributeError, ValueError):
        pass
    _refuse("arch", arch, "sm_90, sm_90+ for newer ones too, or host")


def _require_wishes(key: str, wishes: Any, owner: str, names: Sequence[str]) -> None:
    if not isinstance(wishes, dict):
        _refuse(key, wishes, "an object")
    for name, wish in wishes.items():
        if name not in names:
            raise TypeError(f"`{key}` names {name}; {owner} has {', '.join(names)}")
        values = wish.values() if isinstance(wish, dict) else wish if isinstance(wish, list) else [wish]
        is_range = isinstance(wish, dict)
        if (is_range and not (wish and wish.keys() <= {"min", "max"})) or not all(
            _is_number(value) if is_range else _is_value(value) or _is_number(value) for value in values
        ):
            _refuse(f"{name} of `{key}`", wish, 'a value, a list of values, or {"min": ..., "max": ...} with numbers')


def _refuse(what: str, given: Any, would_do: str) -> NoReturn:
    raise TypeError(f"{what} of a rule is {given!r}; it must be {would_do}")


def _is_value(value: Any) -> bool:
    return isinstance(value, (str, int))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_arch(arch: str | None, card: Card) -> bool:
    if arch is None or not arch.endswith("+"):
        return arch in (None, card.arch)
    return card.compute_capability is not None and card.compute_capability >= parse_arch(arch[:-1]).version


def _holds(wish: Any, value: Any) -> bool:
    if isinstance(wish, Mapping):
        is_number = isinstance(value, (int, float))  # a head_dim may be "192x128", and a rate not be known
        return is_number and wish.get("min", value) <= value <= wish.get("max", value)
    return value in wish if isinstance(wish, list) else value == wish
