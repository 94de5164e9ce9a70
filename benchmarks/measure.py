"""Times work on a GPU through kvit's own runtime: random memory, CUDA graph replay, the ceiling of reading memory."""

from __future__ import annotations

import statistics
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from cells import Ceiling
from cuda.bindings import driver
from numpy.typing import NDArray

import kvit
from kvit import dtypes
from kvit._cli.compare import expect
from kvit._native.launcher import launch_bytes
from kvit._native.module import Kernel
from kvit.selection import registry

REPLAYS = 10
CALLS_PER_GRAPH = 20  # a graph's own start is spread over so many calls
_CEILING_BYTES = 2 << 30
_COPIED_BYTES = 256 << 20  # copies rotate over so much, more than any L2 holds
_CTAS_PER_SM = (1, 2, 4)


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What a function of cuda.bindings.driver returns beside its status. Raises kvit.DriverError."""
    status, *values = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        name = function.__name__
        raise kvit.DriverError(f"{name} failed with CUresult {int(status)} ({status.name})", int(status), name)
    return values[0] if values else None


def refuse(program: str, error: Exception | str) -> int:
    """Say in a line why a program measures nothing. Returns its exit status: 2 where a GPU is missing, 1 else."""
    print(f"{program}: {error}", file=sys.stderr)
    return 2 if isinstance(error, kvit.NoGpuError) else 1


def need_gpu(name: str) -> kvit.Device:
    """The GPU of this name, for a benchmark that measures nothing else.

    Raises NoGpuError (the host, or there is no GPU: then it says what can be run), DeviceError.
    """
    try:
        asked = kvit.Device.of(name)
        if not asked.is_host:
            return asked
        kvit.Device.of("cuda:0")
    except kvit.NoGpuError as error:
        reason = str(error).partition(". ")[0]
        raise kvit.NoGpuError(
            f"{reason}; and the host backend proves arithmetic, not speed. Run this on a machine with a GPU; "
            "`python benchmarks/host.py --device host` and `kvit selfcheck --device host` need none"
        ) from None
    raise kvit.NoGpuError("the host backend proves arithmetic, not speed; give --device cuda:N")


def make_current(device: kvit.Device) -> None:
    """Make the device's primary context, in which kvit works, current: graphs are launched by us, not by kvit."""
    call(driver.cuCtxSetCurrent, call(driver.cuDevicePrimaryCtxRetain, call(driver.cuDeviceGet, device.ordinal)))


class Graph:
    """A CUDA graph of the work that `record` gives to the stream, ready to be launched on it."""

    def __init__(self, stream: kvit.Stream, record: Callable[[], None]):
        self._stream = driver.CUstream(stream.handle)
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(driver.cuStreamBeginCapture, self._stream, mode)
        try:
            record()
        finally:
            graph = call(driver.cuStreamEndCapture, self._stream)
        self._executable = call(driver.cuGraphInstantiate, graph, 0)
        call(driver.cuGraphDestroy, graph)

    def launch(self) -> None:
        """Give the whole graph to the stream."""
        call(driver.cuGraphLaunch, self._executable, self._stream)

    def close(self) -> None:
        """Free the graph, whose work must be done."""
        call(driver.cuGraphExecDestroy, self._executable)


class Contender(Protocol):
    """Work whose calls are in a graph, ready to be timed."""

    def us(self) -> float:
        """Microseconds of one call, by one replay of the graph."""
        ...

    def close(self) -> None:
        """Free the graph, whose work must be done."""
        ...


def ready(peer: Callable[[Any], Contender], inputs: Any) -> Contender | str:
    """The peer over these inputs, ready to be timed, or why it is not."""
    try:
        return peer(inputs)
    except Exception as error:  # a peer that is missing or fails must not end the run; the report says why
        return f"{type(error).__name__}: {error}"


