"""pyx/runtime/stream: owned, default and foreign streams."""

import pytest

from kvit._native.stream import Stream
from kvit.errors import DeviceError


class WithProtocol:
    """What cuda.core's streams look like."""

    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


class LikeTorch:
    def __init__(self, handle):
        self.cuda_stream = handle


class LikeCupy:
    def __init__(self, handle):
        self.ptr = handle


def test_a_new_stream_is_done_and_not_capturing(device):
    stream = Stream(device)
    stream.synchronize()
    assert stream.is_done and not stream.is_capturing
    assert stream.device == device


def test_the_default_stream_is_the_legacy_one_and_one_object(device):
    assert Stream.default(device) is Stream.default(device) is Stream.wrap(None, device)
    assert Stream.default(device).handle == 0


def test_a_stream_is_passed_through(device):
    stream = Stream(device)
    assert Stream.wrap(stream, device) is stream


@pytest.mark.gpu
@pytest.mark.parametrize("foreign", [int, WithProtocol, LikeTorch, LikeCupy])
def test_a_foreign_stream_is_used_by_its_handle(foreign):
    owner = Stream("cuda:0")
    stream = Stream.wrap(foreign(owner.handle), "cuda:0")
    stream.synchronize()
    assert stream.handle == owner.handle != 0
    assert stream.__cuda_stream__() == (0, owner.handle)


@pytest.mark.gpu
def test_what_is_no_stream_is_refused():
    with pytest.raises(DeviceError, match="a str is no stream; give a kvit.Stream"):
        Stream.wrap("default", "cuda:0")


@pytest.mark.gpu
def test_a_stream_of_another_device_is_refused():
    with pytest.raises(DeviceError, match="the stream is on host, the call on cuda:0"):
        Stream.wrap(Stream("host"), "cuda:0")


@pytest.mark.parametrize("foreign", [3, LikeTorch(3), WithProtocol(3)])
def test_the_host_takes_no_cuda_stream(foreign):
    with pytest.raises(DeviceError, match="the call is on the host"):
        Stream.wrap(foreign, "host")


def test_a_host_stream_has_no_cuda_handle_to_give():
    with pytest.raises(DeviceError, match="the host's"):
        Stream("host").__cuda_stream__()


def test_the_handle_for_c_is_cudas_or_the_hosts_own(device):
    stream = Stream(device)
    assert stream.handle != 0 == Stream.default(device).handle
    if device != "host":  # whose streams CUDA does not know
        assert stream.__cuda_stream__() == (0, stream.handle)
