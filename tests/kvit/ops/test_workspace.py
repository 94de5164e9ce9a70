"""The workspace of an Attention: what may be one, and that a launch which fails on the host leaves it in order."""

import numpy as np
import pytest

import kvit
from kvit._native import host
from support.caches import FLOAT16, make_case, on_gpu
from support.memory import aligned

PAGE, HEADS, DIM = 16, 2, 64
LENGTHS = [200, 150, 90, 260]
SLOTS = [-(-length // PAGE) for length in LENGTHS]


class Blocks:
    """Sequences in TurboMind's blocks, found by a pointer each: on the host, one may point where nobody may read."""

    def __init__(self, rng):
        self.count = sum(SLOTS)
        block = kvit.TurboMindBlocks.bytes_of_layer(PAGE, HEADS, DIM, "float16")
        rows = rng.standard_normal((self.count, block // 2)).astype(FLOAT16)
        self.memory = kvit.Buffer.from_numpy(rows.view(np.uint8), "host")
        self.elsewhere = kvit.Buffer.from_numpy(np.zeros(block, np.uint8), "host")
        self.addresses = kvit.Buffer.from_numpy(self.memory.pointer + block * np.arange(self.count), "host")
        self.view = kvit.TurboMindBlocks(
            [self.memory], page_size=PAGE, kv_heads=HEADS, head_dim=DIM, kv="float16", blocks=self.addresses
        )
        indptr = np.cumsum([0, *SLOTS]).astype(np.int32)
        self.table = self.view.table(indptr, np.array(LENGTHS, np.int32))
        self.q = rng.standard_normal((len(LENGTHS), 8, DIM)).astype(FLOAT16)

    def lead_astray(self, page):
        """Let a page's pointer point elsewhere. Returns what puts it right again."""
        addresses = np.asarray(self.addresses)
        before, addresses[page] = int(addresses[page]), self.elsewhere.pointer
        return lambda: addresses.__setitem__(page, before)


@pytest.fixture(params=[1, 3], ids="{} workers".format)
def workers(request):
    before = host.configure(workers=request.param)
    yield request.param
    host.configure(workers=before["workers"])


@pytest.mark.parametrize("split_tokens", [None, 128])
def test_a_call_after_one_that_failed_gives_what_it_would_have_given(rng, workers, split_tokens):
    blocks = Blocks(rng)
    op = kvit.Attention(blocks.view, 8, split_tokens=split_tokens)
    expected = np.asarray(
        kvit.Attention(blocks.view, 8, split_tokens=split_tokens)(blocks.q, blocks.view, blocks.table)
    )
    for page in range(0, blocks.count, 5):
        restore = blocks.lead_astray(page)
        with pytest.raises(kvit.HostBackendError, match="outside the memory of this launch"):
            op(blocks.q, blocks.view, blocks.table)
        restore()
        assert not op.workspace.numpy().any()
        np.testing.assert_array_equal(np.asarray(op(blocks.q, blocks.view, blocks.table)), expected)


def test_a_graph_that_failed_leaves_the_workspaces_of_its_calls_in_order(rng, workers):
    blocks = Blocks(rng)
    op = kvit.Attention(blocks.view, 8)
    stream, out = kvit.Stream("host"), kvit.Buffer.empty(blocks.q.shape, "float16", "host")
    with kvit.Graph.capture(stream) as graph:
        op(kvit.Buffer.from_numpy(blocks.q, "host"), blocks.view, blocks.table, out=out, stream=stream)
    graph.launch()
    expected = out.numpy()
    restore = blocks.lead_astray(blocks.count // 2)
    with pytest.raises(kvit.HostBackendError):
        graph.launch()
    restore()
    assert not op.workspace.numpy().any()
    graph.launch()
    np.testing.assert_array_equal(out.numpy(), expected)


def read_only(size):
    block = aligned(size)
    block.flags.writeable = False
    return block


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (kvit.LayoutError, "workspace is read-only", read_only),
        (kvit.LayoutError, "workspace has strides .-1. bytes; it must be one block", lambda size: aligned(size)[::-1]),
        (kvit.LayoutError, "workspace has strides .2. bytes", lambda size: aligned(2 * size)[::2]),
        (
            kvit.LayoutError,
            "workspace begins at .*; it must begin at a multiple of",
            lambda size: aligned(size + 8)[8:],
        ),
        (kvit.ShapeError, "workspace has 64 bytes and this operation needs", lambda size: aligned(64)),
        (kvit.DeviceError, "workspace is on cuda:0, the call on host", lambda size: on_gpu((size,), "uint8")),
        (kvit.DtypeError, "is no tensor", lambda size: "workspace"),
    ],
)
def test_what_is_no_workspace_is_refused_when_the_operation_is_made(rng, error, match, make):
    view = make_case(rng, [20]).view
    size = kvit.Attention(view, 8).workspace_bytes
    with pytest.raises(error, match=match):
        kvit.Attention(view, 8, workspace=make(size))


@pytest.mark.parametrize("by_graph", [False, True])
def test_a_launch_that_fails_without_memory_to_say_so_leaves_the_workspace_in_order(rng, workers, by_graph):
    # Each of Python's allocations of the call fails once: those of the error that tells of the launch, too.
    testcapi = pytest.importorskip("_testcapi")
    blocks = Blocks(rng)
    op, stream = kvit.Attention(blocks.view, 8), kvit.Stream("host")
    q, out = kvit.Buffer.from_numpy(blocks.q, "host"), kvit.Buffer.empty(blocks.q.shape, "float16", "host")
    call = lambda: op(q, blocks.view, blocks.table, out=out, stream=stream)  # noqa: E731
    if by_graph:
        with kvit.Graph.capture(stream) as graph:
            call()
        call = graph.launch
    call()
    expected, found = out.numpy(), []
    workspace = np.asarray(op.workspace)
    restore = blocks.lead_astray(blocks.count // 2)
    while kvit.HostBackendError not in found:
        testcapi.set_nomemory(len(found) + 1, len(found) + 2)
        try:
            call()
        except (MemoryError, kvit.HostBackendError) as error:
            found.append(type(error))
        finally:
            testcapi.remove_mem_hooks()
        assert not workspace.any(), f"after allocation {len(found)}"
    assert MemoryError in found
    restore()
    call()
    np.testing.assert_array_equal(out.numpy().view(np.uint16), expected.view(np.uint16))


def test_memory_of_the_caller_that_is_zero_is_a_workspace(rng):
    case = make_case(rng, [200])
    plain = kvit.Attention(case.view, 8)
    op = kvit.Attention(case.view, 8, workspace=aligned(plain.workspace_bytes))
    q = case.queries(rng, 1, 8)
    np.testing.assert_array_equal(*(x(q, case.view, case.page_table).numpy() for x in (op, plain)))
