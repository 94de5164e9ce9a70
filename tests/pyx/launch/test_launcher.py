"""pyx/launch/launcher: a kernel launched on parameters packed by hand; copy_pages, which only moves bytes."""

import ctypes

import numpy as np
import pytest

from kvit._native.buffer import Buffer
from kvit._native.kernel_graph import KernelGraph
from kvit._native.launcher import launch_bytes
from kvit._native.module import Kernel
from kvit._native.stream import Stream
from kvit.errors import DtypeError, HostBackendError, ShapeError
from kvit.selection import registry
from support.processes import run_idle

ROW_BYTES = 8
CTAS = 4  # a CTA for each of 2 pairs and 2 heads


class Pool(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p)] + [(name, ctypes.c_int64) for name in ("page", "token", "head")]


class CopyPages(ctypes.Structure):
    """KvitCopyPagesParams of kernels/abi/params.h."""

    _fields_ = [
        ("pool", Pool * 4),
        *[(name, ctypes.c_int32) for name in ("num_pages", "page_size", "num_kv_heads")],
        *[(name, ctypes.c_int16) for name in ("k_dim", "v_dim")],
        *[(name, ctypes.c_int32) for name in ("k_hadamard", "v_hadamard")],
        ("blocks", ctypes.c_void_p),
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("chains", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64 * 4),
        ("fault", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("num_chains", ctypes.c_int32),
    ]


class Case:
    """Four pages of 3 tokens and 2 heads; page 3 goes to 0 and 1 to 2."""

    def __init__(self, device, stream=None):
        self.before = np.arange(4 * 3 * 2 * ROW_BYTES, dtype=np.uint8).reshape(4, 3, 2, ROW_BYTES)
        self.pages = Buffer.from_numpy(self.before, device, stream)
        self.source = Buffer.from_numpy(np.array([3, 1], np.int32), device, stream)
        self.target = Buffer.from_numpy(np.array([0, 2], np.int32), device, stream)
        self.fault = Buffer.from_numpy(np.zeros(4, np.int32), device, stream)
        self.kernel = Kernel.load(registry.find("copy_pages", access=4), device)
        self.params = CopyPages(
            num_pages=4, page_size=3, num_kv_heads=2, k_dim=ROW_BYTES, v_dim=ROW_BYTES, count=2, num_chains=2
        )
        self.params.pool[0] = Pool(self.pages.pointer, *self.pages.strides[:3])
        self.params.row_bytes[0] = ROW_BYTES
        self.params.source, self.params.target = self.source.pointer, self.target.pointer
        self.params.fault = self.fault.pointer

    def spans(self, pages_writable=True):
        return [
            (self.pages.pointer, self.pages.nbytes, pages_writable),
            (self.source.pointer, self.source.nbytes, False),
            (self.target.pointer, self.target.nbytes, False),
            (self.fault.pointer, self.fault.nbytes, True),
        ]

    def expected(self):
        after = self.before.copy()
        after[0], after[2] = self.before[3], self.before[1]
        return after


@pytest.mark.parametrize("own_stream", [False, True])
def test_a_launch_runs_the_kernel_on_the_packed_parameters(device, own_stream):
    stream = Stream(device) if own_stream else None
    case = Case(device, stream)
    launch_bytes(case.kernel, bytes(case.params), CTAS, stream, case.spans())
    assert (case.pages.numpy() == case.expected()).all()
    assert not case.fault.numpy().any()


def test_the_grid_says_how_many_ctas_run(device):
    case = Case(device)
    launch_bytes(case.kernel, bytes(case.params), 3, None, case.spans())  # all but pair 1 of head 1
    expected = case.expected()
    expected[2, :, 1] = case.before[2, :, 1]
    assert (case.pages.numpy() == expected).all()


def test_parameters_of_another_size_are_refused(device):
    case = Case(device)
    with pytest.raises(
        DtypeError, match=f"takes {ctypes.sizeof(CopyPages)} bytes .*, not {ctypes.sizeof(CopyPages) - 8}"
    ):
        launch_bytes(case.kernel, bytes(case.params)[:-8], CTAS, None, case.spans())
    assert (case.pages.numpy() == case.before).all()


def test_an_empty_grid_is_refused(device):
    case = Case(device)
    with pytest.raises(ShapeError, match="the grid is 0"):
        launch_bytes(case.kernel, bytes(case.params), 0, None, case.spans())


def test_on_the_host_a_kernel_touches_only_its_spans():
    case = Case("host")
    with pytest.raises(HostBackendError, match=case.kernel.entry.symbol):
        launch_bytes(case.kernel, bytes(case.params), CTAS, None, case.spans()[1:])
    assert (case.pages.numpy() == case.before).all()


def test_on_the_host_a_kernel_writes_only_what_is_writable():
    case = Case("host")
    with pytest.raises(HostBackendError):
        launch_bytes(case.kernel, bytes(case.params), CTAS, None, case.spans(pages_writable=False))
    assert (case.pages.numpy() == case.before).all()


def test_after_a_failed_launch_the_next_one_works():
    case = Case("host")
    for _ in range(2):
        with pytest.raises(HostBackendError):
            launch_bytes(case.kernel, bytes(case.params), CTAS, None, [])
    launch_bytes(case.kernel, bytes(case.params), CTAS, None, case.spans())
    assert (case.pages.numpy() == case.expected()).all()


@pytest.mark.parametrize(
    ("grid", "cluster", "words"),
    [
        ((2, 2, 1), None, "grid 2x2x1, cluster 1"),
        ((4, 1, 2), None, "grid 4x1x2, cluster 1"),
        (4, 2, "grid 4, cluster 2"),
    ],
)
def test_the_host_refuses_grids_of_more_axes_and_clusters(grid, cluster, words):
    case = Case("host")
    with pytest.raises(HostBackendError, match=f"{words}: the host backend runs grids of one axis and no clusters"):
        launch_bytes(case.kernel, bytes(case.params), grid, None, case.spans(), cluster=cluster)
    assert (case.pages.numpy() == case.before).all()
    launch_bytes(case.kernel, bytes(case.params), (CTAS, 1, 1), None, case.spans(), cluster=(1, 1, 1))
    assert (case.pages.numpy() == case.expected()).all()


def test_an_empty_cluster_is_refused(device):
    case = Case(device)
    with pytest.raises(ShapeError, match="the cluster is 2x0x1"):
        launch_bytes(case.kernel, bytes(case.params), CTAS, None, case.spans(), cluster=(2, 0, 1))


def test_a_graph_keeps_to_the_clusters_of_its_kernel(device):
    case = Case(device)
    with pytest.raises(ShapeError, match="give cluster or graph"):
        launch_bytes(case.kernel, bytes(case.params), CTAS, None, case.spans(), KernelGraph.of(case.kernel), cluster=1)


LAUNCHES = """
from kvit.selection import registry
from kvit._native.kernel_graph import KernelGraph
from kvit._native.kernel_graph import KernelGraph
from kvit._native.launcher import launch_bytes
from kvit._native.module import Kernel
def numbers(name, count=3):
    return list((ctypes.c_uint * count).in_dll(library, f"idle_{name}"))
def launched(family, **how):
    entry = registry.candidates(family)[0]
    launch_bytes(Kernel.load(entry, "cuda:0"), bytes(entry.params_bytes), **how)
    return [numbers("grid"), numbers("cluster"), *numbers("overlap", 1)]
found = [
    launched("copy_pages", grid=5),
    launched("copy_pages", grid=(5, 4, 3)),
    launched("copy_pages", grid=(6, 4, 2), cluster=(2, 1, 2)),
    launched("append", grid=5),
    launched("append", grid=6, cluster=3),
]
"""


def test_the_driver_gets_grid_clusters_and_overlap_and_no_attribute_that_nobody_asked_for(tmp_path):
    assert run_idle(tmp_path, LAUNCHES) == [
        [[5, 1, 1], [0, 0, 0], 0],
        [[5, 4, 3], [0, 0, 0], 0],
        [[6, 4, 2], [2, 1, 2], 0],
        [[5, 1, 1], [0, 0, 0], 1],  # append waits for what is in front of it by itself
        [[6, 1, 1], [3, 1, 1], 1],
    ]


CLUSTERS = """
from types import MappingProxyType
from kvit.selection import registry
from kvit._native.kernel_graph import KernelGraph
from kvit._native.kernel_graph import KernelGraph
from kvit._native.launcher import launch_bytes
from kvit._native.module import Kernel
entry = registry.candidates("copy_pages")[0]
entry = entry._replace(facts=MappingProxyType({**entry.facts, "cluster": 4}))
kernel = Kernel.load(entry, "cuda:0")
graph = KernelGraph.of(kernel)
launch_bytes(kernel, bytes(entry.params_bytes), (8, 2, 1), None, (), graph)
node = ctypes.addressof(ctypes.c_void_p.in_dll(library, "idle_node")) + ctypes.sizeof(ctypes.c_void_p)
found = [list((ctypes.c_uint * 3).in_dll(library, "idle_node_cluster")), list((ctypes.c_uint * 3).from_address(node))]
launch_bytes(kernel, bytes(entry.params_bytes), 8)
found += [list((ctypes.c_uint * 3).in_dll(library, "idle_cluster"))]
"""


def test_a_kernel_that_says_so_runs_in_clusters_launched_by_itself_or_by_a_graph(tmp_path):
    assert run_idle(tmp_path, CLUSTERS) == [[4, 1, 1], [8, 2, 1], [4, 1, 1]]


@pytest.fixture
def driver():
    """cuda.bindings.driver, in the primary context of the first GPU, which its graph calls want current."""
    from cuda.bindings import driver

    _, context = driver.cuDevicePrimaryCtxRetain(0)
    driver.cuCtxPushCurrent(context)
    yield driver
    driver.cuCtxPopCurrent()
    driver.cuDevicePrimaryCtxRelease(0)


@pytest.mark.gpu
def test_a_launch_can_be_captured_and_replayed(driver):
    stream = Stream("cuda:0")
    case = Case("cuda:0", stream)
    handle = driver.CUstream(stream.handle)
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert driver.cuStreamBeginCapture(handle, mode)[0] == 0
    assert stream.is_capturing
    launch_bytes(case.kernel, bytes(case.params), CTAS, stream)
    status, graph = driver.cuStreamEndCapture(handle)
    assert status == 0 and not stream.is_capturing
    assert (case.pages.numpy() == case.before).all()  # captured, not run
    status, executable = driver.cuGraphInstantiate(graph, 0)
    assert status == 0
    driver.cuGraphLaunch(executable, handle)
    assert (case.pages.numpy() == case.expected()).all()
    driver.cuGraphExecDestroy(executable)
    driver.cuGraphDestroy(graph)
