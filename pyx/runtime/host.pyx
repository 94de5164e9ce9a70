"""The kernels of the host backend: compiled by g++, loaded from libkvit_host.so, run on ordinary memory."""
import os
import sys

from libc.stdint cimport int32_t, uint32_t, uintptr_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen, dlsym

from kvit._native cimport host_stream

from kvit.errors import HostBackendError

cdef extern from "<fenv.h>" nogil:
    ctypedef struct fenv_t:
        pass
    const fenv_t *FE_DFL_ENV
    int fegetenv(fenv_t *environment)
    int fesetenv(const fenv_t *environment)

ctypedef int32_t (*ListKernels)(const KvitHostKernel *const **kernels) noexcept nogil
ctypedef int32_t (*Launch)(const KvitHostLaunch *launch) noexcept nogil
ctypedef const char *(*LastError)() noexcept nogil

_SCHEDULERS = {"fibers": KVIT_HOST_FIBERS, "threads": KVIT_HOST_THREADS}

cdef Launch launch_function = NULL
cdef LastError error_function = NULL
cdef dict kernel_addresses = None          # symbol -> address of its KvitHostKernel; None until the library is loaded
cdef str library_path = None               # set by configure; None: the one that was built with the package
cdef str scheduler_name = "fibers"
cdef int scheduler_code = KVIT_HOST_FIBERS
cdef int num_workers = 0
cdef uint32_t guess_seed = 0


cdef int do_launch(const void *arguments) noexcept nogil:
    cdef const KvitHostLaunch *call = <const KvitHostLaunch *>arguments
    cdef fenv_t of_caller
    cdef int status, i
    # Whoever rounds otherwise, or takes denormals for zero as XLA's threads do: kernels decode codes by way of them.
    fegetenv(&of_caller)
    fesetenv(FE_DFL_ENV)
    status = launch_function(call)
    fesetenv(&of_caller)
    if status != 0:
        for i in range(call.num_spans):
            if call.spans[i].writable == SPAN_IS_WORKSPACE:
                memset(<void *>call.spans[i].base, 0, <size_t>call.spans[i].bytes)
    return status


cdef str find_library():
    if library_path is not None:
        return library_path
    places = []
    for folder in sys.modules["kvit"].__path__:
        places.append(os.path.join(folder, "_kernels", "libkvit_host.so"))
        if os.path.exists(places[-1]):
            return places[-1]
    raise HostBackendError(
        f"the host backend is not built: {places[0]} does not exist. Reinstall kvit (pip install .) to build it."
    )


cdef void *find_function(void *library, bytes name, str path) except NULL:
    cdef void *address = dlsym(library, name)
    if address == NULL:
        raise HostBackendError(f"{path} has no function {name.decode()}; it is of another version. Reinstall kvit.")
    return address


