"""Keys less a mean, and divided by a width, of each channel: what codes of few bits store better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvit import _checks
from kvit._native.buffer import Buffer
from kvit._native.tensor import Tensor
from kvit.errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

WIDTHS = (2.0**-100, 2.0**100)
"""The least width, and the greatest: what is divided by it, and what is multiplied, stays a number."""


class KeySmoothing(_checks.Made):
    """How keys are stored that few bits would harm: (k - mean) / width of each channel, behind the rotary positions.

        smoothing = kvit.KeySmoothing.measure(k, q)       of a prompt, say: k [tokens, kv_heads, head_dim]
        cache = kvit.PagedCache(..., k="int4_hadamard", v="int4_hadamard", smoothing=smoothing)
        cache.append([sequence], k, v, q=q)               q is multiplied by the width, in place

    A softmax does not notice that all keys have lost the same vector, and queries that are multiplied by the width make
    up for the keys that are divided by it. So attention needs to know nothing of either, and runs as fast as without.
    What does notice a mean is the log-sum-exp of a row, which lacks scale * (q . mean) of the q before smoothing.
    States of one cache are merged all the same, for all of them lack it. Sinks and softcap want whole scores and are
    refused for such a cache.

    mean   float32 [kv_heads, head_dim], an array in host memory that numpy takes; 0 if absent. Finite
    width  the same; 1 if absent. From 2^-100 to 2^100

    Raises ShapeError (no [kv_heads, head_dim], or two shapes), ValueError (numbers out of range, or neither of both).
    Mean: Zhang et al., SageAttention, 2025. Width: Lin et al., QServe (SmoothAttention), 2025.
    """

    def __init__(self, mean: ArrayLike | None = None, width: ArrayLike | None = None):
        import numpy

        if mean is None and width is None:
            raise ValueError("mean and width are both absent; give one of them, or no smoothing at all")
        given = {name: _numbers(name, x) for name, x in (("mean", mean), ("width", width)) if x is not None}
        shapes = {name: x.shape for name, x in given.items()}
        if len({*shapes.values()}) > 1:
            raise ShapeError(f"mean has shape {list(shapes['mean'])} and width {list(shapes['width'])}; give one shape")
        shape = next(iter(shapes.values()))
        self.mean: NDArray = given.get("mean", numpy.zeros(shape, numpy.float32))
        self.width: NDArray = given.get("width", numpy.ones(shape, numpy.float32))
        if not numpy.isfinite(self.mean).all():
            raise ValueError("mean has numbers that are not finite; leave such keys out of the measurement")
        least, most = WIDTHS
        if not ((self.width >= least) & (self.width <= most)).all():
            raise ValueError(
                "width has numbers that are not from 2^-100 to 2^100; give 1 for channels that are always 0"
            )
        for numbers in (self.mean, self.width):
            numbers.setflags(write=False)

    @classmethod
    def measure(cls, k: ArrayLike, q: ArrayLike | None = None) -> KeySmoothing:
        """The smoothing that suits these keys, as append would store them without one: behind their rotary positions.

        k  [tokens, kv_heads, head_dim] in host memory, of any float type; some thousand tokens of typical text will do
        q  [tokens, query_heads, head_dim], queries behind their positions. Widths are then the root of the deviation of
           a channel of k over the root mean square of that channel of q, which spreads the error of codes over scores.
           Absent: widths are 1, and q need not pass through append

        Raises ShapeError (shapes, no tokens), ValueError (numbers that are not finite).
        """
        import numpy

        keys = _rows("k", k)
        mean = keys.mean(0)
        if q is None:
            return cls(mean)
        queries = _rows("q", q)
        if queries.shape[2] != keys.shape[2]:
            raise ShapeError(f"q has head_dim {queries.shape[2]} and k {keys.shape[2]}; give rows of one model")
        group = _checks.group_size(queries.shape[1], keys.shape[1])
        by_kv_head = queries.reshape(len(queries), keys.shape[1], group, -1)
        of_k, of_q = keys.std(0), numpy.sqrt((by_kv_head**2).mean((0, 2)))
        with numpy.errstate(divide="ignore", invalid="ignore"):
            width = numpy.sqrt(of_k / of_q)
        # A channel that never changes, or that no query asks for, needs no width.
        return cls(mean, numpy.where((of_k > 0) & (of_q > 0), numpy.clip(width, *WIDTHS), 1))

    @property
    def kv_heads(self) -> int:
        """KV heads that it is for."""
        return self.mean.shape[0]

    @property
    def head_dim(self) -> int:
        """Channels of a row of K."""
        return self.mean.shape[1]

    @property
    def has_mean(self) -> bool:
        """Whether keys lose a mean. If not, log-sum-exps, sinks and softcap are as without a smoothing."""
        return bool(self.mean.any())

    @_checks.words_of_made
    def __repr__(self) -> str:
        low, high = float(self.width.min()), float(self.width.max())
        return f"KeySmoothing({self.kv_heads} KV heads, head_dim {self.head_dim}, widths {low:.3g} to {high:.3g})"


def pack_smoothing(smoothing: KeySmoothing, kv_heads: int, head_dim: int, device: str) -> Tensor:
    """What launches take: float32 [3, kv_heads, head_dim] on the device, mean, width and 1 / width.

    Raises ShapeError (other heads or channels than the view's), NoGpuError.
    """
    import numpy

    require_fitting(smoothing, kv_heads, head_dim)
    inverse = numpy.float32(1) / smoothing.width
    return Buffer.from_numpy(numpy.stack([smoothing.mean, smoothing.width, inverse]), device)


def require_fitting(smoothing: KeySmoothing, kv_heads: int, head_dim: int) -> None:
    """Raise ShapeError unless the smoothing is for keys of so many heads and channels; TypeError if it is none."""
    _checks.made("smoothing", smoothing, KeySmoothing, "a kvit.KeySmoothing")
    if smoothing.mean.shape != (kv_heads, head_dim):
        raise ShapeError(
            f"the smoothing is for {smoothing.kv_heads} KV heads of {smoothing.head_dim} channels; the cache has "
            f"{kv_heads} of {head_dim}; measure it from keys of this layer"
        )


def same_smoothing(a: KeySmoothing | None, b: KeySmoothing | None) -> bool:
    """Whether keys pass through the same numbers."""
    if a is None or b is None or a is b:
        return a is b
    return a.mean.tobytes() == b.mean.tobytes() and a.width.tobytes() == b.width.tobytes()


def _numbers(name: str, given: Any) -> NDArray:
    """A copy in float32. Raises ShapeError, ValueError."""
    import numpy

    found = _array(name, given, numpy.float32)
    if found.ndim != 2 or 0 in found.shape:
        raise ShapeError(f"{name} has shape {list(found.shape)}; give [kv_heads, head_dim]")
    return found


def _rows(name: str, given: Any) -> NDArray:
    """In float64. Raises ShapeError, ValueError."""
    import numpy

    found = _array(name, given, numpy.float64)
    if found.ndim != 3 or 0 in found.shape:
        raise ShapeError(f"{name} has shape {list(found.shape)}; give [tokens, heads, head_dim]")
    if not numpy.isfinite(found).all():
        raise ValueError(f"{name} has numbers that are not finite; leave such rows out")
    return found


def _array(name: str, given: Any, dtype: Any) -> NDArray:
    """A copy of what numpy takes as numbers. Raises ValueError."""
    import numpy

    try:
        return numpy.array(given, dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        kind = type(given).__name__
        raise ValueError(
            f"{name} is a {kind} that numpy does not take as numbers; give an array in host memory"
        ) from None
