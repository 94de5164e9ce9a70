"""What a type of arrays offers, found out once for all of its objects: which protocols, and whose memory it may be."""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid

from kvit._native.dlpack cimport DLPackExchangeAPI

cdef enum:
    MOST_TYPES = 64                        # that are remembered: a program may make types without end
    IMMUTABLE = 1 << 8                     # Py_TPFLAGS_IMMUTABLETYPE

# Libraries whose arrays may be written. Of others' DLPack from before 1.0, which cannot say that memory is read-only,
# JAX's for one, kvit reads.
_MUTABLE = frozenset(("cupy", "numba", "numpy", "paddle", "torch"))

# The attribute's name, and the one that it had before DLPack 1.2 was out.
_EXCHANGE = ("__dlpack_c_exchange_api__", "__c_dlpack_exchange_api__")

cdef dict known = {}                       # type -> ArrayType


cdef ArrayType array_type_of(object kind):
    cdef ArrayType found = known.get(kind)
    if found is None:
        found = examined(kind)
        if len(known) >= MOST_TYPES:
            known.clear()
        # What offers nothing may still be given it, unless nobody can change it.
        if found.has_struct or found.has_dlpack or found.api != NULL or kind.__flags__ & IMMUTABLE:
            known[kind] = found
    return found


cdef ArrayType examined(object kind):
    cdef ArrayType found = ArrayType.__new__(ArrayType)
    found.has_struct = hasattr(kind, "__array_struct__")
    found.is_plain = kind.__module__ == "numpy" and kind.__name__ == "ndarray"
    found.has_dlpack = hasattr(kind, "__dlpack__")
    found.has_gradients = hasattr(kind, "requires_grad")
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _MUTABLE:
            found.is_mutable = True
    found.capsule = exchange_of(kind)
    if found.capsule is not None:
        found.api = usable(<const DLPackExchangeAPI *>PyCapsule_GetPointer(found.capsule, "dlpack_exchange_api"))
    return found


cdef object exchange_of(object kind):
    """The capsule of a type's exchange functions; None where it has none, or a class below them has its own __dlpack__.

    A subclass that answers __dlpack__ otherwise means it: the functions of its base know nothing of that.
    """
    for base in kind.__mro__:
        names = vars(base)
        for name in _EXCHANGE:
            if name in names:
                capsule = getattr(kind, name)
                return capsule if PyCapsule_IsValid(capsule, "dlpack_exchange_api") else None
        if "__dlpack__" in names:
            return None
    return None


cdef const DLPackExchangeAPI *usable(const DLPackExchangeAPI *api) noexcept:
    """The first of the chain whose version kvit knows, if it has all that kvit calls."""
    while api != NULL and api.header.version.major != 1:
        api = <const DLPackExchangeAPI *>api.header.prev_api
    if api == NULL or api.managed_tensor_from_py_object_no_sync == NULL or api.current_work_stream == NULL:
        return NULL
    return api