class Replay:
    """A contender on kvit's runtime: calls that take turns."""

    def __init__(self, stream: kvit.Stream, calls: Sequence[Callable[[], object]]):
        for one in calls:
            one()  # kernels are loaded when first launched, which a capture does not allow
        stream.synchronize()
        rounds = max(1, CALLS_PER_GRAPH // len(calls))

        def record() -> None:
            for _ in range(rounds):
                for one in calls:
                    one()

        self._stream, self._calls, self._graph = stream, rounds * len(calls), Graph(stream, record)
        self._held = calls  # and with them the memory that the graph works on

    def us(self) -> float:
        start, end = kvit.Event(self._stream.device), kvit.Event(self._stream.device)
        start.record(self._stream)
        self._graph.launch()
        end.record(self._stream)
        end.synchronize()
        return start.elapsed_ms(end) * 1e3 / self._calls

    def close(self) -> None:
        self._graph.close()


def take_turns(contenders: Sequence[Contender], replays: int = REPLAYS) -> list[float]:
    """Median microseconds of a call of each. They take turns at replays: clocks and heat are the same for all."""
    times: list[list[float]] = [[] for _ in contenders]
    for turn in range(2 + replays):  # the first two warm clocks and caches
        for i in range(len(contenders)):
            which = (i + turn) % len(contenders)
            times[which].append(contenders[which].us())
    for contender in contenders:
        contender.close()
    return [statistics.median(found[2:]) for found in times]


def graph_us(stream: kvit.Stream, calls: Sequence[Callable[[], object]], replays: int = REPLAYS) -> float:
    """Median microseconds of one call, the calls taking turns in a graph that is replayed so many times."""
    return take_turns([Replay(stream, calls)], replays)[0]


class RandomMemory:
    """Random numbers of one dtype, from one block that is repeated over as much memory as asked for.

    The block is no whole number of pages of any usual size, so two pages never hold the same numbers.
    """

    def __init__(self, dtype: str, stream: kvit.Stream, seed: int):
        """Normally distributed floats, or bytes of any value for "uint8"."""
        rng, elements = np.random.default_rng(seed), (8 << 20) + 2056
        wanted = dtypes.numpy_dtype(dtypes.dtype_of(dtype))
        is_bytes = wanted == np.uint8
        numbers = rng.integers(256, size=elements) if is_bytes else rng.standard_normal(elements, np.float32)
        self._hold(numbers.astype(wanted), stream)

    @classmethod
    def of(cls, numbers: NDArray, stream: kvit.Stream) -> RandomMemory:
        """These numbers, repeated."""
        memory = cls.__new__(cls)
        memory._hold(np.ascontiguousarray(numbers).reshape(-1), stream)
        return memory

    def _hold(self, numbers: NDArray, stream: kvit.Stream) -> None:
        self._stream = stream
        self._bytes = numbers.view(np.uint8)
        self._block = kvit.Buffer.from_numpy(self._bytes, stream.device, stream)

    def bytes(self, num_bytes: int) -> kvit.Buffer:
        """So many bytes of the device's memory, uint8 [num_bytes]."""
        buffer = kvit.Buffer.empty(num_bytes, "uint8", self._stream.device, self._stream)
        for start in range(0, num_bytes, len(self._bytes)):
            part = buffer[start : start + len(self._bytes)]
            part.copy_from(self._block[: len(part)], self._stream)
        return buffer

    def read(self, start: int, num_bytes: int) -> NDArray[np.uint8]:
        """What stands from byte `start` of such memory on, without asking the device."""
        found = np.empty(num_bytes, np.uint8)
        filled, place = 0, start % len(self._bytes)
        while filled < num_bytes:
            part = self._bytes[place : place + num_bytes - filled]
            found[filled : filled + len(part)] = part
            filled, place = filled + len(part), 0
        return found

    def word_sum(self, num_bytes: int) -> int:
        """The sum of all 32-bit words of `bytes(num_bytes)`, modulo 2**32."""
        words = self._bytes.view(np.uint32)
        whole, rest = divmod(num_bytes // 4, len(words))
        return (whole * int(words.sum(dtype=np.uint64)) + int(words[:rest].sum(dtype=np.uint64))) % 2**32


def copy_gbps(stream: kvit.Stream, memory: RandomMemory, num_bytes: int) -> float:
    """10**9 bytes per second, read and written, of copying `num_bytes` on the device, none of them in L2."""
    copies = max(1, -(-_COPIED_BYTES // num_bytes))
    source, target = (memory.bytes(copies * num_bytes) for _ in range(2))
    handle = driver.CUstream(stream.handle)

    def copy(offset: int) -> None:
        pointers = (driver.CUdeviceptr(buffer.pointer + offset) for buffer in (target, source))
        call(driver.cuMemcpyDtoDAsync, *pointers, num_bytes, handle)

    us = graph_us(stream, [lambda offset=i * num_bytes: copy(offset) for i in range(copies)])
    return 2 * num_bytes / us / 1e3


def read_ceiling(device: kvit.Device, stream: kvit.Stream, memory: RandomMemory) -> Ceiling:
    """The best rate of the kernels of family `read` over 2 GiB. Raises Mismatch unless each reads every byte once."""
    buffer = memory.bytes(_CEILING_BYTES)
    found = []
    for entry in registry.candidates("read"):
        kernel = Kernel.load(entry, device)
        total = kvit.Buffer.empty(1, "uint32", device, stream)
        params = struct.pack("<QqQ", buffer.pointer, buffer.nbytes, total.pointer)  # KvitReadParams
        for grid in (device.num_sms * ctas for ctas in _CTAS_PER_SM):

            def read(kernel: Kernel = kernel, params: bytes = params, grid: int = grid) -> None:
                launch_bytes(kernel, params, grid, stream)

            total.fill_bytes(0, stream)
            read()
            summed = int(total.numpy()[0])
            where = f"{entry.symbol} on a grid of {grid}"
            expect(summed == memory.word_sum(buffer.nbytes), f"{where} did not read every byte once: its sum is wrong")
            us = graph_us(stream, [read])
            found.append(Ceiling(buffer.nbytes / us / 1e3, buffer.nbytes, entry.symbol, grid))
    return max(found, key=lambda ceiling: ceiling.gbps)
