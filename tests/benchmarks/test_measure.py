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


def test_what_stands_anywhere_is_known_without_reading_it(memory):
    data = np.asarray(memory.bytes(40_000_000))
    for start, num_bytes in ((0, 100), (16_781_328 - 7, 20), (5, 35_000_000)):  # within a block, over an end, over two
        np.testing.assert_array_equal(memory.read(start, num_bytes), data[start : start + num_bytes])


def test_numbers_of_ones_own_are_repeated():
    numbers = np.arange(7, dtype=np.float32)
    data = measure.RandomMemory.of(numbers, kvit.Stream("host")).bytes(100).numpy().view(np.float32)
    np.testing.assert_array_equal(data, np.resize(numbers, 25))


@pytest.mark.parametrize("dtype", ["uint8", "float8_e4m3", "float16"])
def test_floats_are_numbers_and_bytes_are_any(dtype):
    from kvit import dtypes

    data = measure.RandomMemory(dtype, kvit.Stream("host"), seed=1).read(0, 100_000)
    if dtype == "uint8":
        assert set(data) == set(range(256))
    else:
        values = data.view(dtypes.numpy_dtype(dtypes.dtype_of(dtype))).astype(np.float64)
        assert np.isfinite(values).all() and values.std() == pytest.approx(1.0, abs=0.05)


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


def test_contenders_take_turns_and_nobody_is_always_first():
    class Contender:
        def __init__(self, name, times):
            self.name, self.times, self.is_open = name, iter(times), True

        def us(self):
            order.append(self.name)
            return next(self.times)

        def close(self):
            self.is_open = False

    order = []
    contenders = [Contender("a", [900, 800, 10, 30, 20]), Contender("b", [900, 800, 5, 1, 3])]
    assert measure.take_turns(contenders, replays=3) == [20, 3]  # medians, the first two left out
    assert order == list("abbaabbaab")
    assert not any(contender.is_open for contender in contenders)


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
