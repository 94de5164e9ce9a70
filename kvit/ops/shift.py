"""Cached tokens at other positions: their keys turned, in place or on the way to other pages."""

from __future__ import annotations

from typing import Any

from kvit import _checks, codecs, dtypes
from kvit._native import row_ops
from kvit._native.context import Device
from kvit._native.prepared import PreparedLaunch, launch_all
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import ShapeError
from kvit.layouts.views import CacheView, PageTable
from kvit.ops import aliases
from kvit.ops.faults import FaultRecord
from kvit.ops.operation import Operation
from kvit.ops.packed_rope import pack_rope
from kvit.ops.page_lists import require_writable
from kvit.ops.rope import Rope
from kvit.ops.transfer import room_for
from kvit.selection import registry


class Shift(Operation):
    """Turns cached keys to other positions, for one shape of cache. A call is one launch.

    For windows of context that move along: the oldest tokens go, and those behind them move to the front. The keys of a
    rope turn by the difference of positions alone, so what appended them need not be known.

    view    CacheView of the caches to come: their dtype, KV heads and head_dim count, not their memory
    rope    Rope that keys were stored with. None: keys hold no position, and only move
    faults  record of faults to share with other operations; its own if absent

    Raises KernelMissing (nothing built covers the shape), ShapeError (a rope of another head_dim), NoGpuError.
    Defined by kvit.reference.shift.
    """

    def __init__(self, view: CacheView, rope: Rope | None, *, faults: FaultRecord | None = None):
        if rope is not None:
            _checks.made("rope", rope, Rope, "a kvit.Rope, or None where keys do not turn")
        super().__init__(view, faults)
        if rope is not None and rope.head_dim != self.head_dim:
            raise ShapeError(f"the rope turns rows of {rope.head_dim} channels; the view's have {self.head_dim}")
        key = {"dtype": view.dtype.short, "kv": codecs.key_of(*view.codecs)}
        self.kernel = registry.serves("shift", room_for(view), **key)
        self.rope = rope
        self._rope = None if rope is None else pack_rope(rope, self.device)

    def __call__(
        self,
        view: CacheView,
        table: PageTable,
        by: Any,
        *,
        first: Any = 0,
        source: PageTable | None = None,
        stream: Any = None,
    ) -> None:
        """Turn the keys of sequences by other positions. Returns before the work is done.

        view    CacheView of the operation's shape; its pages are written
        table   PageTable of the tokens as they are afterwards. To shift pages, name each as a sequence of its own. A
                page must not be in two places, as those of forks are, unless nothing of it is written
        by      positions that are added: a whole number for all sequences, or int32 [sequences] on the device
        first   the first token of a sequence that is shifted, like by; those before it stay as they are
        source  PageTable of as many sequences: token p of table, from first on, is what token p - by of source is, and
                a lower one what token p of source is. Rows that already lie there stay. No row that is written may be
                read for another one. Absent: every token stays where it is
        stream  Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        A key that turns is decoded to the view's dtype, turned (and smoothed) in float32, rounded to that dtype and
        encoded again: the bits of gather and append. So int8 and int4 get an error more with every shift. V keeps its
        bits, and so do keys that only move (but for float8 that moves to rows of another scale). A token that a table
        gives no place stays as it is, and check() says why; a sequence whose length is impossible stays as a whole.
        Raises ShapeError, DtypeError, DeviceError, LayoutError; nothing is launched then.
        """
        stream = Stream.wrap(stream, self.device)
        launch_all(self.prepare(view, table, by, first, source, stream), stream)
        self.faults.last_stream = stream

    def prepare(
        self,
        view: CacheView,
        table: PageTable,
        by: Any,
        first: Any,
        source: PageTable | None,
        stream: Stream,
    ) -> list[PreparedLaunch]:
        """The call, checked, for launch_all; `by` and `first` are the caller's to keep until then."""
        self._check_view(view)
        require_writable("view", view)
        tables = {"table": table} if source is None else {"table": table, "source": source}
        for name, each in tables.items():
            _checks.instance(name, each, PageTable, "a kvit.PageTable")
        count = table.num_sequences
        if source is not None and source.num_sequences != count:
            raise ShapeError(f"source has {source.num_sequences} sequences and table {count}; give as many")
        by_each, by_all = _number_or_tensor("by", by, count, stream)
        first_each, first_all = _number_or_tensor("first", first, count, stream)
        on = {name: each.lengths for name, each in tables.items()}
        _checks.require_device(self.device, view=view.k, by=by_all, first=first_all, **on)
        numbers = (number for each in tables.values() for number in aliases.numbers_of(each))
        aliases.require_unwritten("view", view.packed, ("by", by_all), ("first", first_all), *numbers)
        return row_ops.prepare_shift(
            self.kernel,
            Device.of(self.device),
            view.packed,
            table.packed,
            None if source is None else source.packed,
            by_all,
            by_each,
            first_all,
            first_each,
            self._rope,
            self.faults.buffer,
            stream,
        )


def _number_or_tensor(name: str, given: Any, count: int, stream: Stream) -> tuple[int, Tensor | None]:
    """A number for all sequences, or a tensor with one for each."""
    if hasattr(given, "__index__") and not getattr(given, "shape", ()):
        number = _checks.whole(name, given)
        if not -_checks.MOST <= number <= _checks.MOST:
            raise ShapeError(f"{name} is {number}; positions are numbers of 32 bits")
        return number, None
    found = _checks.tensor(name, given, dtypes.int32, stream)
    _checks.require_shape(name, found, sequences=count)
    _checks.require_dense(name, found)
    return 0, found
