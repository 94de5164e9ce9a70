"""The handlers that XLA calls for kvit's custom calls, in any of its threads: what it hands over, as kvit.Tensors.

What a call means is Python's to say, once: kvit.jax prepares it from the tensors and the words of the call. The same
call on the same memory is found again by these.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memset

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport error_text, set_last_error
from kvit._native.elements cimport MAX_DIMS, bits_of, check_memory, set_layout
from kvit._native.tensor cimport (
    KVIT_BF16, KVIT_F16, KVIT_F32, KVIT_F64, KVIT_F8E4M3, KVIT_F8E5M2, KVIT_I8, KVIT_I32, KVIT_I64, KVIT_U8, KVIT_U16,
    KVIT_U32, ON_CUDA, ON_HOST, Tensor,
)
from kvit._native.xla_abi cimport (
    XLA_BF16, XLA_EXTENSION_METADATA, XLA_F16, XLA_F32, XLA_F64, XLA_F8E4M3FN, XLA_F8E5M2, XLA_FAILED_PRECONDITION,
    XLA_INVALID_ARGUMENT, XLA_IS_BUFFER, XLA_IS_STRING, XLA_S8, XLA_S32, XLA_S64, XLA_STAGE_EXECUTE,
    XLA_U8, XLA_U16, XLA_U32, XlaApi, XlaBuffer, XlaBuffers, XlaBytes, XlaCall, XlaError, XlaErrorCreate,
    XlaFirstMetadata, XlaMetadata, XlaMetadataExtension, XlaOrdinalGet, XlaStreamGet, XlaVersion,
)
from kvit.capi cimport KVIT_OK

from kvit.errors import DtypeError, KvitError, LayoutError

cdef enum:
    MOST_BUFFERS = 32                  # of a call, arguments and results together
    MOST_PREPARED = 1024

# Where the memory of a call is, as a key: nothing else of the call may change what is done.
cdef struct Place:
    uintptr_t data
    int64_t[MAX_DIMS] shape
    int32_t dtype
    int32_t rank


cdef struct Key:
    uintptr_t stream
    int64_t device_id
    int64_t num_arguments
    int64_t num_results
    Place[MOST_BUFFERS] places


cdef object prepare = None
cdef dict prepared = {}


def install(function) -> None:
    """Have calls prepared by function(words, arguments, results, stream, device), which returns what does the call.

    words      bytes: the attribute `words` of the custom call
    arguments  list of read-only Tensors, as XLA hands them over; results: of Tensors that are written
    stream     handle of the stream that XLA works on, an int; 0 on the host
    device     "host" or "cuda:N"

    The function, and what it returns, is called with the GIL, by any thread.
    """
    global prepare
    prepare = function


def forget() -> None:
    """Let go of all that was prepared."""
    prepared.clear()


def capsules() -> dict:
    """The handlers by XLA's platform, in capsules as jax.ffi.register_ffi_target takes them."""
    return {
        "cpu": PyCapsule_New(<void *>on_host, b"xla._CUSTOM_CALL_TARGET", NULL),
        "CUDA": PyCapsule_New(<void *>on_cuda, b"xla._CUSTOM_CALL_TARGET", NULL),
    }


cdef XlaError *on_host(XlaCall *call) noexcept nogil:
    return handle(call, False)


cdef XlaError *on_cuda(XlaCall *call) noexcept nogil:
    return handle(call, True)


cdef XlaError *handle(XlaCall *call, bint is_cuda) noexcept nogil:
    cdef uintptr_t stream = 0
    cdef int32_t ordinal = 0
    cdef int32_t status
    cdef XlaError *error
    if call.extensions != NULL and call.extensions.type == XLA_EXTENSION_METADATA:
        describe(call.api, (<XlaMetadataExtension *>call.extensions).metadata)
        return NULL
    if call.stage != XLA_STAGE_EXECUTE:
        return NULL
    if is_cuda:
        error = find_device(call, &stream, &ordinal)
        if error != NULL:
            return error
    if not enter_python():
        return fail(call.api, XLA_FAILED_PRECONDITION, error_text())
    status = leave_python(run(call, is_cuda, stream, ordinal))
    return NULL if status == KVIT_OK else fail(call.api, XLA_INVALID_ARGUMENT, error_text())


cdef void describe(const XlaApi *api, XlaMetadata *metadata) noexcept nogil:
    """Say that calls must not be captured, since the first one allocates, and which version of the ABI this is: the
    runtime's own. What kvit reads of the others has the same place in 0.1 to 0.3.
    """
    cdef XlaVersion *version = &metadata.api_version
    if metadata.struct_size > sizeof(XlaVersion):
        metadata.traits = 0
    else:
        version = &(<XlaFirstMetadata *>metadata).api_version
        version.struct_size, version.extensions = sizeof(XlaVersion), NULL
        (<XlaFirstMetadata *>metadata).traits = 0
    version.major = 0
    version.minor = 1 if api == NULL else api.version.minor


