"""Rules that were measured on this machine's card: the files that `kvit tune` writes, and which of them is read.

The first choice for a card reads its file, and no later one does: KVIT_TUNING names it, or it lies in the user's folder
of configuration.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvit.errors import KvitError
from kvit.selection import json_file, registry
from kvit.selection.cards import Card, Facts, card_of
from kvit.selection.rules import L2_PROMOTION, Rule, installed_rules, parse_rules, setting

VARIABLE = "KVIT_TUNING"
"""Environment variable with the path of the file; `none`: no file is read."""

_KEYS = ("kvit", "card", "driver", "date", "rules")
_BETWEEN_WORDS = re.compile("[^a-z0-9]+")

_instead: contextvars.ContextVar[RuleSet | None] = contextvars.ContextVar("instead", default=None)


class TuningFile(NamedTuple):
    """What a file of `kvit tune` says."""

    path: Path
    kvit: str  # version of kvit whose kernels were measured
    driver: str  # release of the card's driver
    date: str  # of the measurement: 2026-11-30
    card: Card | None  # that they were measured on; None of another version of kvit, which may write of other facts
    rules: tuple[Rule, ...]  # none of another version


class RuleSet(NamedTuple):
    """The rules for a card, and where they come from."""

    rules: tuple[Rule, ...]  # of the file, then those that kvit ships
    path: Path | None = None  # of a file that there is
    left_out: str | None = None  # why none of its rules are among these


def rules_for(card: Card) -> RuleSet:
    """The rules that choose kernels for a card in this process.

    Raises KvitError: KVIT_TUNING names a file that is not there, or a file cannot be read or is none of `kvit tune`.
    """
    instead = _instead.get()
    return _found(card) if instead is None else instead


@contextlib.contextmanager
def using(rules: Sequence[Rule]) -> Iterator[None]:
    """Inside of `with`, in this thread, every card has these rules: for who measures what other rules would choose."""
    token = _instead.set(RuleSet(tuple(rules)))
    try:
        yield
    finally:
        _instead.reset(token)


def forget() -> None:
    """Read files again: for who changes them, or the environment, while the process runs."""
    _found.cache_clear()


def l2_promotion_bytes(device: Facts) -> int:
    """What L2 fetches at once at most, for tensor maps of a device. Raises KvitError as rules_for does."""
    card = card_of(device)
    return int(setting(rules_for(card).rules, L2_PROMOTION, card).order[0])


def path_for(card: Card) -> Path | None:
    """The file that is read for a card, if it is there: that which KVIT_TUNING names, or the usual one.

    None where KVIT_TUNING is `none`. Without KVIT_TUNING the host has none either: its times say nothing.
    """
    named = os.environ.get(VARIABLE, "")
    if named:
        return None if named == "none" else Path(named)
    return None if card.compute_capability is None else usual_path(card)


def usual_path(card: Card) -> Path | None:
    """The file of a card in the user's folder of configuration: $XDG_CONFIG_HOME/kvit, or ~/.config/kvit.

    None where there is no such folder. Defined by the XDG Base Directory Specification, by which a path that is not
    absolute counts as absent.
    """
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    folder = configured if os.path.isabs(configured) else os.path.expanduser("~/.config")
    if not os.path.isabs(folder):  # a user without a home
        return None
    return Path(folder) / "kvit" / f"tuning-{_BETWEEN_WORDS.sub('-', card.name.lower()).strip('-')}.json"


def read(path: Path) -> TuningFile:
    """The file. Raises FileNotFoundError, and KvitError where it cannot be read or is no file of `kvit tune`."""
    try:
        return _parse(path, json_file.load(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KvitError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from None
    except ValueError as error:  # of JSON, or of UTF-8
        raise KvitError(f"{path} is no file of kvit tune, since it is no JSON: {error}; {_REMEDY}") from None
    except TypeError as error:
        raise KvitError(f"{path} is no file of kvit tune: {error}; {_REMEDY}") from None


def text_of(kvit: str, card: Card, driver: str, date: str, rules: Sequence[Rule]) -> str:
    """What `read` reads; the arguments are as in TuningFile."""
    rows = []
    for rule in rules:
        row = {name: value for name, value in rule._asdict().items() if name != "source" and value not in ({}, None)}
        rows.append({name: value for name, value in row.items() if name != "first" or value})
    whole = {"kvit": kvit, "card": card._asdict(), "driver": driver, "date": date}
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in whole.items())
    return f'{{\n{head}  "rules": [\n{lines}\n  ]\n}}\n'


_REMEDY = f"remove it and run `kvit tune` again, or set {VARIABLE}=none to choose by the rules that kvit ships"


@functools.cache
def _found(card: Card) -> RuleSet:
    shipped = installed_rules()
    path = path_for(card)
    if path is None:
        return RuleSet(shipped)
    try:
        found = read(path)
    except FileNotFoundError:
        if not os.environ.get(VARIABLE):
            return RuleSet(shipped)
        raise KvitError(
            f"{VARIABLE} names {path}, which does not exist; write it by `kvit tune --output {path}`, or set "
            f"{VARIABLE}=none to choose by the rules that kvit ships"
        ) from None
    why = _why_left_out(found, card)
    return RuleSet(shipped if why else (*found.rules, *shipped), path, why)


def _why_left_out(found: TuningFile, card: Card) -> str | None:
    installed = registry.installed().kvit
    if found.card is None:
        return f"it was measured with kvit {found.kvit}, and this is kvit {installed}; run `kvit tune` again"
    # The rate of the memory is no part of it: what a driver says of clocks may change with its release.
    if found.card[:3] != card[:3]:
        return f"it was measured on {found.card.words}, and this card is {card.words}; run `kvit tune` here"
    return None


def _parse(path: Path, whole: Any) -> TuningFile:
    if not isinstance(whole, dict):
        raise TypeError(f"it holds a {type(whole).__name__}; it must hold an object with {', '.join(_KEYS)}")
    if lack := next((key for key in _KEYS if key not in whole), None):
        raise TypeError(f"it lacks {lack}; it must have {', '.join(_KEYS)}")
    for key in ("kvit", "driver", "date"):
        if not isinstance(whole[key], str):
            raise TypeError(f"{key} is {whole[key]!r}; it must be text")
    found = TuningFile(path, whole["kvit"], whole["driver"], whole["date"], None, ())
    if found.kvit != registry.installed().kvit:
        return found
    return found._replace(card=_card(whole["card"]), rules=parse_rules(whole["rules"], str(path)))


def _card(row: Any) -> Card:
    if not isinstance(row, Mapping) or set(row) != set(Card._fields):
        raise TypeError(f"card is {row!r}; it must be an object with {', '.join(Card._fields)}")
    name, capability, num_sms, rate = (row[field] for field in Card._fields)
    is_pair = isinstance(capability, list) and [type(part) for part in capability] == [int, int]
    has_facts = type(num_sms) is int and num_sms > 0 and (rate is None or type(rate) in (int, float))
    if not (isinstance(name, str) and (capability is None or is_pair) and has_facts):
        raise TypeError(f"card is {row!r}; name must be text, and the other facts those of a card")
    return Card(name, None if capability is None else (capability[0], capability[1]), num_sms, rate)
