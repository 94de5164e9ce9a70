# Whole numbers of callers and of C.
from libc.stdint cimport int64_t

# Numbers as a tuple. What cannot have memory here leaves nothing behind: a list comprehension of Cython 3.3 gives what
# it could not append back twice.
cdef tuple tuple_of(const int64_t *numbers, int count)
# `given`, a whole number of any type, as an int from `least` to `most`. Raises ShapeError, which names it.
cdef object number_in(str name, object given, object least, object most)
# The same of each number of `given`, of 64 bits.
cdef tuple numbers_in(str name, object given)
