"""pyx/runtime/errors: what a failed driver call says."""

import pytest

from kvit._native.buffer import Buffer
from kvit.errors import DriverError


def test_a_failed_call_names_itself_its_status_and_the_next_step(device):
    petabyte = 1 << 50  # more than any machine has, less than the address arithmetic refuses
    with pytest.raises(DriverError, match=r"CUresult 2 .*for 1125899906842624 bytes on .*: .*free some") as caught:
        Buffer.empty(petabyte, "uint8", device)
    assert caught.value.status == 2
    assert str(caught.value).startswith(caught.value.call)


@pytest.mark.gpu
def test_on_a_gpu_the_driver_names_the_status():
    with pytest.raises(DriverError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        Buffer.empty(1 << 50, "uint8", "cuda:0")