cdef XlaError *find_device(XlaCall *call, uintptr_t *stream, int32_t *ordinal) noexcept nogil:
    """The stream and the GPU that XLA runs the call on."""
    cdef XlaStreamGet of_stream
    cdef XlaOrdinalGet of_ordinal
    cdef XlaError *error
    if call.api.struct_size < sizeof(XlaApi):
        return fail(call.api, XLA_FAILED_PRECONDITION,
                    b"DeviceError: this jaxlib does not tell handlers which GPU they run on; install a newer one")
    memset(&of_stream, 0, sizeof(of_stream))
    memset(&of_ordinal, 0, sizeof(of_ordinal))
    of_stream.struct_size, of_stream.context = sizeof(of_stream), call.context
    of_ordinal.struct_size, of_ordinal.context = sizeof(of_ordinal), call.context
    error = call.api.stream_get(&of_stream)
    if error == NULL:
        error = call.api.ordinal_get(&of_ordinal)
    stream[0], ordinal[0] = <uintptr_t>of_stream.stream, of_ordinal.ordinal
    return error


cdef XlaError *fail(const XlaApi *api, int code, const char *message) noexcept nogil:
    cdef XlaErrorCreate given
    memset(&given, 0, sizeof(given))
    given.struct_size, given.message, given.code = sizeof(given), message, code
    return api.error_create(&given)


cdef int32_t run(XlaCall *call, bint is_cuda, uintptr_t stream, int32_t ordinal) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        execute(call, is_cuda, stream, ordinal)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int execute(XlaCall *call, bint is_cuda, uintptr_t stream, int32_t ordinal) except -1:
    cdef bytes words = words_of(call)
    key = (words, key_of(call, stream, ordinal if is_cuda else -1))
    found = prepared.get(key)
    if found is None:
        if prepare is None:
            raise KvitError("kvit.jax was not imported; import it before programs that call kvit are run")
        found = prepare(words, tensors_of(&call.arguments, is_cuda, ordinal, True),
                        tensors_of(&call.results, is_cuda, ordinal, False), stream,
                        f"cuda:{ordinal}" if is_cuda else "host")
        if len(prepared) >= MOST_PREPARED:
            prepared.clear()
        prepared[key] = found
    found()
    return 0


cdef bytes words_of(const XlaCall *call):
    cdef const XlaBytes *text
    if call.attributes.count != 1 or call.attributes.types[0] != XLA_IS_STRING:
        raise KvitError("a custom call of kvit has one attribute, `words`; call the functions of kvit.jax")
    text = <const XlaBytes *>call.attributes.items[0]
    return PyBytes_FromStringAndSize(text.text, text.length)


cdef bytes key_of(const XlaCall *call, uintptr_t stream, int64_t device_id):
    cdef Key key
    cdef const XlaBuffers *both[2]
    cdef const XlaBuffer *buffer
    cdef int count = 0
    cdef int64_t i, axis
    both[0], both[1] = &call.arguments, &call.results
    if call.arguments.count + call.results.count > MOST_BUFFERS:
        raise LayoutError(f"a call has more than {MOST_BUFFERS} arguments and results")
    memset(&key, 0, sizeof(key))
    key.stream, key.device_id = stream, device_id
    key.num_arguments, key.num_results = call.arguments.count, call.results.count
    for side in range(2):
        for i in range(both[side].count):
            buffer = <const XlaBuffer *>both[side].items[i]
            if both[side].types[i] != XLA_IS_BUFFER or buffer.rank > MAX_DIMS:
                raise LayoutError(f"argument or result {i} is no array of at most {MAX_DIMS} axes")
            key.places[count].data = <uintptr_t>buffer.data
            key.places[count].dtype, key.places[count].rank = buffer.dtype, <int32_t>buffer.rank
            for axis in range(buffer.rank):
                key.places[count].shape[axis] = buffer.shape[axis]
            count += 1
    return PyBytes_FromStringAndSize(<const char *>&key, sizeof(key) - (MOST_BUFFERS - count) * sizeof(Place))


cdef list tensors_of(const XlaBuffers *buffers, bint is_cuda, int32_t ordinal, bint is_readonly):
    cdef list found = []
    cdef int64_t i
    for i in range(buffers.count):
        found.append(tensor_of(<const XlaBuffer *>buffers.items[i], is_cuda, ordinal, is_readonly))
    return found


cdef Tensor tensor_of(const XlaBuffer *buffer, bint is_cuda, int32_t ordinal, bint is_readonly):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef int dtype = dtype_of_xla(buffer.dtype)
    if dtype < 0:
        raise DtypeError(f"XLA's type {buffer.dtype} has no dtype here; give arrays of another one")
    tensor.memory.data = buffer.data
    tensor.memory.readonly = is_readonly
    tensor.memory.device_type = ON_CUDA if is_cuda else ON_HOST
    tensor.memory.device_id = ordinal if is_cuda else 0
    tensor.bits = bits_of(dtype)
    set_layout(&tensor.memory, dtype, <int>buffer.rank, buffer.shape, NULL)
    check_memory(&tensor.memory)
    return tensor


cdef int dtype_of_xla(int dtype) noexcept:
    """enum KvitDtype; -1 where there is none."""
    if dtype == XLA_BF16:
        return KVIT_BF16
    if dtype == XLA_F16:
        return KVIT_F16
    if dtype == XLA_F32:
        return KVIT_F32
    if dtype == XLA_S32:
        return KVIT_I32
    if dtype == XLA_U8:
        return KVIT_U8
    if dtype == XLA_S8:
        return KVIT_I8
    if dtype == XLA_F8E4M3FN:
        return KVIT_F8E4M3
    if dtype == XLA_F8E5M2:
        return KVIT_F8E5M2
    if dtype == XLA_S64:
        return KVIT_I64
    if dtype == XLA_U16:
        return KVIT_U16
    if dtype == XLA_U32:
        return KVIT_U32
    return KVIT_F64 if dtype == XLA_F64 else -1
