"""How much memory this process holds, for tests that something gives back what it took."""

import os

import numpy as np


def mapped_memory():
    """Bytes of the addresses that this process has mapped."""
    return _pages(0)


def used_memory(device):
    """Bytes of this process on the host; on a GPU those that it has from the stream-ordered pool."""
    if device == "host":
        return _pages(1)
    from cuda.bindings import driver

    status, pool = driver.cuDeviceGetDefaultMemPool(0)
    assert status == 0
    status, used = driver.cuMemPoolGetAttribute(pool, driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    assert status == 0
    return int(used)


def _pages(field):
    with open("/proc/self/statm", encoding="utf-8") as numbers:
        return int(numbers.read().split()[field]) * os.sysconf("SC_PAGE_SIZE")


def aligned(num_bytes: int, alignment: int = 256) -> np.ndarray:
    """Zeros, uint8, from an address that is a multiple of `alignment`."""
    raw = np.zeros(num_bytes + alignment, np.uint8)
    begin = -raw.ctypes.data % alignment
    return raw[begin : begin + num_bytes]
