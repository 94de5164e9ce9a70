"""Kernels as they are loaded: from a cubin or PTX on a GPU, from the host library elsewhere."""
cimport cython

from kvit._native.context cimport Device, device_of, no_device
from kvit._native.driver cimport cuda_version
from kvit._native.driver_table cimport (
    NO_BINARY_FOR_GPU, NOT_FOUND, SUCCESS, UNSUPPORTED_PTX_VERSION, LaunchConfig,
)
from kvit._native.errors cimport check, fail
from kvit._native.host cimport host_kernel

from kvit.errors import HostBackendError, KernelMissing

cdef enum:
    SHARED_WITHOUT_ASKING = 48 * 1024

cdef dict libraries = {}                   # path -> Library
cdef dict kernels = {}                     # (folder, symbol, device) -> Kernel


@cython.no_gc_clear
cdef class Library:
    """A loaded cubin, or PTX that the driver compiled. Owned: unloaded with this object."""

    def __init__(self):
        raise TypeError("Kernel.load(entry, device) loads the library that it needs")

    def __dealloc__(self):
        if self.handle != NULL:
            try:
                self.driver.library_unload(self.handle)
            except Exception:  # the driver is going away with the process
                pass


cdef class Kernel:
    """An entry of kvit.registry, loaded on one device."""

    def __cinit__(self):
        self.dev = no_device()

    def __init__(self):
        raise TypeError("Kernel.load(entry, device) finds a kernel")

    @staticmethod
    def load(entry, device="cuda:0") -> Kernel:
        """The kernel of `entry` on `device`; the same object every time.

        Raises KernelMissing (nothing built runs on this GPU, or its file is gone), HostBackendError, DriverError.
        """
        return load_kernel(entry, device_of(device))

    cdef LaunchConfig config_of(self, unsigned int ctas) noexcept nogil:
        cdef LaunchConfig config = self.config
        config.grid.x = ctas
        return config

    @property
    def device(self) -> str:
        """"host" or "cuda:N"."""
        return self.dev.spec

    def __repr__(self):
        return f"Kernel({self.entry.symbol!r}, device={self.dev.spec!r})"


cdef Kernel load_kernel(object entry, Device device):
    key = (entry.folder, entry.symbol, device.spec)
    found = kernels.get(key)
    if found is not None:
        return <Kernel>found
    cdef Kernel kernel = Kernel.__new__(Kernel)
    kernel.entry = entry
    kernel.dev = device
    kernel.config.block = entry.threads
    kernel.config.shared_bytes = entry.shared_bytes
    kernel.config.cluster.x = entry.facts.get("cluster", 1)
    kernel.config.cluster.y = kernel.config.cluster.z = kernel.config.grid.y = kernel.config.grid.z = 1
    kernel.params_bytes = entry.params_bytes
    if device.is_host:
        kernel.host = host_kernel(entry.symbol)
        if kernel.host.params_bytes != kernel.params_bytes:
            raise HostBackendError(
                f"{entry.symbol} takes {kernel.host.params_bytes} bytes of parameters in libkvit_host.so and "
                f"{kernel.params_bytes} in index.json; they come from different builds. Reinstall kvit."
            )
    else:
        kernel.config.overlap = entry.overlaps(device.compute_capability)
        load_on_gpu(kernel, device)
    return <Kernel>kernels.setdefault(key, kernel)  # another thread may have been quicker: loading gives up the GIL


cdef int load_on_gpu(Kernel kernel, Device device) except -1:
    cdef int status
    cdef int entered = 0
    cdef bytes symbol = kernel.entry.symbol.encode()
    limit = device.shared_bytes
    if kernel.config.shared_bytes > limit:
        raise KernelMissing(
            f"{kernel.entry.symbol} needs {kernel.config.shared_bytes} shared bytes per CTA; {device.name} has {limit}"
        )
    target = kernel.entry.target(device.compute_capability)
    path = str(kernel.entry.file(target))
    refuse_old_driver(path, kernel.entry.drivers.get(target))
    entered = device.enter()
    try:
        kernel.library = load_library(path, device)
        status = device.driver.library_kernel(&kernel.handle, kernel.library.handle, symbol)
        if status == NOT_FOUND:
            raise KernelMissing(f"{path} has no kernel {kernel.entry.symbol}; its build was another. Reinstall kvit.")
        check(status, b"cuLibraryGetKernel")
        if kernel.config.shared_bytes > SHARED_WITHOUT_ASKING:
            status = device.driver.kernel_shared_limit(kernel.handle, kernel.config.shared_bytes, device.ordinal)
            if status != SUCCESS:
                fail(status, b"cuKernelSetAttribute",
                     f"{kernel.config.shared_bytes} shared bytes of {kernel.entry.symbol}")
    finally:
        device.leave(entered)
    return 0


cdef int refuse_old_driver(str path, needed) except -1:
    """Raises KernelMissing where the driver is older than `needed`, the first (major, minor) of CUDA that takes it."""
    have = cuda_version() // 1000, cuda_version() % 1000 // 10
    if needed is None or have >= needed:
        return 0
    raise KernelMissing(
        f"{path} needs a driver of CUDA {needed[0]}.{needed[1]} or newer; this one is of CUDA {have[0]}.{have[1]}. "
        "Update the NVIDIA driver, or build kvit where nvidia-cuda-nvcc-cu12 is installed: its cubins load from 12.0 on"
    )


cdef Library load_library(str path, Device device):
    found = libraries.get(path)
    if found is not None:
        return <Library>found
    cdef int status
    cdef Library library = Library.__new__(Library)
    cdef bytes image = read_image(path)
    cdef const char *code = image  # PTX ends with a zero, as all bytes objects do
    library.driver = device.driver
    library.path = path
    with nogil:
        status = library.driver.library_load(&library.handle, code)
    if status == UNSUPPORTED_PTX_VERSION:
        raise KernelMissing(f"{path} is PTX newer than the installed driver knows; update the NVIDIA driver")
    if status == NO_BINARY_FOR_GPU:
        raise KernelMissing(f"{path} does not run on {device.name}; set KVIT_ARCHS for it and reinstall kvit")
    if status != SUCCESS:
        fail(status, b"cuLibraryLoadData", path)
    return <Library>libraries.setdefault(path, library)


cdef bytes read_image(str path):
    """The cubin or PTX in a file, unpacked by us: drivers differ in what they can unpack."""
    try:
        import lzma
    except ImportError:
        raise KernelMissing(f"this Python has no lzma module, which unpacks {path}; install liblzma and build Python "
                            "again, or use another one") from None
    try:
        with open(path, "rb") as file:
            image = lzma.decompress(file.read())
    except OSError as error:
        raise KernelMissing(f"{path} cannot be read ({error.strerror}); index.json lists it: reinstall kvit") from None
    except lzma.LZMAError as error:
        raise KernelMissing(f"{path} is damaged ({error}); reinstall kvit") from None
    return image
