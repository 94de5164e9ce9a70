"""Which device a call runs on, and the CUDA context that goes with it."""
from kvit._native.driver cimport cuda_table
from kvit._native.driver_table cimport (
    ATTRIBUTE_CC_MAJOR, ATTRIBUTE_CC_MINOR, ATTRIBUTE_L2_BYTES, ATTRIBUTE_MEMORY_BITS, ATTRIBUTE_MEMORY_KHZ,
    ATTRIBUTE_NUM_SMS, ATTRIBUTE_SHARED_BYTES, NOT_INITIALIZED,
)
from kvit._native.errors cimport check
from kvit._native.forks cimport num_forks
from kvit._native.host_driver cimport host_table

from kvit.errors import DeviceError

cdef dict devices = {}
cdef Device nowhere = None


cdef class Device:
    """A GPU, or the host. `Device.of("cuda:0")` is the same object every time.

    On a GPU, calls run in the caller's current context if it belongs to the device. Otherwise they run in the primary
    context, the one that the CUDA runtime and PyTorch use, and leave the caller's as they found it.
    """

    def __cinit__(self):
        self.ordinal = -1
        self.facts = {}
        self.spec = "nowhere"

    def __init__(self):
        raise TypeError('Device.of("cuda:0") or Device.of("host") finds a device')

    @staticmethod
    def of(spec) -> Device:
        """The device that `spec` names: "host", "cuda", "cuda:N", or a Device.

        Raises DeviceError for another name or a GPU that is not there, NoGpuError where there is no driver.
        """
        return device_of(spec)

    cdef int enter(self) except -1:
        cdef void *context = NULL
        cdef int ordinal = -1
        if self.is_host:
            return 0
        self.table()
        if self.num_forks != num_forks():  # the driver would say the same, if no lock of its own kept it
            check(NOT_INITIALIZED, b"cuCtxGetCurrent")
        check(self.driver.context_current(&context, &ordinal), b"cuCtxGetCurrent")
        if context != NULL and ordinal == self.ordinal:
            return 0
        check(self.driver.context_push(self.primary_context()), b"cuCtxPushCurrent")
        return 1

    cdef const DriverTable *table(self) except NULL:
        if self.driver == NULL:
            raise TypeError("an object is used whose __init__ was not called; make it as its class says, and let a "
                            "subclass call super().__init__")
        return self.driver

    cdef void *primary_context(self) except? NULL:
        if self.primary == NULL:
            # Retained for the life of the process, as the Device is.
            check(self.driver.primary_retain(&self.primary, self.ordinal), b"cuDevicePrimaryCtxRetain")
        return self.primary

    cdef void leave(self, int entered) noexcept:
        if entered:
            try:
                self.driver.context_pop()
            except Exception:  # the driver is going away with the process
                pass

    cdef object attribute(self, int attribute):
        cdef int value = 0
        if attribute not in self.facts:
            check(self.table().device_attribute(&value, attribute, self.ordinal), b"cuDeviceGetAttribute")
            self.facts[attribute] = value
        return self.facts[attribute]

    @property
    def name(self) -> str:
        """What the driver calls it: "NVIDIA H100 80GB HBM3"; "host" on the host."""
        cdef char[256] name
        check(self.table().device_name(name, sizeof(name), self.ordinal), b"cuDeviceGetName")
        return (<const char *>name).decode()

    @property
    def compute_capability(self):
        """(major, minor); None on the host."""
        if self.is_host:
            return None
        return self.attribute(ATTRIBUTE_CC_MAJOR), self.attribute(ATTRIBUTE_CC_MINOR)

    @property
    def num_sms(self) -> int:
        """Multiprocessors. 4 on any host, so that the same call splits its work the same way on every machine."""
        return self.attribute(ATTRIBUTE_NUM_SMS)

    @property
    def l2_bytes(self):
        """Size of the L2 cache; None on the host."""
        return None if self.is_host else self.attribute(ATTRIBUTE_L2_BYTES)

    @property
    def memory_gbps(self):
        """10**9 bytes per second of its memory at most, by the clock and width of its bus; None on the host."""
        if self.is_host:
            return None
        return 2 * self.attribute(ATTRIBUTE_MEMORY_KHZ) * self.attribute(ATTRIBUTE_MEMORY_BITS) / 8e6

    @property
    def shared_bytes(self):
        """Most dynamic shared memory that a CTA can have; None on the host, where it is as large as a kernel asks."""
        return None if self.is_host else self.attribute(ATTRIBUTE_SHARED_BYTES)

    @property
    def memory_bytes(self) -> int:
        """All of its memory, free or not."""
        cdef size_t num_bytes = 0
        check(self.table().device_memory(&num_bytes, self.ordinal), b"cuDeviceTotalMem")
        return num_bytes

    def __reduce__(self):
        return find_device, (self.spec,)  # there is one of each, in a copy too

    def __str__(self):
        return self.spec

    def __repr__(self):
        return f"Device({self.spec!r})"


cdef Device device_of(object spec):
    cdef Device device
    cdef int count = 0
    if isinstance(spec, Device):
        (<Device>spec).table()
        return spec
    found = devices.get(spec) if isinstance(spec, str) else None
    if found is not None:
        return found
    ordinal = ordinal_of(spec)
    device = Device.__new__(Device)
    device.ordinal = ordinal
    device.is_host = ordinal < 0
    device.num_forks = num_forks()
    if device.is_host:
        device.driver = host_table()
        device.spec = "host"
    else:
        device.driver = cuda_table()
        device.spec = f"cuda:{ordinal}"
        check(device.driver.device_count(&count), b"cuDeviceGetCount")
        if ordinal >= count:
            raise DeviceError(f"device {spec!r} does not exist; the driver shows cuda:0 to cuda:{count - 1}")
    device = devices.setdefault(device.spec, device)
    if spec == "cuda":  # the same as "cuda:0"
        devices[spec] = device
    return device


def find_device(spec) -> Device:
    """Device.of, which says what it does."""
    return device_of(spec)


cdef Device no_device():
    global nowhere
    if nowhere is None:
        nowhere = Device.__new__(Device)
    return nowhere


cdef int ordinal_of(object spec) except? -2:
    if isinstance(spec, str):
        if spec == "host":
            return -1
        if spec == "cuda":
            return 0
        if spec.startswith("cuda:") and spec[5:].isdecimal() and len(spec) < 14:
            return int(spec[5:])
    raise DeviceError(f'device is {spec!r}; give "host", "cuda" (the first GPU) or "cuda:N"')
