"""What the memory of graphics cards gives at most: cards.json, read once, when first asked."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path


@functools.cache
def peaks_gbps() -> Mapping[str, int]:
    """Name of a card, as its driver says it -> 10**9 bytes per second of its memory, at most.

    Bus width times data rate, or what is published where that is round. All agree with published specifications; only
    the peak of "NVIDIA H100 80GB HBM3" was measured against.
    """
    cards = json.loads((Path(__file__).parent / "cards.json").read_text(encoding="utf-8"))
    return {card["name"]: card["peak_gbps"] for card in cards}
