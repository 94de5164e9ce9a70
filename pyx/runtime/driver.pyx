"""The CUDA driver: found and initialised when somebody first needs it, or said to be missing."""
import os

from cuda.bindings cimport cydriver

from kvit._native cimport errors
from kvit._native.driver_calls cimport fill_table, name_of
from kvit._native.driver_table cimport NO_DEVICE, SUCCESS

from kvit.errors import NoGpuError

# cuLibraryLoadData and kernels that need no context came with it.
cdef enum:
    OLDEST_DRIVER = 12000

cdef DriverTable table
cdef bint table_is_filled = False


cdef object no_gpu(str why):
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = "" if allowed is None else f" CUDA_VISIBLE_DEVICES is {allowed!r}."
    return NoGpuError(
        f"no CUDA GPU can be used: {why}. kvit looked for libcuda.so.1, which comes with the NVIDIA driver, and for a "
        f"GPU behind it.{visible} Install the driver, or pass device=\"host\", which needs no GPU."
    )


cdef const DriverTable *cuda_table() except NULL:
    global table_is_filled
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


def driver_version() -> int:
    """CUDA version of the installed driver, as 1000 * major + 10 * minor. Raises NoGpuError where there is none."""
    cdef int version = 0
    cuda_table()
    errors.check(cydriver.cuDriverGetVersion(&version), b"cuDriverGetVersion")
    return version


def num_gpus() -> int:
    """How many GPUs the driver shows to this process. Raises NoGpuError where there is none."""
    cdef int count = 0
    errors.check(cuda_table().device_count(&count), b"cuDeviceGetCount")
    return count
