"""What the choice of a kernel knows of a graphics card: the facts that its driver tells, or those of cards.json."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from kvit.errors import DeviceError
from kvit.selection import capabilities, json_file


class Card(NamedTuple):
    """The facts of a card that rules may ask for. No card has to be there: any machine can name the facts of any."""

    name: str  # as its driver says it: "NVIDIA H200"; "host"
    compute_capability: tuple[int, int] | None  # (major, minor); None: the host, which runs every kernel
    num_sms: int  # multiprocessors
    memory_gbps: float | None = None  # 10**9 bytes per second of its memory at most; None: nobody knows

    @property
    def arch(self) -> str:
        """sm_90, or host."""
        return "host" if self.compute_capability is None else capabilities.name_of(self.compute_capability)

    @property
    def sm_gbps(self) -> float | None:
        """10**9 bytes per second of its memory for each multiprocessor; None where the memory's rate is not known."""
        return self.memory_gbps / self.num_sms if self.memory_gbps and self.num_sms else None

    @property
    def words(self) -> str:
        """The facts in a line, for messages."""
        rate = "" if self.sm_gbps is None else f", {self.sm_gbps:.1f} GB/s for each"
        return f"{self.name} ({self.arch}, {self.num_sms} multiprocessors{rate})"


class Facts(Protocol):
    """What is asked of kvit.Device here."""

    @property
    def name(self) -> str: ...
    @property
    def compute_capability(self) -> tuple[int, int] | None: ...
    @property
    def num_sms(self) -> int: ...
    @property
    def memory_gbps(self) -> float | None: ...


@functools.cache
def card_of(device: Facts) -> Card:
    """The card of a device of this machine. Its memory's rate is what its driver says of the clock and the bus.

    A driver that knows no clock or no bus gives 0; then the rate is that of cards.json, or is not known.
    """
    name, rate = device.name, device.memory_gbps or None
    if rate is None and device.compute_capability is not None:
        rate = peaks_gbps().get(name)
    return Card(name, device.compute_capability, device.num_sms, rate)


@functools.cache
def known_cards() -> Mapping[str, Card]:
    """Name of a card, as its driver says it -> what cards.json has of it.

    The rate of the memory is its bus width times its data rate, or what is published where that is round. All agree
    with published specifications; only that of "NVIDIA H100 80GB HBM3" was measured against.
    """
    rows = json_file.load(Path(__file__).parent / "cards.json")
    cards = (Card(row["name"], tuple(row["compute_capability"]), row["num_sms"], row["peak_gbps"]) for row in rows)
    return {card.name: card for card in cards}


def card_from(given: Card | str) -> Card:
    """The card, or that of this name in cards.json.

    Raises DeviceError, which says which names are nearest, and TypeError for neither.
    """
    if isinstance(given, Card):
        return given
    if not isinstance(given, str):
        raise TypeError(f"card is a {type(given).__name__}; give a name or a kvit.selection.cards.Card")
    name, found = given, known_cards().get(given)
    if found is None:
        words = name.lower().split()
        near = [known for known in known_cards() if words and all(word in known.lower().split() for word in words)]
        near = near or difflib.get_close_matches(name, known_cards(), cutoff=0.5) or list(known_cards())
        raise DeviceError(
            f"card is {name!r}, of which kvit has no facts; it has those of {', '.join(near)}; of any other card, give "
            "a kvit.selection.cards.Card with its compute capability, multiprocessors and memory"
        )
    return found


def peaks_gbps() -> Mapping[str, float]:
    """Name of a card -> 10**9 bytes per second of its memory, at most, as `known_cards` has it."""
    return {name: card.memory_gbps for name, card in known_cards().items() if card.memory_gbps is not None}
