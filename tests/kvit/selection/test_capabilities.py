"""kvit/selection/capabilities.py: what is known of GPUs that are not there."""

import pytest

from kvit.selection.capabilities import name_of, shared_bytes


@pytest.mark.parametrize(
    ("capability", "kilobytes"),
    [
        ((7, 5), 64),
        ((7, 3), 64),  # unknown, and old
        ((8, 0), 163),
        ((8, 9), 99),
        ((9, 0), 227),
        ((10, 3), 227),
        ((12, 0), 99),
        ((13, 7), 99),  # unknown: no kernel is chosen that it may not have the memory for
    ],
)
def test_shared_memory_of_a_gpu_that_is_not_there(capability, kilobytes):
    assert shared_bytes(capability) == kilobytes * 1024


def test_a_capability_is_named_as_targets_are():
    assert name_of((9, 0)) == "sm_90" and name_of((12, 1)) == "sm_121"


@pytest.mark.gpu
def test_the_gpu_of_this_machine_agrees():
    from kvit._native.context import Device

    gpu = Device.of("cuda:0")
    assert shared_bytes(gpu.compute_capability) == gpu.shared_bytes
