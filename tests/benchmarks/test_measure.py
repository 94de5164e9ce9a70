"""benchmarks/measure.py: the memory that is read, and the clock that says how long that takes."""

import measure
import numpy as np
import pytest

import kvit


@pytest.fixture(scope="module")
def memory():
    return measure.RandomMemory("bfloat16", kvit.Stream("host"), seed=1)


def test_memory_longer_than_the_block_repeats_it_and_is_summed_without_being_read(memory):
    num_bytes = 40_000_000 // 16 * 16  # two blocks and a part of a third
    data = np.asarray(memory.bytes(num_bytes)).view(np.uint32)
    assert int(data.sum(dtype=np.uint64)) % 2**32 == memory.word_sum(num_bytes)


def test_no_two_pages_hold_the_same_numbers(memory):
    page = 64 * 8 * 128 * 2
    data = np.asarray(memory.bytes(200 * page)).reshape(200, page)  # more pages than the block has
    assert len({row.tobytes() for row in data}) == 200


def test_a_status_that_is_no_success_is_raised_with_its_call():
    from cuda.bindings import driver

    def cuFails():  # noqa: N802  (named like the driver's functions)
        return (driver.CUresult.CUDA_ERROR_INVALID_VALUE,)

    with pytest.raises(kvit.DriverError, match="cuFails.*CUDA_ERROR_INVALID_VALUE"):
        measure.call(cuFails)


@pytest.mark.gpu
def test_a_graph_takes_as_long_as_the_memory_that_its_work_reads():
    # 1 GiB takes several times as long as 64 MiB on any GPU; a clock that missed the work would say the same of both.
    device = kvit.Device.of("cuda:0")
    measure.make_current(device)
    stream = kvit.Stream(device)
    small, large = (kvit.Buffer.empty(mib << 20, "uint8", device, stream) for mib in (64, 1024))
    times = [measure.graph_us(stream, [lambda buffer=buffer: buffer.fill_bytes(0)]) for buffer in (small, large)]
    assert 0 < 4 * times[0] < times[1]


@pytest.mark.gpu
def test_the_ceiling_is_a_rate_that_a_gpu_can_have():
    device = kvit.Device.of("cuda:0")
    measure.make_current(device)
    stream = kvit.Stream(device)
    ceiling = measure.read_ceiling(device, stream, measure.RandomMemory("bfloat16", stream, seed=1))
    assert 50 < ceiling.gbps < 20_000
