"""A step of a MixedCache: new tokens in 16 bits, and those that leave the window encoded when it ends."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn

from kvit import _checks
from kvit._native.tensor import Tensor
from kvit.cache.ageing import age
from kvit.cache.mixed_sequence import MixedSequence
from kvit.cache.step import Step
from kvit.cache.storage import upload
from kvit.errors import refuse_copy


class MixedStep(_checks.Made):
    """New tokens of sequences, in all layers of a MixedCache. Made by MixedCache.step() and MixedBatch.step().

        with cache.step(seqs, new_tokens=1) as step:
            for layer in range(cache.num_layers):
                step.append(k, v, layer=layer)
                out = cache.attention(q, step, layer=layer)

    The sequences grow when the block ends, all at once; then whole pages that left the window become codes. Where an
    exception ends it, the sequences are what they were.
    """

    def __init__(
        self,
        cache: Any,
        members: tuple[MixedSequence, ...],
        ages: list[int],
        exact: Step,
        positions: Tensor | None = None,
    ):
        self.cache = cache  # a MixedCache, which stands above this module
        self.members = members
        self.exact = exact
        self._ages = ages
        self._positions = positions

    @property
    def counts(self) -> list[int] | int:
        """New tokens of each sequence, or of every one."""
        return self.exact.counts

    @property
    def is_open(self) -> bool:
        """Whether it was neither committed nor closed."""
        return self.exact.is_open

    def append(self, k: Any, v: Any, *, layer: int = 0, q: Any = None, q_out: Any = None, rotate: bool = True) -> None:
        """Write K and V of the step's tokens in a layer, as CacheLayer.append: rows turn to their true places."""
        into = self.cache.exact.layer(layer)
        turns = into.rope is not None and _checks.flag("rotate", rotate)
        positions = self._true_positions() if turns else None
        into.append(self.exact, k, v, q=q, q_out=q_out, rotate=rotate, positions=positions)

    def commit(self) -> None:
        """Let the sequences have their new tokens, and encode those that left the window. Raises as Step.commit."""
        self.exact.commit()
        age(self.cache, self.members, self._ages, self.exact.stream)

    def close(self) -> None:
        """Drop the step unless it was committed: the sequences are what they were."""
        self.exact.close()

    def _true_positions(self) -> Tensor | None:
        """int32 [tokens]: what lies in front of the new tokens, codes included. None: they are those in 16 bits."""
        if self._positions is None and any(len(seq.coded) for seq in self.members):
            counts = self.counts
            each = [counts] * len(self.members) if isinstance(counts, int) else counts
            found: list[int] = []
            for seq, count, end in zip(self.members, each, self.exact.lengths, strict=True):
                end += len(seq.coded)
                found += range(end - count, end)
            self._positions = upload(found, self.exact.stream)
        return self._positions

    def __enter__(self) -> MixedStep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.is_open:
            self.commit()
        else:
            self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "its pages are counted")

    @_checks.words_of_made
    def __repr__(self) -> str:
        return f"MixedStep({self.exact!r}, of {self.cache!r})"
