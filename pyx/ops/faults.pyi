# Where kernels report what they find wrong with a page table.
from kvit._native.buffer import Buffer
from kvit._native.stream import Stream

class HoldsFaults:
    """Base of the record of faults that operations share."""

    buffer: Buffer
    last_stream: Stream
