"""What GPUs of a compute capability can do, as far as the choice of a kernel depends on it: no GPU has to be there."""

from __future__ import annotations

# Most shared memory of a CTA, in KB. From the technical specifications by compute capability of the CUDA C++
# Programming Guide.
_SHARED_KB = {
    (7, 0): 96,
    (7, 2): 96,
    (7, 5): 64,
    (8, 0): 163,
    (8, 6): 99,
    (8, 7): 163,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (10, 3): 227,
    (11, 0): 227,
    (12, 0): 99,
    (12, 1): 99,
}


def shared_bytes(compute_capability: tuple[int, int]) -> int:
    """Most shared memory that a CTA can have. Of a capability that is not known here: as little as any of 8.0 and newer
    has, or before that as little as any.
    """
    least = min(kb for known, kb in _SHARED_KB.items() if compute_capability < (8, 0) or known >= (8, 0))
    return _SHARED_KB.get(compute_capability, least) * 1024


def name_of(compute_capability: tuple[int, int]) -> str:
    """sm_90 for (9, 0)."""
    return "sm_{}{}".format(*compute_capability)
