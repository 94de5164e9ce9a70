"""pyx/runtime/module: kernels are loaded on first use, once per device."""

import pytest

from kvit._native.module import Kernel
from kvit.errors import HostBackendError, KernelMissing
from kvit.selection import registry
from support.built import is_built


@pytest.fixture
def entry():
    return registry.find("copy_pages", access=16)


def test_a_kernel_is_loaded_once(device, entry):
    kernel = Kernel.load(entry, device)
    assert kernel is Kernel.load(entry, device)
    assert (kernel.entry, kernel.device, kernel.params_bytes) == (entry, device, entry.params_bytes)
    assert (kernel.library is None) == (device == "host")


def test_every_kernel_of_the_index_can_be_loaded(device):
    built = [entry for entry in registry.all() if is_built(entry, device)]
    assert built
    for entry in built:
        assert Kernel.load(entry, device).entry == entry


def test_a_kernel_that_the_host_library_lacks_is_named(entry):
    with pytest.raises(HostBackendError, match="no kernel kvit_nothing__u8; .*Reinstall"):
        Kernel.load(entry._replace(symbol="kvit_nothing__u8"), "host")


def test_an_index_of_another_build_is_noticed(entry, tmp_path):
    other = entry._replace(params_bytes=entry.params_bytes + 8, folder=tmp_path)
    with pytest.raises(HostBackendError, match="different builds"):
        Kernel.load(other, "host")


def test_a_kernel_is_found_not_made():
    with pytest.raises(TypeError, match="Kernel.load"):
        Kernel()


@pytest.mark.gpu
def test_kernels_of_one_file_share_its_library(entry):
    neighbour = registry.find("copy_pages", access=4)
    assert Kernel.load(entry, "cuda:0").library is Kernel.load(neighbour, "cuda:0").library


@pytest.mark.gpu
def test_a_missing_file_is_named(entry, tmp_path):
    with pytest.raises(KernelMissing, match=f"{tmp_path}.* cannot be read"):
        Kernel.load(entry._replace(folder=tmp_path), "cuda:0")


@pytest.mark.gpu
def test_a_symbol_that_the_file_lacks_is_named(entry):
    with pytest.raises(KernelMissing, match="has no kernel kvit_nothing__u8"):
        Kernel.load(entry._replace(symbol="kvit_nothing__u8"), "cuda:0")


@pytest.mark.gpu
def test_more_shared_memory_than_the_gpu_has_is_refused_before_loading(entry, tmp_path):
    greedy = entry._replace(shared_bytes=1 << 20, folder=tmp_path)
    with pytest.raises(KernelMissing, match="needs 1048576 shared bytes per CTA; .* has"):
        Kernel.load(greedy, "cuda:0")
