"""pyx/runtime/graph: what is captured, what is refused, what a graph keeps. The kernel is `read`, a sum of words."""

import contextlib
import struct
import sys
import threading

import numpy as np
import pytest

from kvit._native.buffer import Buffer
from kvit._native.event import Event
from kvit._native.graph import Graph
from kvit._native.launcher import launch_bytes
from kvit._native.module import Kernel
from kvit._native.stream import Stream
from kvit.errors import DeviceError, DriverError, HostBackendError, KvitError
from kvit.selection import registry

WORDS = 64


class Case:
    """Adds the sum of `words` to `total` whenever its launch runs."""

    def __init__(self, device):
        self.stream = Stream(device)
        self.words = Buffer.from_numpy(np.arange(WORDS, dtype=np.uint32), device, self.stream)
        self.total = Buffer.from_numpy(np.zeros(1, np.uint32), device, self.stream)
        self.kernel = Kernel.load(registry.candidates("read")[0], device)

    def launch(self, stream=None, spans=True):
        params = struct.pack("<QqQ", self.words.pointer, self.words.nbytes, self.total.pointer)  # KvitReadParams
        spans = [(self.words.pointer, self.words.nbytes, False), (self.total.pointer, 4, True)] if spans else []
        launch_bytes(self.kernel, params, 1, self.stream if stream is None else stream, spans)

    def capture(self):
        with Graph.capture(self.stream) as graph:
            self.launch()
        return graph

    def sum(self):
        return int(self.total.numpy()[0])


@pytest.fixture
def case(device):
    return Case(device)


def test_work_is_captured_and_not_done(case):
    with Graph.capture(case.stream) as graph:
        assert case.stream.is_capturing and not graph.is_ready and "being captured" in repr(graph)
        case.launch()
    assert not case.stream.is_capturing and graph.is_ready and graph.device == case.stream.device
    assert case.sum() == 0


def test_every_launch_reads_what_the_memory_holds_by_then(case):
    graph = case.capture()
    expected = 0
    for factor in (1, 3, 7):
        words = np.arange(WORDS, dtype=np.uint32) * np.uint32(factor)
        case.words.copy_from(words)
        graph.launch()
        expected += int(words.sum())
        assert case.sum() == expected


def test_fills_and_copies_on_the_device_are_captured(case):
    target = Buffer.from_numpy(np.zeros(WORDS, np.uint32), case.stream.device, case.stream)
    with Graph.capture(case.stream) as graph:
        target.copy_from(case.words, case.stream)
        case.words.fill_bytes(1, case.stream)
    assert not target.numpy().any()
    for expected in (np.arange(WORDS), np.full(WORDS, 0x01010101)):  # the second copy sees the first fill
        graph.launch()
        np.testing.assert_array_equal(target.numpy(), expected)


def test_a_graph_may_be_launched_on_another_stream(case):
    graph = case.capture()
    case.stream.synchronize()
    other = Stream(case.stream.device)
    graph.launch(other)
    other.synchronize()
    assert case.sum() == sum(range(WORDS))


def test_a_graph_does_not_become_part_of_another(case):
    inner = case.capture()
    with pytest.raises(DriverError, match="CUresult 900"), Graph.capture(case.stream):
        inner.launch()
    inner.launch()
    assert case.sum() == sum(range(WORDS))


def test_work_on_other_streams_is_not_captured(case):
    other, done = Case(case.stream.device), []
    with Graph.capture(case.stream):
        thread = threading.Thread(target=lambda: (other.launch(), done.append(other.sum())))
        thread.start()
        thread.join()
    assert done == [sum(range(WORDS))]


@pytest.mark.parametrize(
    "refused",
    [
        lambda stream: Buffer.empty(3, "float32", stream.device, stream),
        lambda stream: Buffer.from_numpy(np.zeros(3), stream.device, stream),
        lambda stream: stream.synchronize(),
        lambda stream: stream.is_done,
    ],
    ids=["empty", "from_numpy", "synchronize", "is_done"],
)
def test_what_allocates_or_waits_is_refused_with_the_reason(case, refused):
    with (
        pytest.raises(DriverError, match="CUresult 900.*being captured: allocate.*before or after"),
        Graph.capture(case.stream) as graph,
    ):
        refused(case.stream)
    assert not graph.is_ready and not case.stream.is_capturing
    assert Graph.capture(case.stream).__enter__().__exit__(None, None, None) is None  # the stream is good for another


