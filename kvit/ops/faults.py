"""What kernels find wrong with a page table: the record in device memory, and the exception it becomes."""

from __future__ import annotations

from typing import Any

from kvit._native.buffer import Buffer
from kvit._native.faults import HoldsFaults
from kvit._native.stream import Stream
from kvit.errors import PageTableError

# enum KvitFaultKind of kernels/abi/params.h
_PAGE, _LENGTH, _INDPTR, _BLOCK = 1, 2, 3, 4


class FaultRecord(HoldsFaults):
    """A KvitFault on one device: the first fault since the last check."""

    def __init__(self, device: str):
        self.buffer = Buffer.empty(4, "int32", device)
        self.buffer.fill_bytes(0)
        self.buffer.stream.synchronize()  # kernels of any stream may write it from now on
        self.last_stream = self.buffer.stream

    def check(self, stream: Any = None) -> None:
        """Wait for the work of `stream`, by default of the last call; raise PageTableError if a kernel met a fault."""
        stream = self.last_stream if stream is None else Stream.wrap(stream, self.buffer.device)
        stream.synchronize()
        kind, sequence, slot, value = self.buffer.numpy().tolist()
        if kind:
            self.buffer.fill_bytes(0)
            self.buffer.stream.synchronize()
            raise PageTableError(_describe(kind, sequence, slot, value), sequence, slot, value)


def _describe(kind: int, sequence: int, slot: int, value: int) -> str:
    next_step = "its output is NaN, and nothing of it was written to the cache; correct the table and call again"
    if sequence < 0:  # an operation on whole pages: slot is a place in its lists
        next_step = "it was neither read nor written; correct the list and call again"
        if kind == _INDPTR:
            return f"chain {slot} begins at {value}: out of order, or beyond the end; {next_step}"
        what = "whose block is null or out of alignment" if kind == _BLOCK else "which the cache does not have"
        return f"entry {slot} of the pages is {value}, {what}; {next_step}"
    if kind == _PAGE:
        return f"page {slot} of sequence {sequence} has id {value}, which the cache does not have; {next_step}"
    if kind == _BLOCK:
        return (
            f"page {slot} of sequence {sequence} has id {value}, whose block is null or no multiple of 16; {next_step}"
        )
    if kind == _LENGTH:
        return f"sequence {sequence} has length {value}, which its pages and new tokens do not fit; {next_step}"
    if kind == _INDPTR:
        where = f"entry {slot} of an indptr is {value}, of sequence {sequence}"
        return f"{where}: out of order, or beyond the end; {next_step}"
    return f"sequence {sequence}, slot {slot}, value {value}: fault of unknown kind {kind}; {next_step}"
