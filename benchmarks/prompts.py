"""What the prefill benchmark measures: batches of prompts, chunks and decode steps, and what is known of them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Group(NamedTuple):
    """Sequences that are alike."""

    count: int
    new_tokens: int
    length: int  # new tokens included


@dataclass(frozen=True)
class Prompt:
    """One cell. Its name says what is not the default: 1x4096, 512@131072:8/1, 1x16384,full,d64, 2x2048+128x1@2048."""

    groups: tuple[Group, ...]
    query_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    kv: str = "bfloat16"
    page_size: int = 64
    causal: bool = True

    def __str__(self) -> str:
        words = [":".join(["+".join(map(_group_name, self.groups)), *([] if self._has_usual_heads else [self._heads])])]
        words += [f"d{self.head_dim}"] * (self.head_dim != 128) + [self.kv] * (self.kv != "bfloat16")
        words += [f"p{self.page_size}"] * (self.page_size != 64) + ["full"] * (not self.causal)
        return ",".join(words)

    @property
    def counts(self) -> list[int]:
        """New tokens of every sequence."""
        return [group.new_tokens for group in self.groups for _ in range(group.count)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of every sequence."""
        return [group.length for group in self.groups for _ in range(group.count)]

    @property
    def flops(self) -> int:
        """Of both products, over the pairs of a query and a key that it sees: a causal square counts half."""
        pairs = 0
        for count, new, length in self.groups:
            hidden = new * new // 2 if self.causal else 0
            pairs += count * (new * length - hidden)
        return 4 * pairs * self.query_heads * self.head_dim

    @property
    def _has_usual_heads(self) -> bool:
        return (self.query_heads, self.kv_heads) == (32, 8)

    @property
    def _heads(self) -> str:
        return f"{self.query_heads}/{self.kv_heads}"


def parse(name: str) -> Prompt:
    """The cell of this name. Raises ValueError."""
    head, *words = name.split(",")
    batch, _, heads = head.partition(":")
    options: dict[str, object] = {"groups": tuple(map(_parse_group, batch.split("+")))}
    if heads:
        match = re.fullmatch(r"(\d+)/(\d+)", heads)
        if match is None:
            raise ValueError(f"{heads!r} in {name!r}: heads are QUERY_HEADS/KV_HEADS, such as 32/8")
        options |= {"query_heads": int(match[1]), "kv_heads": int(match[2])}
    for word in words:
        if match := re.fullmatch(r"([dp])(\d+)", word):
            options["head_dim" if match[1] == "d" else "page_size"] = int(match[2])
        elif word == "full":
            options["causal"] = False
        elif word in ("float16", "bfloat16", "int8", "int4", "float8_e4m3"):
            options["kv"] = word
        else:
            raise ValueError(f"{word!r} in {name!r}: d64, p16, full, or a codec such as int8")
    return Prompt(**options)  # type: ignore[arg-type]


def _group_name(group: Group) -> str:
    count, new, length = group
    times = f"{count}x" if count > 1 or new == length else ""
    return f"{times}{new}" + (f"@{length}" if new != length else "")


def _parse_group(text: str) -> Group:
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)(?:@(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no group of sequences; such are 4x512 (prompts), 512@131072 (the end of one)")
    count, new, length = int(match[1] or 1), int(match[2]), int(match[3] or match[2])
    if not 0 < new <= length or count < 1:
        raise ValueError(f"{text!r}: {new} new tokens of {length}")
    return Group(count, new, length)


REACH_TFLOPS = {
    "1x4096": 705,
    "1x16384": 690,
    "8x2048": 580,
    "1x16384,full": 700,
    "1x16384,d64": 545,
    "1x8192:16/2,d256": 700,
    "512@131072:8/1": 700,
    "256@131072:8/1": 660,
    "2048@32768": 745,
}
"""Cell -> what must be reached on an H200, 10**12 operations per second."""

REACH_US = {
    "1x2048+128x1@2048": 280,
    "2x2048+128x1@2048": 350,
    "1x8192+64x1@4096": 960,
    "4x512+256x1@1024": 265,
}
"""The same for mixed batches, in microseconds of a call."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "anchors": tuple(REACH_TFLOPS),
    "mixed": tuple(REACH_US),
    "lengths": tuple(f"1x{length}" for length in (512, 1024, 2048, 8192, 32768, 131072)),
    "pages": tuple(f"1x8192,p{page}" for page in (1, 8, 16, 256)),
    "codecs": tuple(f"1x8192,{kv}" for kv in ("bfloat16", "int8", "int4", "float8_e4m3")),
}
"""Cells that answer one question."""


def select(wanted: Sequence[str]) -> list[Prompt]:
    """Cells by name, pattern or family, each once; all where nothing is wanted. Raises ValueError."""
    known = [name for names in FAMILIES.values() for name in names]
    found: list[str] = []
    for word in wanted or list(FAMILIES):
        names: Iterable[str] = FAMILIES.get(word) or fnmatch.filter(known, word) or (word,)
        found += [str(parse(name)) for name in names]
    return [parse(name) for name in dict.fromkeys(found)]
