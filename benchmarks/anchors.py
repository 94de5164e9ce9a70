"""What decode took elsewhere, and what kvit is to take: measured once, on one card, kept as data."""

from __future__ import annotations

from typing import NamedTuple

CARD = "NVIDIA H100 80GB HBM3"
DATE = "2026-11-22"
PEERS = ("FlashInfer", "XQA", "FA3", "TurboMind")
"""FlashInfer 0.7.2, its fa2 on tensor cores and its XQA; FlashAttention-3 on contiguous K and V; TurboMind built for
sm_90, at the best number of splits of a sweep, its reduction included. CUDA 13.0, driver 580, torch 2.11; graph replay,
median, inputs rotated over up to 220 MB in at most 16 copies; pages of 64 in NHD, TurboMind's own blocks."""


class Anchor(NamedTuple):
    """One cell: microseconds, lower is better."""

    reach: float  # what kvit must reach
    peers: dict[str, float]

    @property
    def best(self) -> tuple[str, float] | None:
        """The fastest peer; None where no peer reads such a cache."""
        return min(self.peers.items(), key=lambda item: item[1]) if self.peers else None


def _anchor(reach: float, *times: float | None) -> Anchor:
    return Anchor(reach, {name: us for name, us in zip(PEERS, times, strict=True) if us is not None})


NONE = None  # cannot read such a cache
ANCHORS: dict[str, Anchor] = {
    "1x4096": _anchor(9.0, 12.8, 13.7, 17.7, 17.6),
    "1x32768": _anchor(48, 54.1, 53.4, 58.4, 59.3),
    "8x4096": _anchor(48, 54.1, 52.7, 56.6, 58.6),
    "16x8192": _anchor(178, 186.0, 187.2, 185.7, 186.8),
    "64x8192": _anchor(700, 710.5, 735.1, 713.4, 702.5),
    "256x2048": _anchor(700, 714.3, 732.7, 741.0, 709.4),
    "16x4096:32/32": _anchor(350, 352.7, 365.1, 363.6, 352.4),
    "8x4096,float8_e4m3": _anchor(26, 39.5, 33.1, NONE, NONE),
    "64x8192,float8_e4m3": _anchor(358, 417.6, 403.9, NONE, NONE),
    "1x4096,int8": _anchor(8.0, NONE, NONE, NONE, 16.8),
    "8x4096,int8": _anchor(27, NONE, NONE, NONE, 41.6),
    "16x8192,int8": _anchor(96, NONE, NONE, NONE, 113.2),
    "64x8192,int8": _anchor(370, NONE, NONE, NONE, 419.3),
    "1x32768,int4": _anchor(17, NONE, NONE, NONE, 34.9),
    "8x4096,int4": _anchor(17, NONE, NONE, NONE, 35.5),
    "16x8192,int4": _anchor(52, NONE, NONE, NONE, 90.6),
    "64x8192,int4": _anchor(195, NONE, NONE, NONE, 308.8),
    "64x4096,int8,d64": _anchor(98, NONE, NONE, NONE, 107.4),
    "64x4096,int4,d64": _anchor(55, NONE, NONE, NONE, NONE),  # TurboMind faults: misaligned address
}
"""Cell, without a layout -> its figures."""
