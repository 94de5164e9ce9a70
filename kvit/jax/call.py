"""What the custom calls do: kvit's operations on the memory that XLA hands over, prepared once for each place of it.

A call has its arrays by position, and one word of JSON that names them and holds every number:

    {"family": "attention", "arguments": ["q", "k_cache", ...], "results": ["out"], "options": {"causal": true, ...},
     "cache": {"layout": "NHD", ...}}
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from kvit._native import xla_handlers
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.dtypes import dtype_of
from kvit.errors import LayoutError
from kvit.layouts.views import CacheView, PageTable
from kvit.ops.kept import KeptOperations

kept = KeptOperations()
"""The operations of all custom calls."""

POOLS = ("k_cache", "v_cache", "k_params", "v_params")
"""Arguments of append that are results as well, in the same memory."""

_READ = {
    "attention": ("query_indptr", "spans", "tree"),
    "append": ("query_indptr", "k_bias", "v_bias", "q_bias", "prefix_lengths", "positions"),
    "gather": ("query_indptr",),
}
_MADE_WITH = {"attention": ("sinks", "alibi", "temperature"), "append": ("k_norm", "q_norm"), "gather": ()}


@functools.lru_cache(maxsize=1024)
def _parsed(words: bytes) -> dict[str, Any]:
    return json.loads(words)


def prepare(
    words: bytes, arguments: list[Tensor], results: list[Tensor], stream: int, device: str
) -> Callable[[], Any]:
    """What does the call: everything is found and checked by now that only its place in memory decides.

    Raises what the operations raise, and LayoutError where XLA gave a cache other memory than its argument's.
    """
    said = _parsed(words)
    given = dict(zip(said["arguments"], arguments, strict=True))
    into = dict(zip(said["results"], results, strict=True))
    on = Stream.wrap(stream if device != "host" else None, device)
    for name in POOLS:
        if name in into:
            if into[name].pointer != given[name].pointer:
                raise LayoutError(
                    f"XLA gave {name} new memory where the call must write in place; this is a fault of kvit"
                )
            given[name] = into.pop(name)
    options = {name: tuple(x) if isinstance(x, list) else x for name, x in said["options"].items()}
    family = said["family"]
    view = view_of(given, dtype=said["dtype"], **said["cache"])
    table = table_of(given)
    read = {name: given[name] for name in _READ[family] if name in given}
    made_with = {name: given[name] for name in _MADE_WITH[family] if name in given}
    if "tree" in read:
        read["tree"] = words_of_64(read["tree"])
    if family == "attention":
        q = given["q"]
        masks = {name: name in read for name in ("spans", "tree")}
        operation = kept.attention(view, q.shape[1], on, **masks, **made_with, **options)
        return functools.partial(operation, q, view, table, stream=on, **into, **read)
    if family == "append":
        operation = kept.append(view, on, **made_with, **options)
        turned = {"q": given["q"], **into} if "q" in given else {}
        return functools.partial(operation, given["k"], given["v"], view, table, stream=on, **turned, **read)
    pair = into["k"], into["v"]
    return functools.partial(kept.gather(view, on), view, table, out=pair, stream=on, **read)


def view_of(given: dict[str, Tensor], **options: Any) -> CacheView:
    """The cache among the arguments of a call."""
    scales = {name: given[name] for name in ("k_params", "v_params", "k_scale", "v_scale") if name in given}
    return kept.view(given["k_cache"], given["v_cache"], **scales, **options)


def table_of(given: dict[str, Tensor]) -> PageTable:
    """The page table among them."""
    if "indptr" in given:
        return PageTable(indices=given["pages"], indptr=given["indptr"], lengths=given["lengths"])
    return PageTable(given["pages"], lengths=given["lengths"])


def described(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arrays as their shapes and types alone, for checks while a program is traced: nobody may touch their bytes."""
    return {
        name: Tensor.from_pointer((index + 1) << 40, array.shape, dtype_of(array.dtype), "host")
        for index, (name, array) in enumerate(arguments.items())
    }


def words_of_64(tree: Tensor) -> Tensor:
    """Bits of a tree as int64: without jax_enable_x64 they come as pairs of 32-bit numbers, the low one first."""
    if tree.dtype.bits != 32 or len(tree.shape) != 2 or tree.shape[1] % 2:
        return tree
    shape = tree.shape[0], tree.shape[1] // 2
    return Tensor.from_pointer(tree.pointer, shape, "int64", tree.device, readonly=True, owner=tree)


xla_handlers.install(prepare)
