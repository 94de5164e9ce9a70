"""pyx/runtime/context: devices and the context that calls run in."""

import pytest

from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit.errors import DeviceError


def test_a_device_is_one_object_however_it_is_named(device):
    assert Device.of(device) is Device.of(device) is Device.of(Device.of(device))
    assert str(Device.of(device)) == device


def test_the_host_describes_itself_without_a_driver():
    host = Device.of("host")
    assert (host.name, host.num_sms, host.compute_capability, host.ordinal) == ("host", 4, None, -1)
    assert host.is_host and host.memory_bytes > 1 << 28
    assert host.l2_bytes is None and host.shared_bytes is None


@pytest.mark.parametrize("unknown", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu", "", None, 0], ids=repr)
def test_an_unknown_device_is_refused_with_the_names_that_exist(unknown):
    with pytest.raises(DeviceError, match='give "host", "cuda" .* or "cuda:N"'):
        Device.of(unknown)


def test_a_device_is_found_not_made():
    with pytest.raises(TypeError, match="Device.of"):
        Device()


@pytest.mark.gpu
def test_a_gpu_describes_itself():
    gpu = Device.of("cuda")
    assert gpu is Device.of("cuda:0")
    assert gpu.compute_capability >= (7, 5) and gpu.num_sms > 0 and gpu.name
    assert gpu.l2_bytes > 1 << 20 and gpu.shared_bytes >= 48 * 1024 and gpu.memory_bytes > 1 << 30


@pytest.mark.gpu
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(DeviceError, match="'cuda:99' does not exist; the driver shows cuda:0"):
        Device.of("cuda:99")


@pytest.mark.gpu
def test_the_callers_context_is_used_and_left_as_it_was():
    from cuda.bindings import driver

    def current():
        return int(driver.cuCtxGetCurrent()[1])

    before = current()
    Buffer.empty(4, "float32", "cuda:0").fill_bytes(0)
    assert current() == before
    _, primary = driver.cuDevicePrimaryCtxRetain(0)
    driver.cuCtxPushCurrent(primary)
    try:
        buffer = Buffer.empty(4, "float32", "cuda:0")
        assert current() == int(primary)
        assert buffer.numpy().shape == (4,)
    finally:
        driver.cuCtxPopCurrent()
        driver.cuDevicePrimaryCtxRelease(0)
    assert current() == before
