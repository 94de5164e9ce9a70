"""How keys and queries turn with their positions, for C: kvit.Rope behind a handle."""
import kvit

from libc.stdint cimport int32_t

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_ROPE, destroy
from kvit._native.capi_object cimport decref, find, hand_out, hold
from kvit._native.capi_option cimport check_size, check_target, is_set
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK

from kvit._native.capi_error import ArgumentError


cdef int32_t rope_create(const kvit_rope_options *options, kvit_rope **rope) noexcept nogil:
    return leave_python(create(options, rope)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t create(const kvit_rope_options *options, kvit_rope **rope) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        check_size(options, sizeof(kvit_rope_options), "kvit_rope_options")
        check_target(rope, "rope", "kvit_rope")
        rope[0] = <kvit_rope *>hand_out(HANDLE_ROPE, hold(make_rope(options), None), decref)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef object make_rope(const kvit_rope_options *options):
    interleaved, scaling = is_set(options.interleaved, "interleaved"), to_scaling(options.scaling)
    try:
        return kvit.Rope(options.head_dim, options.base or 10000.0, options.rotary_dim or None, interleaved, scaling)
    except kvit.KvitError:
        raise
    except (TypeError, ValueError) as error:  # of numbers that mean nothing
        raise ArgumentError(str(error)) from None


cdef object to_scaling(const char *text):
    import json

    if text == NULL:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"scaling is no JSON: {error}; give the text of a configuration's rope_scaling") from None
    if found is not None and not isinstance(found, dict):
        raise ArgumentError(f"scaling is {found!r}; give the text of a configuration's rope_scaling, an object of JSON")
    return found


cdef int32_t rope_destroy(kvit_rope *rope) noexcept nogil:
    return destroy(rope, HANDLE_ROPE)


cdef object to_rope(kvit_rope *rope):
    return None if rope == NULL else find(rope, HANDLE_ROPE).value
