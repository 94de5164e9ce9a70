"""Work of other libraries on their streams and kvit's on its own wait for each other, and not on the host.

Every producer here is late by some 50 ms: whoever does not wait reads the NaN that lay there before. What is allocated
is allocated before: an allocation may wait.
"""

import numpy as np
import pytest

import kvit
from support.caches import make_case, poisoned, to_device
from support.libraries import Torch, need
from support.tolerances import assert_within

DEVICE = "cuda:0"
LATE_CYCLES = 100_000_000  # some 50 ms of any GPU's clock

pytestmark = pytest.mark.gpu


@pytest.fixture
def torch():
    """PyTorch with CUDA: it makes the work that is late."""
    return Torch(DEVICE).torch


class Decode:
    """One attention with what it must give, on a stream of its own; NaN where its queries are to be."""

    def __init__(self, rng):
        self.case = make_case(rng, [20, 3], device=DEVICE)
        self.q = self.case.queries(rng, 2, 4)
        self.op = kvit.Attention(self.case.view, 4)
        self.stream = kvit.Stream(DEVICE)
        self.good = to_device(self.q, DEVICE)
        self.late = to_device(poisoned(self.q.shape, self.q.dtype), DEVICE)
        self.op(self.good, self.case.view, self.case.page_table, stream=self.stream)  # loads the kernel: that waits
        self.stream.synchronize()

    def attend(self, q, stream=None):
        return self.op(q, self.case.view, self.case.page_table, stream=stream or self.stream)

    def assert_right(self, out):
        state, bound = self.case.expect(self.q)
        assert_within(out, state.out, bound)


@pytest.fixture
def decode(rng):
    return Decode(rng)


class CudaArray:
    """A producer of the CUDA array interface, version 3, that names the stream of its work."""

    def __init__(self, buffer, stream):
        self.buffer = buffer
        self.__cuda_array_interface__ = {
            "shape": buffer.shape, "typestr": "<V2", "data": (buffer.pointer, False), "strides": None,
            "stream": stream, "version": 3,
        }  # fmt: skip


def late_copy(torch, decode, stream):
    """Queries that appear on `stream` when it is late, and not before."""
    late, good = torch.from_dlpack(decode.late), torch.from_dlpack(decode.good)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LATE_CYCLES)
        late.copy_(good)
    return late


def test_a_call_waits_for_the_torch_stream_that_fills_its_queries(torch, decode):
    side = torch.cuda.Stream()
    late = late_copy(torch, decode, side)
    with torch.cuda.stream(side):
        out = decode.attend(late)
    assert not side.query(), "the host waited: nothing of this test was late"
    decode.assert_right(out.numpy())


def test_a_call_waits_for_the_stream_that_a_cuda_array_names(torch, decode):
    side = torch.cuda.Stream()
    late_copy(torch, decode, side)
    out = decode.attend(kvit.Tensor.wrap(CudaArray(decode.late, side.cuda_stream), "bfloat16"))
    assert not side.query(), "the host waited: nothing of this test was late"
    decode.assert_right(out.numpy())


def test_a_torch_stream_waits_for_the_output_that_it_reads(torch, decode):
    side, busy = torch.cuda.Stream(), torch.cuda.ExternalStream(decode.stream.handle)
    copy = torch.empty(decode.q.shape, dtype=torch.bfloat16, device=DEVICE)
    late_copy(torch, decode, busy)
    out = decode.attend(decode.late)
    with torch.cuda.stream(side):
        copy.copy_(torch.from_dlpack(out))
    assert not side.query(), "the host waited: nothing of this test was late"
    side.synchronize()
    decode.assert_right(copy.cpu().view(torch.uint8).numpy().view(decode.q.dtype))


def test_a_call_runs_on_torchs_stream_itself(torch, decode):
    side = torch.cuda.Stream()
    out = torch.empty(decode.q.shape, dtype=torch.bfloat16, device=DEVICE)
    late = late_copy(torch, decode, side)
    with torch.cuda.stream(side):
        decode.op(late, decode.case.view, decode.case.page_table, out=out, stream=side)
    assert not side.query(), "the host waited: nothing of this test was late"
    side.synchronize()
    decode.assert_right(out.cpu().view(torch.uint8).numpy().view(decode.q.dtype))


def test_a_call_is_captured_into_a_torch_graph(torch, decode):
    q, out = torch.from_dlpack(decode.late), torch.empty(decode.q.shape, dtype=torch.bfloat16, device=DEVICE)
    target = kvit.Tensor.wrap(out)  # beforehand: to be lent to another stream, as a wrap asks, is no work of the graph
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream()
        decode.op(decode.late, decode.case.view, decode.case.page_table, out=target, stream=stream)
    q.copy_(torch.from_dlpack(decode.good))
    graph.replay()
    torch.cuda.synchronize()
    decode.assert_right(out.cpu().view(torch.uint8).numpy().view(decode.q.dtype))


def test_a_call_runs_on_a_stream_of_cuda_core(torch, decode):
    core = need("cuda.core", "cuda.core")
    device = core.Device(0)
    device.set_current()
    stream = device.create_stream()
    assert kvit.Stream.wrap(stream, DEVICE).handle == int(stream.handle)
    late_copy(torch, decode, torch.cuda.ExternalStream(int(stream.handle)))
    out = decode.attend(decode.late, stream)
    stream.sync()
    decode.assert_right(out.numpy())
    assert int(device.create_stream(decode.stream).handle) == decode.stream.handle


def test_memory_of_cuda_core_holds_a_pool(decode):
    core = need("cuda.core", "cuda.core")
    device = core.Device(0)
    device.set_current()
    pool = decode.case.buffers[0]
    memory = device.allocate(pool.nbytes, stream=device.default_stream)
    bytes_of = kvit.Tensor.wrap(memory)  # one axis of bytes: that is all it knows of itself
    assert (bytes_of.pointer, bytes_of.nbytes, bytes_of.device) == (int(memory.handle), pool.nbytes, DEVICE)
    k = kvit.Tensor.from_pointer(int(memory.handle), pool.shape, "bfloat16", DEVICE, owner=memory)
    view = kvit.CacheView(k, decode.case.view.v, layout="HND")
    assert view.k.pointer == int(memory.handle)


@pytest.mark.parametrize("where", ["its own stream", "CuPy's stream"])
def test_a_call_waits_for_cupys_arrays_and_runs_on_its_streams(torch, decode, where):
    cupy = need("cupy", "CuPy")
    side = cupy.cuda.Stream(non_blocking=True)
    late_copy(torch, decode, torch.cuda.ExternalStream(side.ptr))
    seen = cupy.from_dlpack(torch.from_dlpack(decode.late).view(torch.uint16))
    with side:
        if where == "CuPy's stream":
            out = decode.attend(decode.late, side)
        else:
            out = decode.attend(kvit.Tensor.wrap(seen, "bfloat16", stream=decode.stream.handle))
    assert not side.done, "the host waited: nothing of this test was late"
    decode.assert_right(out.numpy())


def test_numba_waits_for_the_stream_of_a_buffer(torch, decode):
    cuda = need("numba.cuda", "Numba")
    late_copy(torch, decode, torch.cuda.ExternalStream(decode.stream.handle))
    lengths = kvit.Buffer.empty(4, "int32", DEVICE, decode.stream)
    lengths.fill_bytes(1)
    array = cuda.as_cuda_array(lengths)
    assert array.__cuda_array_interface__["data"][0] == lengths.pointer
    np.testing.assert_array_equal(array.copy_to_host(), np.full(4, 0x01010101, np.int32))
