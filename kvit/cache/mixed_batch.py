"""A batch of sequences of a MixedCache that stays together over many steps: one graph stands for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from kvit import _checks
from kvit._native.buffer import Buffer
from kvit._native.stream import Stream
from kvit.cache.ageing import aged, require_room
from kvit.cache.attention import attention
from kvit.cache.batch import Batch
from kvit.cache.mixed_cache import MixedCache
from kvit.cache.mixed_sequence import MixedSequence
from kvit.cache.mixed_step import MixedStep
from kvit.errors import ShapeError, refuse_copy
from kvit.ops.merge import merge_state


class MixedBatch(_checks.Made):
    """Sequences of one MixedCache that take many steps together, whose graph stays right while they grow and age.

        batch = kvit.MixedBatch(cache, seqs, query_heads=32, stream=stream)
        with batch.step():
            with kvit.Graph.capture(stream) as graph:
                for layer in range(cache.num_layers):
                    batch.append(k, v, layer=layer)
                    batch.attention(q, layer=layer, out=out)
            graph.launch()
        for _ in range(100):
            with batch.step():
                graph.launch()                        # tokens that left the window become codes when the block ends

    cache        a MixedCache
    seqs         sequences of it, each at most once
    query_heads  of every layer, or a list with those of each
    new_tokens   of each sequence in every step
    max_tokens   of each sequence, as in kvit.Batch
    stream       of all calls, as in kvit.Batch

    Attention is three launches for each layer, whether there are codes or not: a graph cannot ask. Their memory is
    taken here, for layers alike once. Raises what kvit.Batch raises, and ShapeError (query_heads, new_tokens).
    """

    def __init__(
        self,
        cache: MixedCache,
        seqs: Iterable[MixedSequence],
        query_heads: int | Iterable[int],
        *,
        new_tokens: int = 1,
        max_tokens: int | None = None,
        stream: Any = None,
    ):
        _checks.made("cache", cache, MixedCache, "a kvit.MixedCache")
        [self.new_tokens] = _checks.require_counts(new_tokens=new_tokens)
        self.cache, self.stream = cache, Stream.wrap(stream, cache.device)
        self.seqs: tuple[MixedSequence, ...] = cache.members_of(seqs)
        how: dict[str, Any] = {"max_tokens": max_tokens, "stream": self.stream}
        self._exact = Batch(cache.exact, [seq.exact for seq in self.seqs], **how)
        self._coded = Batch(cache.coded, [seq.coded for seq in self.seqs], **how)
        self._rows = len(self.seqs) * self.new_tokens
        self._heads = _heads_of_layers(query_heads, cache)
        self._positions = Buffer.empty((max(1, self._rows),), "int32", cache.device, self.stream)
        self._parts: dict[tuple[int, int], list[Buffer]] = {}
        for heads, layer in zip(self._heads, cache.exact.layers, strict=True):
            shape = (self._rows, heads)
            if (heads, layer.v_dim) not in self._parts:
                self._parts[heads, layer.v_dim] = [
                    *(Buffer.empty((*shape, layer.v_dim), layer.dtype, cache.device, self.stream) for _ in range(2)),
                    *(Buffer.empty(shape, "float32", cache.device, self.stream) for _ in range(3)),
                ]
        self._step: MixedStep | None = None

    def step(self) -> MixedStep:
        """Begin a step, as MixedCache.step and Batch.step: pages, positions and tables, for `new_tokens` of each."""
        import numpy

        new = self.new_tokens
        for seq in self.seqs:
            seq.settle()
        ages = [aged(self.cache, len(seq.exact) + new) for seq in self.seqs]
        require_room(self.cache, self.seqs, ages)
        starts = numpy.array([len(seq) for seq in self.seqs], numpy.int32)
        self._coded.rows_of(self._rows, None)  # their table, with what became codes since
        step = self._exact.step(new)
        try:
            if self._rows:
                positions = (starts[:, None] + numpy.arange(new, dtype=numpy.int32)).reshape(-1)
                self._positions.copy_from(positions, self.stream)
            self._step = MixedStep(self.cache, self.seqs, ages, step, self._positions if self._rows else None)
        except BaseException:
            step.close()
            raise
        return self._step

    def append(self, k: Any, v: Any, *, layer: int = 0, q: Any = None, q_out: Any = None, rotate: bool = True) -> None:
        """Write K and V of the open step's tokens in a layer: MixedStep.append. Raises KvitError (no step is open)."""
        self._open().append(k, v, layer=layer, q=q, q_out=q_out, rotate=rotate)

    def attention(self, q: Any, *, layer: int = 0, out: Any = None, lse: Any = None, scale: float | None = None) -> Any:
        """Attend the open step's tokens in a layer: MixedCache.attention, which allocates nothing where out is given.

        Returns out. Raises as MixedCache.attention, and KvitError (no step is open).
        """
        step = self._open()
        exact, coded = self.cache.exact.layer(layer), self.cache.coded.layer(layer)
        q = _checks.tensor("q", q, None, self.stream)
        _checks.require_shape("q", q, tokens=self._rows, query_heads=self._heads[layer], head_dim=exact.head_dim)
        out_a, out_b, lse_a, lse_b, whole = self._parts[self._heads[layer], exact.v_dim]
        attention(q, exact, step.exact, out=out_a, lse=lse_a, scale=scale)
        attention(q, coded, self._coded, causal=False, out=out_b, lse=lse_b, scale=scale)
        lse = whole if lse is None else lse
        return merge_state(out_a, lse_a, out_b, lse_b, out=out, lse=lse, stream=self.stream)[0]

    def _open(self) -> MixedStep:
        self._exact.open_step  # noqa: B018  raises where there is none
        assert self._step is not None
        return self._step

    def __len__(self) -> int:
        return len(self.seqs)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "calls write its tables; make another of forks")

    @_checks.words_of_made
    def __repr__(self) -> str:
        return f"MixedBatch({len(self.seqs)} sequences of {self.cache!r})"


def _heads_of_layers(given: Any, cache: MixedCache) -> list[int]:
    """Query heads of each layer. Raises ShapeError."""
    heads = list(given) if isinstance(given, Iterable) else [given] * cache.num_layers
    if len(heads) != cache.num_layers:
        raise ShapeError(f"query_heads has {len(heads)} numbers and the cache {cache.num_layers} layers; give as many")
    for i, (count, layer) in enumerate(zip(heads, cache.exact.layers, strict=True)):
        [heads[i]] = _checks.require_counts(**{f"query_heads[{i}]": count})
        _checks.group_size(heads[i], layer.kv_heads)
    return heads
