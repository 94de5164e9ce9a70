"""Writes index.json: every kernel with its axes, its targets, and the facts that the host library tells about it."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codegen.errors import BuildError
from codegen.family import Spec

INDEX_VERSION = 1


class _Fact(ctypes.Structure):
    """KvitFact of abi/fact.h."""

    _fields_ = [("name", ctypes.c_char_p), ("value", ctypes.c_int32)]


class _HostKernel(ctypes.Structure):
    """KvitHostKernel of platform/host_api.h."""

    _fields_ = [
        ("symbol", ctypes.c_char_p),
        ("body", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("min_ctas", ctypes.c_int32),
        ("params_bytes", ctypes.c_int32),
        ("facts", ctypes.POINTER(_Fact)),
        ("num_facts", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


def read_host_kernels(library: Path) -> dict[str, dict[str, Any]]:
    """What each kernel of the host library says of itself, by symbol."""
    host = ctypes.CDLL(str(library.resolve()))
    table = ctypes.POINTER(ctypes.POINTER(_HostKernel))()
    count = host.kvit_host_kernels(ctypes.byref(table))
    kernels = {}
    for index in range(count):
        kernel = table[index].contents
        facts = {kernel.facts[i].name.decode(): kernel.facts[i].value for i in range(kernel.num_facts)}
        kernels[kernel.symbol.decode()] = {
            "params_bytes": kernel.params_bytes,
            "threads": kernel.threads,
            "shared_bytes": kernel.shared_bytes,
            "min_ctas": kernel.min_ctas,
            "facts": facts,
        }
    return kernels


def index_text(
    specs: Sequence[Spec],
    host: dict[str, dict[str, Any]],
    archs: Sequence[str],
    drivers: dict[str, tuple[int, int]],
    *,
    kvit: str,
    cuda: str | None,
    ptxas: str | None,
) -> str:
    """The text of index.json.

    host         as read_host_kernels returns it
    drivers      by target, the first CUDA whose drivers take it
    kvit         version of the package
    cuda, ptxas  versions of the toolkit and of the assembler, None if nothing was compiled for a GPU

    Raises BuildError where the library and the manifest disagree on which kernels there are.
    """
    listed = {spec.symbol for spec in specs}
    if listed != set(host):
        raise BuildError(
            "the host library and kernels/manifest.toml disagree: "
            f"missing {sorted(listed - set(host))}, not listed {sorted(set(host) - listed)}"
        )
    kernels = [
        {
            "symbol": spec.symbol,
            "family": spec.family,
            "unit": spec.unit,
            "axes": dict(spec.axes),
            "params": spec.params,
            **host[spec.symbol],
            "archs": [arch for arch in archs if arch in spec.archs],
        }
        for spec in specs
    ]
    index = {
        "version": INDEX_VERSION,
        "kvit": kvit,
        "cuda": cuda,
        "ptxas": ptxas,
        "archs": list(archs),
        "drivers": {arch: list(version) for arch, version in drivers.items()},
        "kernels": kernels,
    }
    return json.dumps(index, indent=1) + "\n"
