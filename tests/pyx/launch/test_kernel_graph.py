"""pyx/launch/kernel_graph: launches by a graph of a kernel are those of the kernel itself, whatever each is given.

The kernel is `read`, which adds the sum of words to a total. What the driver is asked to do shows on the idle one.
"""

import struct

import numpy as np
import pytest

from kvit._native.buffer import Buffer
from kvit._native.graph import Graph
from kvit._native.kernel_graph import KernelGraph
from kvit._native.launcher import launch_bytes
from kvit._native.module import Kernel
from kvit._native.stream import Stream
from kvit.errors import DeviceError, HostBackendError
from kvit.selection import registry
from support.processes import run_idle
from support.threads import run_side_by_side

WORDS = 64


class Case:
    """Rows of words, and a total for each."""

    def __init__(self, device, rows=1):
        self.stream = Stream(device)
        self.host = np.arange(rows * WORDS, dtype=np.uint32).reshape(rows, WORDS)
        self.words = Buffer.from_numpy(self.host, device, self.stream)
        self.totals = Buffer.from_numpy(np.zeros(rows, np.uint32), device, self.stream)
        self.stream.synchronize()
        self.kernel = Kernel.load(registry.candidates("read")[0], device)
        self.graph = KernelGraph.of(self.kernel)

    def launch(self, row=0, count=WORDS, grid=1, stream=None, has_spans=True):
        """Add the first `count` words of a row to its total."""
        words, total = self.words[row], self.totals[row : row + 1]
        params = struct.pack("<QqQ", words.pointer, 4 * count, total.pointer)  # KvitReadParams
        spans = [(words.pointer, 4 * count, False), (total.pointer, 4, True)] if has_spans else []
        launch_bytes(self.kernel, params, grid, self.stream if stream is None else stream, spans, self.graph)

    def sums(self):
        self.stream.synchronize()
        return self.totals.numpy().tolist()


def test_every_launch_has_the_parameters_of_its_call(device):
    # All of them are under way before the first is looked at: what is set later must not change what was launched.
    case = Case(device, rows=50)
    for row in range(50):
        case.launch(row, count=4 * (1 + row % 16), grid=1 + row % 3)  # it reads four words at a time
    assert case.sums() == [int(words[: 4 * (1 + row % 16)].sum()) for row, words in enumerate(case.host)]


def test_launches_follow_what_was_given_to_the_stream_before(device):
    case = Case(device)
    for value in (1, 2, 3):
        case.words.fill_bytes(value, case.stream)
        case.launch()
    assert case.sums() == [6 * 0x01010101 * WORDS % 2**32]


@pytest.mark.parametrize("own", [False, True])
def test_any_stream_of_the_device_will_do(device, own):
    case = Case(device)
    stream = Stream(device) if own else Stream.default(device)
    case.launch(stream=stream)
    stream.synchronize()
    assert case.sums() == [sum(range(WORDS))]


def test_in_a_capture_the_kernel_itself_is_captured(device):
    case = Case(device)
    with Graph.capture(case.stream) as graph:
        case.launch()
        case.launch()
    assert case.sums() == [0]
    case.launch()
    graph.launch()
    case.launch()
    assert case.sums() == [4 * sum(range(WORDS))]


def test_threads_and_streams_take_turns(device):
    # Launches of one graph that ran side by side would each see the parameters of another.
    case = Case(device, rows=32)
    streams = [Stream(device) for _ in range(32)]

    def work(thread):
        mine = range(4 * thread, 4 * thread + 4)
        for _ in range(100):
            for row in mine:
                case.launch(row, stream=streams[row])
        for row in mine:
            streams[row].synchronize()

    run_side_by_side(work)
    assert case.sums() == [100 * int(words.sum()) % 2**32 for words in case.host]


def test_on_the_host_a_launch_that_fails_leaves_the_next_its_turn():
    case = Case("host")
    for _ in range(2):
        with pytest.raises(HostBackendError, match=case.kernel.entry.symbol):
            case.launch(has_spans=False)
    case.launch()
    assert case.sums() == [sum(range(WORDS))]


def test_graphs_come_and_go(device):
    case = Case(device)
    for _ in range(50):
        case.graph = KernelGraph.of(case.kernel)  # the one before goes while its launch may be under way
        case.launch()
        assert repr(case.graph) == f"KernelGraph({case.kernel.entry.symbol!r}, device={device!r})"
    assert case.sums() == [50 * sum(range(WORDS))]


def test_a_graph_is_made_of_a_kernel_alone():
    with pytest.raises(TypeError, match="KernelGraph.of"):
        KernelGraph()
    with pytest.raises(TypeError):
        KernelGraph.of(None)


@pytest.mark.gpu
def test_a_stream_of_another_device_is_refused():
    with pytest.raises(DeviceError, match="host"):
        Case("cuda:0").launch(stream=Stream("host"))


IDLE = """
from cuda.bindings import driver
from kvit.selection import registry
from kvit._native.graph import Graph
from kvit._native.kernel_graph import KernelGraph
from kvit._native.launcher import launch_bytes
from kvit._native.module import Kernel
from kvit._native.stream import Stream
from kvit.errors import DriverError
kernel = Kernel.load(registry.candidates("read")[0], "cuda:0")
stream = Stream("cuda:0")
def counts():
    "Launches, launches of graphs, graphs and executables that live."
    return [count(name) for name in ("launches", "graph_launches", "graphs")]
def launch(graph=None, times=1):
    for _ in range(times):
        launch_bytes(kernel, bytes(24), 1, stream, (), graph)
    return counts()
"""


