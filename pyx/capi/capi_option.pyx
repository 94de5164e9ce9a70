"""Options and answers of the C API: structs that begin with their size, and the constants in them."""
from libc.string cimport memcpy, memset

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit.capi cimport (
    KVIT_ERROR_NO_INTERPRETER, KVIT_HADAMARD, KVIT_LAUNCH_DIRECT, KVIT_LAUNCH_GRAPH, KVIT_LAYOUT_DEFAULT,
    KVIT_LAYOUT_HND, KVIT_LAYOUT_NHD, KVIT_MASK_CAUSAL, KVIT_MASK_NONE, KVIT_OK,
)

from kvit._native.capi_error import ArgumentError
from kvit.codecs import codec_of
from kvit.dtypes import BY_CODE
from kvit.errors import DtypeError


cdef object to_dtype(int32_t code, str name):
    if code == 0:
        return None
    found = BY_CODE.get(code)
    if found is None:
        known = []
        for dtype in BY_CODE.values():
            known.append(f"{dtype.code} ({dtype})")
        raise DtypeError(f"{name} has dtype {code}; the codes are {', '.join(known)}")
    return found


cdef object to_codec(int32_t code, str name):
    found = to_dtype(code & ~KVIT_HADAMARD, name)
    if not code & KVIT_HADAMARD:
        return None if found is None else codec_of(found)
    if found is None or codec_of(found).params != "pair":
        raise DtypeError(
            f"{name} is {code}: KVIT_HADAMARD with {found or 'no dtype'}; add it to KVIT_DTYPE_U8 or KVIT_DTYPE_U4"
        )
    return codec_of(f"{codec_of(found)}_hadamard")


cdef str to_layout(int32_t layout, str default):
    found = {KVIT_LAYOUT_DEFAULT: default, KVIT_LAYOUT_NHD: "NHD", KVIT_LAYOUT_HND: "HND"}.get(layout)
    if found is None:
        raise ArgumentError(f"layout is {layout}; give KVIT_LAYOUT_NHD (1) or KVIT_LAYOUT_HND (2)")
    return found


cdef bint is_causal(int32_t mask) except -1:
    if mask not in (KVIT_MASK_CAUSAL, KVIT_MASK_NONE):
        raise ArgumentError(f"mask is {mask}; give KVIT_MASK_CAUSAL (0) or KVIT_MASK_NONE (1)")
    return mask == KVIT_MASK_CAUSAL


cdef bint is_set(int32_t option, str name) except -1:
    if option not in (0, 1):
        raise ArgumentError(f"{name} is {option}; give 0 or 1")
    return option


cdef str to_launch(int32_t launch):
    found = {KVIT_LAUNCH_DIRECT: "direct", KVIT_LAUNCH_GRAPH: "graph"}.get(launch)
    if found is None:
        raise ArgumentError(f"launch is {launch}; give KVIT_LAUNCH_DIRECT (0) or KVIT_LAUNCH_GRAPH (1)")
    return found


cdef int check_target(const void *target, str name, str kind) except -1:
    if target == NULL:
        raise ArgumentError(f"{name} is NULL; give the address of a {kind} *")
    return 0


cdef int read_options(void *read, const void *options, list earlier, uint32_t known, str name) except -1:
    if options == NULL or (<const uint32_t *>options)[0] not in earlier:
        check_size(options, known, name)
    memset(read, 0, known)
    memcpy(read, options, (<const uint32_t *>options)[0])
    return 0


cdef int check_size(const void *options, uint32_t known, str name) except -1:
    cdef uint32_t size
    if options == NULL:
        raise ArgumentError(f"the {name} is NULL; give the address of one")
    size = (<const uint32_t *>options)[0]  # the first member of every struct that grows
    if size != known:
        raise ArgumentError(f"{name}.size is {size}; set it to sizeof({name}), which is {known} in this kvit")
    return 0


cdef int32_t answer(void *info, void *found, uint32_t earlier, uint32_t known, const char *name) noexcept nogil:
    if info == NULL or (<uint32_t *>info)[0] not in (earlier, known):
        return leave_python(refuse_size(info, known, name)) if enter_python() else KVIT_ERROR_NO_INTERPRETER
    (<uint32_t *>found)[0] = (<uint32_t *>info)[0]
    memcpy(info, found, (<uint32_t *>info)[0])
    return KVIT_OK


cdef int32_t refuse_size(const void *info, uint32_t known, const char *name) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        check_size(info, known, name.decode())
    except BaseException as error:
        status = set_last_error(error)
    return status
