"""RMSNorm of rows of K and Q: its weights and numbers, checked."""

from __future__ import annotations

import math
from typing import Any

from kvit import _checks
from kvit.layouts.views import CacheView


def norms_of(view: CacheView, k_norm: Any, q_norm: Any, norm_eps: Any, norm_offset: Any) -> dict[str, Any]:
    """What a launch of append takes of k_norm, q_norm, norm_eps and norm_offset; nothing where there are no weights.

    Raises ShapeError, DtypeError, DeviceError, LayoutError (weights), ValueError (norm_eps, norm_offset).
    """
    found: dict[str, Any] = {}
    for name, source in (("k_norm", k_norm), ("q_norm", q_norm)):
        if source is None:
            continue
        weights = _checks.tensor(name, source, view.dtype)
        _checks.require_shape(name, weights, head_dim=view.k_dim)
        _checks.require_rows(name, weights)
        _checks.require_device(view.device, **{name: weights})
        found[name] = weights
    if found:
        found["norm_epsilon"], found["norm_offset"] = (
            _checks.number("norm_eps", norm_eps),
            _checks.number("norm_offset", norm_offset),
        )
        if not 0 < found["norm_epsilon"] < math.inf:
            raise ValueError(f"norm_eps is {norm_eps}; it must be greater than 0 and finite, as 1e-6 or 1e-5 are")
        if not math.isfinite(found["norm_offset"]):
            raise ValueError(
                f"norm_offset is {norm_offset}; it must be finite: 0, or 1 for weights that are kept less 1"
            )
    return found
