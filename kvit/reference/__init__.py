"""The definition of what kvit computes: numpy only, float64 inside, written to be read."""

from .attention import State, attention, merge_states, visible_keys
from .paged import Cache, Fault, Table, append, copy_pages, gather, paged_attention, token_ranges
from .rounding import rounded

__all__ = [
    "Cache",
    "Fault",
    "State",
    "Table",
    "append",
    "attention",
    "copy_pages",
    "gather",
    "merge_states",
    "paged_attention",
    "rounded",
    "token_ranges",
    "visible_keys",
]
