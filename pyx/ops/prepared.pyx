"""Launches that are prepared first and given to the driver together: no Python code runs between one and the next."""
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from kvit._native.launcher cimport launch
from kvit._native.stream cimport Stream

from kvit.errors import refuse_copy


cdef class PreparedLaunch:
    """A kernel with its grid and parameters. What these point to is the preparer's to keep."""

    def __dealloc__(self):
        free(self.params)

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it points to memory of its call; prepare another")


cdef PreparedLaunch prepare(Kernel kernel, unsigned int ctas, const void *params, size_t num_bytes, const Spans *spans):
    cdef PreparedLaunch found = PreparedLaunch.__new__(PreparedLaunch)
    found.params = malloc(num_bytes)
    if found.params == NULL:
        raise MemoryError
    memcpy(found.params, params, num_bytes)
    found.kernel = kernel
    found.config = kernel.config_of(ctas)
    found.spans = spans[0]
    return found


def launch_all(list launches not None, Stream stream not None, tuple after=None):
    """Launch all, one after the other.

    after  (object, name, value) to set as the last launch is under way. An exception, of a signal's handler too, comes
           before all of it or after all of it; one of the driver may come between
    """
    cdef PreparedLaunch each
    for each in launches:
        launch(each.kernel, &each.config, each.params, stream, &each.spans)
    if after is not None:
        setattr(after[0], after[1], after[2])
