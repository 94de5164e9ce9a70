"""What decode took elsewhere, and what kvit is to take: measured once on each card, kept as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Anchor(NamedTuple):
    """One cell: microseconds, lower is better."""

    reach: float  # what kvit must reach
    peers: dict[str, float]

    @property
    def best(self) -> tuple[str, float] | None:
        """The fastest peer; None where no peer reads such a cache."""
        return min(self.peers.items(), key=lambda item: item[1]) if self.peers else None


class Card(NamedTuple):
    """What is known of one card.

    FlashInfer 0.7.2, its fa2 on tensor cores and its XQA; FlashAttention-3 on contiguous K and V; TurboMind built for
    sm_90, at the best number of splits of a sweep, its reduction included. CUDA 13.0, driver 580, torch 2.11; graph
    replay, median, inputs rotated over up to 220 MB in at most 16 copies; pages of 64 in NHD, TurboMind's own blocks.
    """

    name: str  # as its driver calls it
    date: str
    cells: dict[str, Anchor]  # by name; a name without a layout stands for both


def _anchors(peers: Sequence[str], rows: dict[str, tuple[float | None, ...]]) -> dict[str, Anchor]:
    """Of rows (what must be reached, the time of each peer). A peer that cannot read such a cache has none."""
    return {
        cell: Anchor(reach, {name: us for name, us in zip(peers, times, strict=True) if us is not None})
        for cell, (reach, *times) in rows.items()
    }


NONE = None  # cannot read such a cache, or was not measured
H100 = Card(
    "NVIDIA H100 80GB HBM3",
    "2026-11-22",
    _anchors(
        ("FlashInfer", "XQA", "FA3", "TurboMind"),
        {
            "1x4096": (9.0, 12.8, 13.7, 17.7, 17.6),
            "1x32768": (48, 54.1, 53.4, 58.4, 59.3),
            "8x4096": (48, 54.1, 52.7, 56.6, 58.6),
            "16x8192": (178, 186.0, 187.2, 185.7, 186.8),
            "64x8192": (700, 710.5, 735.1, 713.4, 702.5),
            "256x2048": (700, 714.3, 732.7, 741.0, 709.4),
            "16x4096:32/32": (350, 352.7, 365.1, 363.6, 352.4),
            "8x4096,float8_e4m3": (26, 39.5, 33.1, NONE, NONE),
            "64x8192,float8_e4m3": (358, 417.6, 403.9, NONE, NONE),
            "1x4096,int8": (8.0, NONE, NONE, NONE, 16.8),
            "8x4096,int8": (27, NONE, NONE, NONE, 41.6),
            "16x8192,int8": (96, NONE, NONE, NONE, 113.2),
            "64x8192,int8": (370, NONE, NONE, NONE, 419.3),
            "1x32768,int4": (17, NONE, NONE, NONE, 34.9),
            "8x4096,int4": (17, NONE, NONE, NONE, 35.5),
            "16x8192,int4": (52, NONE, NONE, NONE, 90.6),
            "64x8192,int4": (195, NONE, NONE, NONE, 308.8),
            "64x4096,int8,d64": (98, NONE, NONE, NONE, 107.4),
            "64x4096,int4,d64": (55, NONE, NONE, NONE, NONE),  # TurboMind faults: misaligned address
        },
    ),
)
H200 = Card(
    "NVIDIA H200",
    "2026-11-29",
    _anchors(
        ("FlashInfer", "XQA", "FA3"),
        {
            "1x4096": (7.2, 14.8, 13.0, 16.7),
            "1x32768": (31.5, 40.4, 38.9, 44.1),
            "8x4096": (31.5, 40.3, 37.9, 43.1),
            "16x8192": (118, 127.0, 125.8, 129.3),
            "64x8192": (467, 483.4, 487.3, 488.7),
            "256x2048": (469, 485.5, 494.0, 520.3),
            "16x4096:32/32": (234, 242.6, 244.8, 255.9),
            "8x4096,float8_e4m3": (18, 36.8, 31.9, NONE),
            "64x8192,float8_e4m3": (236, 385.5, 297.6, NONE),
            "1x4096,int8": (6.4, NONE, NONE, NONE),
            "8x4096,int8": (17.5, NONE, NONE, NONE),
            "16x8192,int8": (61.5, NONE, NONE, NONE),
            "64x8192,int8": (242, NONE, NONE, NONE),
            "512x512,int8": (127, NONE, NONE, NONE),
            "1x32768,int4,HND": (12, NONE, NONE, NONE),
            "8x4096,int4,HND": (12.5, NONE, NONE, NONE),
            "16x8192,int4,HND": (34, NONE, NONE, NONE),
            "64x8192,int4,HND": (128, NONE, NONE, NONE),
            "16x8192,int4,NHD": (36, NONE, NONE, NONE),
            "64x8192,int4,NHD": (140, NONE, NONE, NONE),
            "32x8192:64/8,int4,p128,HND,lognormal": (68, NONE, NONE, NONE),
            "64x4096,int8,d64,HND": (64, NONE, NONE, NONE),
            "64x4096,int8,d64,NHD": (72, NONE, NONE, NONE),
            "64x4096,int4,d64,HND": (38, NONE, NONE, NONE),
            "64x4096,int4,d64,NHD": (44, NONE, NONE, NONE),
            "64x8192,int8+int4,HND": (188, NONE, NONE, NONE),
            "64x8192,int8+int4,NHD": (200, NONE, NONE, NONE),
            "16x4096:16/4,d256": (61, NONE, NONE, NONE),
            "16x4096:16/4,int8,d256": (33, NONE, NONE, NONE),
        },
    ),
)
CARDS = (H100, H200)


def of_card(name: str) -> Card | None:
    """What is known of the card that its driver calls so."""
    return next((card for card in CARDS if card.name == name), None)
