"""The custom operators kvit::attention, attention_lse, append and gather, as torch.compile and autograd see them.

Everything that is traced is an argument: a tensor, a number or a word. The fakes say which shapes come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from kvit.errors import KvitError
from kvit.torch import call
from kvit.torch.call import Arguments

# K and V in pages, and whose they are: what every operator takes, and what it need not be given.
_CACHE = ("k_cache", "v_cache", "lengths", "pages")
_OPTIONAL = ("indptr", "query_indptr", "k_params", "v_params", "k_scale", "v_scale")
# Not torch.library.custom_op: for an operator that writes, with so many arguments, it takes 0.2 ms a call.
_LIBRARY = torch.library.Library("kvit", "DEF")
# Inductor hands tensors over with the strides that they have without it, as far as the version can.
_STRIDES = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
_WORDS = 'str layout="NHD", int? page_size=None, str? k_codec=None, str? v_codec=None'


def _operator(
    name: str,
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    rest: str,
    run: Callable[[Arguments], Any],
    fake: Callable[[Arguments], Any],
    written: tuple[str, ...] = (),
) -> Any:
    """An operator of tensors in order, and of numbers and words by name.

    rest       the schema of the latter, and of what is returned
    run, fake  what it does, and what its results look like; both take the arguments by name
    written    tensors that it writes
    """
    needed, optional = (*needed, *_CACHE), (*_OPTIONAL, *optional)

    def declared(tensor: str) -> str:
        mark = f"({chr(ord('a') + written.index(tensor))}!)" if tensor in written else ""
        return f"Tensor{mark} {tensor}" if tensor in needed else f"Tensor{mark}? {tensor}=None"

    def by_name(function: Callable[[Arguments], Any]) -> Callable[..., Any]:
        names = (*needed, *optional)
        return lambda *tensors, **others: function({**dict(zip(names, tensors, strict=False)), **others})

    schema = f"({', '.join(map(declared, (*needed, *optional)))}, *, {_WORDS}, {rest}"
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag, _STRIDES))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, by_name(run), key)
    torch.library.register_fake(f"kvit::{name}", by_name(fake), lib=_LIBRARY)
    if not written:  # PyTorch takes no formula for the others
        torch.library.register_autograd(f"kvit::{name}", lambda ctx, *gradients: _refuse(name), lib=_LIBRARY)
    torch.library.register_vmap(f"kvit::{name}", lambda info, dims, *args, **others: _refuse_vmap(name), lib=_LIBRARY)
    return getattr(torch.ops.kvit, name).default


def _fake_attention(given: Arguments) -> torch.Tensor:
    q = given["q"]
    return q.new_empty((q.shape[0], q.shape[1], _channels(given, "v")))


def _fake_attention_lse(given: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    q = given["q"]
    return _fake_attention(given), q.new_empty((q.shape[0], q.shape[1]), dtype=torch.float32)


def _fake_gather(given: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    pool = given["k_cache"]
    heads = pool.shape[-2 if given.get("layout", "NHD") == "NHD" else -3]
    dtype = _dtype_of_rows(given)
    k, v = (pool.new_empty((given["tokens"], heads, _channels(given, side)), dtype=dtype) for side in "kv")
    return k, v


def _channels(given: Arguments, side: str) -> Any:
    """Of a row of K or of V: two to a byte of int4."""
    stored = given[f"{side}_cache"].shape[-1]
    return stored * 2 if given.get(f"{side}_codec") == "int4" else stored


def _dtype_of_rows(given: Arguments) -> torch.dtype:
    """What CacheView says that rows are, of tensors without memory."""
    tensors = (given.get(name) for name in ("k_cache", "v_cache", "k_params", "v_params"))
    wide = (tensor.dtype for tensor in tensors if tensor is not None and tensor.dtype.itemsize == 2)
    return given.get("dtype") or next(wide, torch.bfloat16)


_ATTENTION = (
    "float? scale=None, bool causal=True, int? window_left=None, int? window_right=None, int? chunk=None, "
    "float? softcap=None, int tokens_per_sequence=1, int? split_tokens=None, bool reads_ahead=False) -> "
)
_MODIFIERS = ("spans", "tree", "sinks", "alibi", "temperature")

attention = _operator(
    "attention", ("q",), _MODIFIERS, f"{_ATTENTION}Tensor", lambda given: call.attend(given, False)[0], _fake_attention
)
attention_lse = _operator(
    "attention_lse",
    ("q",),
    _MODIFIERS,
    f"{_ATTENTION}(Tensor, Tensor)",
    lambda given: call.attend(given, True),
    _fake_attention_lse,
)
append = _operator(
    "append",
    ("k", "v"),
    ("q", "k_bias", "v_bias", "q_bias", "k_norm", "q_norm", "prefix_lengths", "positions"),
    "float norm_eps=1e-06, float norm_offset=0.0, str? rope=None) -> ()",
    call.append,
    lambda given: None,
    written=call.WRITTEN,
)
gather = _operator(
    "gather", (), (), "SymInt tokens, ScalarType? dtype=None) -> (Tensor, Tensor)", call.gather, _fake_gather
)


def refuse_gradients(name: str, *tensors: torch.Tensor | None) -> None:
    """Raise KvitError if autograd would record this call: kvit computes no gradients."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        _refuse(name)


def _refuse(name: str) -> NoReturn:
    raise KvitError(
        f"kvit.torch.{name.removesuffix('_lse')} has no backward, and one of its tensors requires a gradient; call it "
        "under torch.no_grad() or torch.inference_mode(), or give tensor.detach()"
    )


def _refuse_vmap(name: str) -> NoReturn:
    raise KvitError(
        f"kvit.torch.{name.removesuffix('_lse')} has no vmap: a call takes any number of sequences, as rows of "
        "the page table; put the batch there"
    )
