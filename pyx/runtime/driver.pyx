"""The CUDA driver: found and initialised when somebody first needs it, or said to be missing."""
import os

from cuda.bindings cimport cydriver

from kvit._native cimport errors
from kvit._native.driver_calls cimport fill_table, name_of
from kvit._native.driver_table cimport NO_DEVICE, SUCCESS

from kvit.errors import NoGpuError

# What kvit calls of the driver: tests/pyx/runtime/test_driver_functions.py holds the list to the sources.
FUNCTIONS = (
    "cuCtxGetCurrent", "cuCtxGetDevice", "cuCtxGetId", "cuCtxPopCurrent", "cuCtxPushCurrent", "cuDeviceGetAttribute",
    "cuDeviceGetCount", "cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuDeviceTotalMem", "cuDriverGetVersion",
    "cuEventCreate", "cuEventDestroy", "cuEventElapsedTime", "cuEventQuery", "cuEventRecord", "cuEventSynchronize",
    "cuGetErrorName", "cuGetProcAddress", "cuGraphAddKernelNode", "cuGraphCreate", "cuGraphDestroy",
    "cuGraphExecDestroy", "cuGraphExecKernelNodeSetParams", "cuGraphInstantiateWithFlags",
    "cuGraphKernelNodeSetAttribute", "cuGraphLaunch", "cuInit", "cuKernelSetAttribute", "cuLaunchKernel",
    "cuLaunchKernelEx", "cuLibraryGetKernel", "cuLibraryLoadData", "cuLibraryUnload", "cuMemAllocAsync",
    "cuMemFreeAsync", "cuMemcpyAsync", "cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuMemcpyPeerAsync",
    "cuMemsetD8Async", "cuPointerGetAttribute", "cuStreamBeginCapture", "cuStreamCreate", "cuStreamDestroy",
    "cuStreamEndCapture", "cuStreamIsCapturing", "cuStreamQuery", "cuStreamSynchronize", "cuStreamWaitEvent",
    "cuTensorMapEncodeTiled",
)

# cuLibraryLoadData and kernels that need no context came with it.
cdef enum:
    OLDEST_DRIVER = 12000

cdef DriverTable table
cdef bint table_is_filled = False
cdef int found_version = 0


cdef object no_gpu(str why):
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = "" if allowed is None else f" CUDA_VISIBLE_DEVICES is {allowed!r}."
    return NoGpuError(
        f"no CUDA GPU can be used: {why}. kvit looked for libcuda.so.1, which comes with the NVIDIA driver, and for a "
        f"GPU behind it.{visible} Install the driver, or pass device=\"host\", which needs no GPU."
    )


cdef const DriverTable *cuda_table() except NULL:
    global table_is_filled, found_version
    cdef int status, version = 0, count = 0
    if table_is_filled:
        return &table
    try:
        status = cydriver.cuInit(0)
        if status == SUCCESS:
            status = cydriver.cuDriverGetVersion(&version)
        if status == SUCCESS:
            status = cydriver.cuDeviceGetCount(&count)
    except Exception as error:
        raise no_gpu(f"the driver could not be loaded ({error})") from None
    if status == NO_DEVICE or (status == SUCCESS and count == 0):
        raise no_gpu("the driver sees no GPU")
    if status != SUCCESS:
        name = name_of(status)
        raise no_gpu(f"cuInit failed with CUresult {status}{'' if name == NULL else f' ({name.decode()})'}")
    if version < OLDEST_DRIVER:
        raise no_gpu(f"the driver is for CUDA {version // 1000}.{version % 1000 // 10}; kvit needs 12.0 or newer")

    fill_table(&table)
    errors.status_name = name_of
    found_version = version
    table_is_filled = True
    return &table


cdef int gpu_of(const void *data) noexcept:
    cdef int ordinal = 0
    cdef int status
    try:
        cuda_table()
        status = cydriver.cuPointerGetAttribute(&ordinal, cydriver.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                                                <cydriver.CUdeviceptr>data)
    except Exception:  # no driver, no GPU: whoever uses the memory will be told
        return 0
    return ordinal if status == SUCCESS else 0


cdef int cuda_version() except -1:
    cuda_table()
    return found_version


def driver_version() -> int:
    """CUDA version of the installed driver, as 1000 * major + 10 * minor. Raises NoGpuError where there is none."""
    return cuda_version()


def missing_functions() -> list[str]:
    """Functions of CUDA 12.0 that kvit calls and this driver lacks. Raises NoGpuError: there is no driver."""
    cdef void *found
    cdef int status
    cdef bytes symbol
    missing = []
    cuda_table()
    for name in FUNCTIONS:
        found = NULL
        symbol = name.encode()
        status = cydriver.cuGetProcAddress(symbol, &found, OLDEST_DRIVER, 0, NULL)
        if status != SUCCESS or found == NULL:
            missing.append(name)
    return missing


def num_gpus() -> int:
    """How many GPUs the driver shows to this process. Raises NoGpuError where there is none."""
    cdef int count = 0
    errors.check(cuda_table().device_count(&count), b"cuDeviceGetCount")
    return count
