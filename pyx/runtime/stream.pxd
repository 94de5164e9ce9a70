# An ordered queue of work on one device.
from kvit._native.context cimport Device
from kvit._native.tensor cimport Tensor


cdef class Stream:
    cdef void *c_stream                # CUstream, or a stream of the host; NULL is the default one. `handle` in Python
    cdef Device dev
    cdef bint is_owned                 # destroyed with this object
    cdef object owner                  # foreign stream object, kept alive
    cdef list kept                     # what the Graph that is being captured from the stream needs; None: none is

    # Lets a graph that is being captured keep a tensor alive. Free when none is.
    cdef int keep(self, Tensor tensor) except -1

    # Makes later work of this stream wait for what `other` holds now. Free when they are the same.
    cdef int order_after_handle(self, void *other) except -1
    # The same for the producer of a tensor that named its stream. Free when it did not.
    cdef int order_after(self, Tensor tensor) except -1

# The Stream that `stream` stands for on `device`: None (its default), a Stream, an int handle, or a foreign stream.
cdef Stream stream_of(object stream, Device device)

# The Stream of a handle that is somebody's, who is kept alive.
cdef Stream adopt(object handle, object owner, Device device)

# Stands in an object whose __init__ was not called, in place of its stream.
cdef Stream no_stream()
