"""On which stream kvit.torch launches, and what a capture needs: on a driver that computes nothing."""

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")

from support.processes import run_idle

pytestmark = pytest.mark.interop

# A PyTorch without CUDA has no tensors of a GPU: these say all that the calls ask of one, and no byte of them is read.
ON_A_GPU = """
import types
import torch
import kvit, kvit.torch
from kvit.torch import call

class GpuTensor:
    is_cuda, requires_grad, device = True, False, types.SimpleNamespace(index=0)
    places = iter(range(1 << 32, 1 << 60, 1 << 32))

    def __init__(self, shape, dtype):
        self.shape, self.ndim, self.dtype = tuple(shape), len(shape), dtype
        kind = {torch.float16: "<f2", torch.int32: "<i4", torch.float32: "<f4"}[dtype]
        self.__cuda_array_interface__ = dict(
            shape=self.shape, typestr=kind, data=(next(self.places), False), version=3
        )

    def new_empty(self, shape, dtype=None):
        return GpuTensor(shape, dtype or self.dtype)

    def is_inference(self):
        return True  # nothing of it is counted

current = [0x500]
torch.cuda.current_stream = lambda device: types.SimpleNamespace(cuda_stream=current[0])
pools = dict(k_cache=GpuTensor((8, 16, 2, 64), torch.float16), v_cache=GpuTensor((8, 16, 2, 64), torch.float16))
table = dict(pages=GpuTensor((2, 4), torch.int32), lengths=GpuTensor((2,), torch.int32))
q, rows = GpuTensor((2, 4, 64), torch.float16), GpuTensor((2, 2, 64), torch.float16)
rope = kvit.torch.rope_words(kvit.Rope(64))

def step():
    call.append(dict(k=rows, v=rows, q=q, rope=rope, **pools, **table))
    out, lse = call.attend(dict(q=q, **pools, **table), True)
    k, v = call.gather(dict(tokens=2, **pools, **table))
    return [list(x.shape) for x in (out, lse, k, v)]

def cost():
    before = count("launches"), count("allocations")
    step()
    return [count("launches") - before[0], count("allocations") - before[1]]

found.append(step())
found.append(cost())
found.append([stream for stream, *_ in call.kept._entries])
current[0] = 0x600
step()
found.append([stream for stream, *_ in call.kept._entries])

captured = kvit.Stream("cuda:0")
current[0] = captured.handle
with kvit.Graph.capture(captured):
    found.append(cost())
found.append([entry.is_captured for entry in call.kept._entries.values()])
try:
    with kvit.Graph.capture(captured):
        call.attend(dict(q=q, softcap=3.0, **pools, **table), False)
except kvit.DriverError as error:
    found.append(str(error))
"""


def test_calls_go_to_the_current_stream_and_a_warm_step_can_be_captured(tmp_path):
    shapes, warm, streams, both, captured, entries, refused = run_idle(tmp_path, ON_A_GPU)
    assert shapes == [[2, 4, 64], [2, 4], [2, 2, 64], [2, 2, 64]]
    assert warm == captured == [3, 0]  # a launch each, and no memory of kvit's
    assert streams == [0x500] * 3 and both == [0x500] * 3 + [0x600] * 3
    assert sorted(entries) == [False] * 3 + [True] * 3  # those of one stream went over to the graph
    assert "first Attention of its configuration" in refused and "once before the capture" in refused
