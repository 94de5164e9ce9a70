"""pyx/runtime/event: points in a stream."""

import time

import pytest

from kvit._native.buffer import Buffer
from kvit._native.event import Event
from kvit._native.stream import Stream
from kvit.errors import DeviceError


def test_time_passes_between_two_events(device):
    stream = Stream(device)
    start, end = Event(device), Event(device)
    start.record(stream)
    start.synchronize()
    time.sleep(0.01)
    end.record(stream)
    end.synchronize()
    assert end.is_done
    # The stream was idle in between, so at least the sleep has passed; a GPU's clock ticks every half microsecond.
    assert 9.9 <= start.elapsed_ms(end) < 10_000


def test_a_stream_can_wait_for_another_streams_work(device):
    first, second = Stream(device), Stream(device)
    source = Buffer.empty(1 << 20, "uint8", device, first)
    target = Buffer.empty(1 << 20, "uint8", device, second)
    source.fill_bytes(7)
    event = Event(device, timing=False)
    event.record(first)
    event.wait(second)
    target.copy_from(source)
    assert (target.numpy() == 7).all()


def test_an_event_without_timing_says_so(device):
    timed, untimed = Event(device), Event(device, timing=False)
    for event in (timed, untimed):
        event.record(Stream.default(device))
    for start, end in ((timed, untimed), (untimed, timed)):
        with pytest.raises(DeviceError, match="timing=False"):
            start.elapsed_ms(end)


@pytest.mark.gpu
def test_an_event_stays_on_its_device():
    with pytest.raises(DeviceError, match="the event is on host, the stream on cuda:0"):
        Event("host").record(Stream("cuda:0"))
    with pytest.raises(DeviceError, match="time is kept per device"):
        Event("host").elapsed_ms(Event("cuda:0"))