def test_a_graph_is_made_once_and_destroyed_with_its_object(tmp_path):
    program = """
graph = KernelGraph.of(kernel)
found += [counts(), launch(graph, 1000), launch(None, 10)]
del graph
found.append(counts())
"""
    assert run_idle(tmp_path, IDLE + program) == [[0, 0, 2], [0, 1000, 2], [10, 1000, 2], [10, 1000, 0]]


def test_the_node_is_given_the_kernel_and_the_parameters_of_each_call(tmp_path):
    program = """
class Node(ctypes.Structure):
    _fields_ = [("function", ctypes.c_void_p), ("shape", ctypes.c_uint * 7), ("arguments", ctypes.c_void_p),
                ("extra", ctypes.c_void_p), ("kernel", ctypes.c_void_p), ("context", ctypes.c_void_p)]
def given():
    node = Node.in_dll(library, "idle_node")
    of_kernel = node.function is None and node.extra is None and node.kernel is not None
    argument = (ctypes.c_char * 16).in_dll(library, "idle_argument")
    return [of_kernel, node.context, list(node.shape), bytes(argument).hex()]
graph = KernelGraph.of(kernel)
for context, grid in ((0x1000, 7), (0x2000, 264)):
    driver.cuCtxSetCurrent(driver.CUcontext(context))
    launch_bytes(kernel, bytes(range(grid % 50, grid % 50 + 24)), grid, stream, (), graph)
    found.append(given())
"""
    entry = registry.candidates("read")[0]
    expected = [
        [True, context, [grid, 1, 1, entry.threads, 1, 1, entry.shared_bytes], bytes(range(first, first + 16)).hex()]
        for context, grid, first in ((0x1000, 7, 7), (0x2000, 264, 14))
    ]
    assert run_idle(tmp_path, IDLE + program) == expected


def test_parameters_are_set_when_they_are_not_those_of_the_launch_before(tmp_path):
    # Of the second context none are known yet; back in the first they are what they were there.
    program = """
graph = KernelGraph.of(kernel)
first, other = bytes(24), bytes(23) + bytes([1])
calls = [(0, first, 1), (0, first, 1), (0, other, 1), (0, other, 2), (0, first, 1), (0x1000, first, 1), (0, first, 1)]
for context, params, grid in calls:
    driver.cuCtxSetCurrent(driver.CUcontext(context))
    launch_bytes(kernel, params, grid, stream, (), graph)
    found.append(count("settings"))
"""
    assert run_idle(tmp_path, IDLE + program) == [1, 1, 2, 3, 4, 5, 5]


def test_every_context_has_a_graph_of_its_own(tmp_path):
    # The node of one context cannot run in another. Addresses serve the idle driver as contexts.
    program = """
graph = KernelGraph.of(kernel)
for context in (0, 0x1000, 0x2000, 0x1000, 0, 0x2000):
    driver.cuCtxSetCurrent(driver.CUcontext(context))
    found.append(launch(graph))
del graph
found.append(counts())
"""
    lives = [2, 4, 6, 6, 6, 6]
    assert run_idle(tmp_path, IDLE + program) == [*([0, i + 1, live] for i, live in enumerate(lives)), [0, 6, 0]]


def test_a_stream_that_is_captured_gets_a_launch(tmp_path):
    program = """
graph = KernelGraph.of(kernel)
with Graph.capture(stream):
    found.append(launch(graph))
found.append(launch(graph)[:2])
"""
    assert run_idle(tmp_path, IDLE + program) == [[1, 0, 2], [1, 1]]


@pytest.mark.parametrize("call", ["cuGraphCreate", "cuGraphAddKernelNode", "cuGraphInstantiate", "cuCtxGetId"])
def test_a_graph_that_cannot_be_made_says_which_call_failed_and_leaves_nothing(tmp_path, call):
    program = """
try:
    KernelGraph.of(kernel)
except DriverError as error:
    found += [error.call, error.status, str(error), counts()]
"""
    symbol = {"cuGraphInstantiate": "cuGraphInstantiateWithFlags"}.get(call, call)  # as cuda.h names it
    name, status, words, counts = run_idle(tmp_path, IDLE + program, IDLE_DRIVER_FAILS=symbol)
    assert (name, status, counts) == (call, 999, [0, 0, 0])
    assert f"a graph of {registry.candidates('read')[0].symbol}" in words


@pytest.mark.parametrize("call", ["cuGraphExecKernelNodeSetParams", "cuGraphLaunch", "cuStreamIsCapturing"])
def test_a_launch_that_fails_says_which_call_failed_and_can_be_made_again(tmp_path, call):
    program = """
graph = KernelGraph.of(kernel)
for _ in range(2):
    try:
        launch(graph)
    except DriverError as error:
        found += [error.call, str(error)]
"""
    name, words, *again = run_idle(tmp_path, IDLE + program, IDLE_DRIVER_FAILS=call)
    assert name == call and "grid 1, " in words and again == [name, words]
