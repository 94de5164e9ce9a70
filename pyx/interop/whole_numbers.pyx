"""Whole numbers of callers and of C: shapes, strides, addresses."""
from operator import index as as_index

from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t

from kvit.errors import ShapeError


cdef tuple tuple_of(const int64_t *numbers, int count):
    cdef object number
    cdef int i
    found = PyTuple_New(count)
    for i in range(count):
        number = numbers[i]
        Py_INCREF(number)  # which SET_ITEM takes over
        PyTuple_SET_ITEM(found, i, number)
    return found


cdef object number_in(str name, object given, object least, object most):
    found = None
    try:
        found = as_index(given)
    except TypeError:
        pass
    if found is None:
        raise ShapeError(f"{name} is {given!r}; it must be a whole number")
    if not least <= found <= most:
        raise ShapeError(f"{name} is {found}; it must be {least} to {most}")
    return found


cdef tuple numbers_in(str name, object given):
    items = None
    try:
        items = list(given)
    except TypeError:
        pass
    if items is None:
        raise ShapeError(f"{name} is {given!r}; give whole numbers, one for each axis")
    for i in range(len(items)):
        items[i] = number_in(f"{name}[{i}]", items[i], -2**63, 2**63 - 1)
    return tuple(items)
