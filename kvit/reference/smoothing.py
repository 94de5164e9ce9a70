"""Keys less a mean, and divided by a width, of each channel, bit for bit as kernels do it: float32, each operation by
itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Smoothing:
    """What kvit.KeySmoothing stands for: mean and width, float32 [kv_heads, head_dim]."""

    mean: NDArray[np.float32]
    width: NDArray[np.float32]

    def of_keys(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows [tokens, kv_heads, head_dim] as they are stored: (k - mean) / width."""
        with np.errstate(over="ignore", invalid="ignore"):
            return (rows - self.mean) * (np.float32(1) / self.width)

    def undone(self, rows: NDArray) -> NDArray:
        """Stored rows as gather gives them, in their dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            return (rows.astype(np.float32) * self.width + self.mean).astype(rows.dtype)

    def of_queries(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows [tokens, query_heads, head_dim] as attention takes them: q * width of their KV head."""
        group = rows.shape[1] // len(self.width)
        with np.errstate(over="ignore", invalid="ignore"):
            return rows * np.repeat(self.width, group, axis=0)
