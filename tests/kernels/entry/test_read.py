"""Family `read`: every word is added up once, whatever the size and the grid, and nothing beside it is touched."""

import struct

import numpy as np
import pytest

import kvit
from kvit._native.launcher import launch_bytes
from kvit._native.module import Kernel
from kvit.selection import registry
from support.manifest import manifest

SPECS = manifest("read")


def read(spec, data, grid, device, before=0):
    """What the kernel leaves in *sum, which held `before`. On the host it may touch `data` and the sum alone."""
    entry = registry.find("read", **spec.axes)
    buffer = kvit.Buffer.from_numpy(data, device)
    total = kvit.Buffer.from_numpy(np.array([before], np.uint32), device)
    params = struct.pack("<QqQ", buffer.pointer, buffer.nbytes, total.pointer)
    spans = [(buffer.pointer, buffer.nbytes, False), (total.pointer, total.nbytes, True)]
    launch_bytes(Kernel.load(entry, device), params, grid, None, spans)
    return int(total.numpy()[0])


def words(rng, num_bytes):
    return rng.integers(0, 2**32, num_bytes // 4, dtype=np.uint32)


def block_bytes(spec):
    return registry.find("read", **spec.axes).facts["block_bytes"]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.symbol)
@pytest.mark.parametrize("grid", [1, 3])
@pytest.mark.parametrize("extra", [-16, 0, 16, 4096 + 16])  # around whole blocks, and a tail that ends within a warp
@pytest.mark.parametrize("blocks", [1, 4])  # with 3 CTAs some read one block, one reads two
def test_every_word_is_added_once(spec, grid, extra, blocks, device, rng):
    data = words(rng, blocks * block_bytes(spec) + extra)
    assert read(spec, data, grid, device) == int(data.sum(dtype=np.uint64)) % 2**32


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.symbol)
def test_the_sum_is_added_to_what_is_there(spec, device, rng):
    data = words(rng, 16)
    assert read(spec, data, 2, device, before=5) == (int(data.sum(dtype=np.uint64)) + 5) % 2**32


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.symbol)
def test_no_bytes_are_nothing(spec, device):
    assert read(spec, np.zeros(0, np.uint32), 2, device, before=7) == 7


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.symbol)
def test_the_host_sees_a_read_past_the_end(spec, rng):
    # The other tests rely on it: a span one vector short of what the struct says must be noticed.
    data = words(rng, block_bytes(spec))
    total = np.zeros(1, np.uint32)
    base, out = data.__array_interface__["data"][0], total.__array_interface__["data"][0]
    params = struct.pack("<QqQ", base, data.nbytes, out)
    spans = [(base, data.nbytes - 16, False), (out, 4, True)]
    with pytest.raises(kvit.HostBackendError, match=spec.symbol):
        launch_bytes(Kernel.load(registry.find("read", **spec.axes), "host"), params, 1, None, spans)