def test_numpy_of_a_buffer_is_refused_while_its_stream_is_captured(case):
    # Nothing has run, so there would be nothing to read.
    with pytest.raises(DriverError, match="CUresult 90"), Graph.capture(case.stream):
        case.launch()
        case.total.numpy()
    assert case.sum() == 0


def test_a_refusal_that_was_swallowed_is_told_at_the_end(case):
    graph = Graph.capture(case.stream)
    with (
        pytest.raises(DriverError, match="cuStreamEndCapture.*cannot be captured"),
        graph,
        contextlib.suppress(DriverError),
    ):
        case.stream.synchronize()
    with pytest.raises(DriverError, match="nothing to launch"):
        graph.launch()


def test_half_a_block_is_no_graph(case):
    graph = Graph.capture(case.stream)
    with pytest.raises(ZeroDivisionError), graph:
        case.launch()
        raise ZeroDivisionError
    with pytest.raises(DriverError, match="nothing to launch: its `with` block is still open, or did not end well"):
        graph.launch()
    assert case.sum() == 0 and "not captured" in repr(graph)
    case.launch()  # the stream works as before
    assert case.sum() == sum(range(WORDS))


def test_a_graph_is_captured_once_and_a_stream_by_one_graph_at_a_time(case):
    graph = case.capture()
    with pytest.raises(DriverError, match="captured once"), graph:
        pass
    with Graph.capture(case.stream), pytest.raises(DriverError, match="being captured already"):
        Graph.capture(case.stream).__enter__()


def test_the_default_stream_is_refused(device):
    with pytest.raises(DeviceError, match=f"default stream of {device}.*give a kvit.Stream"):
        Graph.capture(Stream.default(device))


def test_a_graph_is_made_by_capture_alone():
    with pytest.raises(TypeError, match="Graph.capture"):
        Graph()


def test_memory_that_is_given_back_meanwhile_is_the_graph_s(case):
    # To give memory back in the order of the stream cannot be captured: it would break the capture.
    old = Buffer.from_numpy(np.arange(WORDS, dtype=np.uint32), case.stream.device, case.stream)
    with Graph.capture(case.stream) as graph:
        case.launch()
        del old
    for launches in (1, 2):
        graph.launch()
        assert case.sum() == launches * sum(range(WORDS))


def test_a_graph_keeps_the_buffers_that_it_copies(case):
    counts = sys.getrefcount(case.words), sys.getrefcount(case.total)
    with Graph.capture(case.stream) as graph:
        case.total.copy_from(case.words[:1], case.stream)
        case.words.fill_bytes(0, case.stream)
    assert sys.getrefcount(case.words) > counts[0] and sys.getrefcount(case.total) > counts[1]
    graph.launch()
    case.stream.synchronize()
    del graph
    assert (sys.getrefcount(case.words), sys.getrefcount(case.total)) == counts


def test_on_the_host_a_kernel_that_breaks_a_rule_is_named_when_it_runs():
    case = Case("host")
    with Graph.capture(case.stream) as graph:
        case.total.fill_bytes(0, case.stream)
        case.launch(spans=False)
    with pytest.raises(HostBackendError, match=f"{case.kernel.entry.symbol}, grid 1: "):
        graph.launch()


def test_on_the_host_an_event_in_a_capture_is_refused():
    case = Case("host")
    with pytest.raises(KvitError, match="cuEventRecord.*does not support"), Graph.capture(case.stream):
        Event("host").record(case.stream)


@pytest.mark.gpu
def test_a_stream_of_another_device_is_refused():
    graph = Case("cuda:0").capture()
    with pytest.raises(DeviceError, match="host"):
        graph.launch(Stream("host"))