cdef dict load_kernels():
    global kernel_addresses, launch_function, error_function
    cdef const KvitHostKernel *const *kernels = NULL
    cdef void *library
    if kernel_addresses is not None:
        return kernel_addresses
    path = find_library()
    library = dlopen(os.fsencode(path), RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise HostBackendError(f"the host backend does not load: {dlerror().decode()}. Reinstall kvit (pip install .).")
    list_kernels = <ListKernels>find_function(library, b"kvit_host_kernels", path)
    launch_function = <Launch>find_function(library, b"kvit_host_launch", path)
    error_function = <LastError>find_function(library, b"kvit_host_error", path)
    found = {}
    for i in range(list_kernels(&kernels)):
        found[kernels[i].symbol.decode()] = <uintptr_t>kernels[i]
    kernel_addresses = found
    return found


cdef const KvitHostKernel *host_kernel(str symbol) except NULL:
    address = load_kernels().get(symbol)
    if address is None:
        raise HostBackendError(f"the host backend has no kernel {symbol}; its build was another. Reinstall kvit.")
    return <const KvitHostKernel *><uintptr_t>address


cdef int host_run(const KvitHostKernel *kernel, const void *params, uint32_t grid, void *stream, const KvitSpan *spans,
                  int num_spans) noexcept nogil:
    cdef KvitHostLaunch call
    cdef host_stream.Recording *recording
    cdef int status
    call.kernel = kernel
    call.params = params
    call.spans = spans
    call.grid = grid
    call.num_spans = num_spans
    call.scheduler = scheduler_code
    call.workers = num_workers
    call.seed = guess_seed
    recording = host_stream.enter(stream)
    status = do_launch(&call) if recording == NULL else host_stream.record(recording, do_launch, copy_of(&call))
    host_stream.leave(stream)
    return status


cdef void *copy_of(const KvitHostLaunch *call) noexcept nogil:
    """The launch, its spans and its parameters in one piece of memory; NULL where there is none left."""
    cdef size_t spans_bytes = call.num_spans * sizeof(KvitSpan)
    cdef char *copied = <char *>malloc(sizeof(KvitHostLaunch) + spans_bytes + call.kernel.params_bytes)
    cdef KvitHostLaunch *made = <KvitHostLaunch *>copied
    if copied == NULL:
        return NULL
    made[0] = call[0]
    made.spans = <const KvitSpan *>memcpy(copied + sizeof(KvitHostLaunch), call.spans, spans_bytes)
    made.params = memcpy(copied + sizeof(KvitHostLaunch) + spans_bytes, call.params, call.kernel.params_bytes)
    return copied


cdef int host_graph_failed(const void *executable) except -1:
    cdef const host_stream.Recording *recording = <const host_stream.Recording *>executable
    # Of what a graph does, only launches can fail.
    cdef const KvitHostLaunch *call = <const KvitHostLaunch *>recording.items[recording.failed].arguments
    return host_failed(call.kernel, call.grid)


cdef int host_failed(const KvitHostKernel *kernel, uint32_t grid) except -1:
    raise HostBackendError(f"{kernel.symbol.decode()}, grid {grid}: {error_function().decode()}")


def configure(*, scheduler=None, workers=None, library=None, seed=None) -> dict:
    """Choose how the host backend runs kernels. What is not given stays.

    scheduler  "fibers" (deterministic, fast) or "threads" (one OS thread per CUDA thread, for ThreadSanitizer)
    workers    OS threads that run CTAs side by side; 0: as many as there are cores
    library    path of a libkvit_host.so to load instead of the installed one; before the first kernel is looked up
    seed       0 to 2**32 - 1: which old values a kernel finds where it looks before the launch in front has ended. No
               result depends on it; a test that tries many seeds shows that

    Returns the settings as they were, in the form that configure takes.
    Raises HostBackendError for an unknown scheduler, a count or a seed out of range, or a library that comes too late.
    """
    global scheduler_name, scheduler_code, num_workers, library_path, guess_seed
    before = {"scheduler": scheduler_name, "workers": num_workers, "library": library_path, "seed": guess_seed}
    if scheduler is not None and scheduler not in _SCHEDULERS:
        raise HostBackendError(f"scheduler is {scheduler!r}; choose from {', '.join(_SCHEDULERS)}")
    if workers is not None and workers < 0:
        raise HostBackendError(f"workers is {workers}; give a number of threads, or 0 for one per core")
    if seed is not None and not 0 <= seed < 2**32:
        raise HostBackendError(f"seed is {seed}; give 0 to {2**32 - 1}")
    if library is not None and kernel_addresses is not None and os.fspath(library) != library_path:
        raise HostBackendError("the host backend is loaded already; choose its library before the first kernel runs")
    if scheduler is not None:
        scheduler_name, scheduler_code = scheduler, _SCHEDULERS[scheduler]
    if workers is not None:
        num_workers = workers
    if seed is not None:
        guess_seed = seed
    if library is not None:
        library_path = os.fspath(library)
    return before


def kernels() -> list:
    """The symbols of the kernels in libkvit_host.so, sorted."""
    return sorted(load_kernels())
