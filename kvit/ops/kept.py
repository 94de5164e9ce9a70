"""Operations kept by what they were made for, for callers that hand over arrays, numbers and words alone."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from kvit import _checks, codecs
from kvit._native.buffer import Buffer
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import DriverError, PageTableError
from kvit.layouts.views import CacheView
from kvit.ops.append import Append
from kvit.ops.attention import Attention
from kvit.ops.faults import FaultRecord
from kvit.ops.gather import Gather
from kvit.ops.operation import Operation
from kvit.ops.plan import call_on
from kvit.ops.rope import Rope

Made = TypeVar("Made", bound=Operation)


class _Entry:
    """An operation, the stream of its calls, and whether a graph may hold launches of it."""

    __slots__ = ("is_captured", "operation", "stream")

    def __init__(self, operation: Operation, stream: Stream):
        self.operation, self.stream, self.is_captured = operation, stream, False


class KeptOperations:
    """Operations by configuration and stream. One is made when it is first asked for, which allocates and waits.

    most  of them are kept; then the one goes that was used longest ago, after the work of its stream is done. Those
          that were captured in a graph stay, and are not counted: the graph's launches use their workspaces

    Operations of one device share a record of faults, which `check` reads. Calls of one configuration on one stream
    share an operation; those on two streams have one each, so that they may run side by side. A stream that is being
    captured makes nothing, and takes over an operation that another stream has used. Safe in several threads.
    """

    def __init__(self, most: int = 64):
        self.most = most
        self._entries: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
        self._faults: dict[str, FaultRecord] = {}
        self._ones: dict[tuple[str, int], Buffer] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def attention(self, view: CacheView, query_heads: int, stream: Stream, **options: Any) -> Attention:
        """The Attention of these arguments. Arrays among the options count by their address: their owner may go, for
        whoever calls the operation has one that lies there.
        """
        return self._find(Attention, view, stream, options, lambda **given: Attention(view, query_heads, **given),
                          query_heads)  # fmt: skip

    def append(self, view: CacheView, stream: Stream, *, rope: str | None = None, **options: Any) -> Append:
        """The Append of these arguments; rope as `words_of_rope` gives it."""

        def make(**given: Any) -> Append:
            return Append(view, rope=None if rope is None else _rope_of(rope), **given)

        return self._find(Append, view, stream, options, make, rope)

    def gather(self, view: CacheView, stream: Stream) -> Gather:
        """The Gather for caches like `view`."""
        return self._find(Gather, view, stream, {}, lambda **given: Gather(view, **given))

    def view(
        self,
        k: Tensor,
        v: Tensor,
        *,
        k_codec: str | None = None,
        v_codec: str | None = None,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        **options: Any,
    ) -> CacheView:
        """CacheView of k and v. The codecs are those of their memory if absent, and the scales of float8 are ones.

        options  layout, page_size, k_params, v_params and dtype, as CacheView has them
        """
        kv = tuple(codecs.codec_of(name or pool.dtype) for name, pool in ((k_codec, k), (v_codec, v)))
        scales = {"k_scale": k_scale, "v_scale": v_scale}
        for (name, scale), codec in zip(scales.items(), kv, strict=True):
            if scale is None and codec.params == "scale" and len(k.shape) >= 3:
                heads = k.shape[-2 if options.get("layout", "NHD") == "NHD" else -3]
                scales[name] = self.ones(heads, k.device)
        return CacheView(k, v, kv=kv, **scales, **options)

    def ones(self, count: int, device: str) -> Buffer:
        """float32 [count] of ones: the scales of float8 for callers that name none. Made once, so that a call that is
        captured allocates nothing.
        """
        key = device, count
        with self._lock:
            if key not in self._ones:
                import numpy

                self._ones[key] = Buffer.from_numpy(numpy.ones(count, numpy.float32), device)
                self._ones[key].stream.synchronize()
            return self._ones[key]

    def check(self) -> None:
        """Wait for the work of every stream that was used; raise PageTableError for the first fault that is found.

        Each fault is told once.
        """
        with self._lock:
            streams = {(entry.stream.device, entry.stream.handle): entry.stream for entry in self._entries.values()}
            records = list(self._faults.values())
        for stream in streams.values():
            stream.synchronize()
        found: PageTableError | None = None
        for record in records:
            try:
                record.check(record.buffer.stream)
            except PageTableError as error:
                found = found or error
        if found is not None:
            raise found

    def clear(self) -> None:
        """Wait for every operation and let all of them go. Graphs that hold launches of them must not run any more."""
        with self._lock:
            for entry in self._entries.values():
                entry.stream.synchronize()
            self._entries.clear()
            self._ones.clear()

    def _find(
        self,
        kind: type[Made],
        view: CacheView,
        stream: Stream,
        options: dict[str, Any],
        make: Callable[..., Made],
        *more: Any,
    ) -> Made:
        is_capturing = stream.is_capturing
        of_view = view.device, view.kv_heads, view.codecs, call_on(view, 0)
        key = (stream.handle, kind, *of_view, *more, *map(_key_of, options.items()))
        with self._lock:
            entry = self._entries.get(key)
            if entry is None and is_capturing:
                entry = self._entries[key] = _Entry(self._taken_over(key), stream)
            elif entry is None:
                self._make_room()
                entry = self._entries[key] = _Entry(make(faults=self._faults_of(view.device), **options), stream)
            else:
                self._entries.move_to_end(key)
            entry.is_captured |= is_capturing
            assert isinstance(entry.operation, kind)
            return entry.operation

    def _taken_over(self, key: tuple[Any, ...]) -> Operation:
        """The operation of the same configuration that another stream has used, for one that is being captured."""
        for other, entry in self._entries.items():
            if other[1:] == key[1:] and not entry.is_captured:
                del self._entries[other]
                return entry.operation
        raise DriverError(
            f"the stream is being captured, and this is the first {key[1].__name__} of its configuration: making it "
            "allocates and waits. Make the same call once before the capture, on any other stream"
        )

    def _make_room(self) -> None:
        free = [key for key, entry in self._entries.items() if not entry.is_captured]
        for key in free[: max(0, len(free) - self.most + 1)]:
            self._entries[key].stream.synchronize()
            del self._entries[key]

    def _faults_of(self, device: str) -> FaultRecord:
        if device not in self._faults:
            self._faults[device] = FaultRecord(device)
        return self._faults[device]


def _key_of(option: tuple[str, Any]) -> tuple[Any, ...]:
    name, value = option
    if hasattr(value, "pointer"):
        return name, value.pointer, value.shape, value.strides, value.dtype.code
    return name, value


def words_of_rope(rope: Rope) -> str:
    """All that a Rope is made of, as JSON: a word that programs can be traced with."""
    _checks.made("rope", rope, Rope, "a kvit.Rope")
    return json.dumps(
        {
            "head_dim": rope.head_dim,
            "base": rope.base,
            "rotary_dim": rope.rotary_dim,
            "interleaved": rope.interleaved,
            "scaling": rope.scaling or None,
        }
    )


def _rope_of(words: Any) -> Rope:
    try:
        return Rope(**json.loads(words))
    except (TypeError, json.JSONDecodeError):
        raise TypeError(f"rope is {words!r}; give what rope_words(kvit.Rope(...)) returns") from None
