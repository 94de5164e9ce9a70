"""What every test of kvit.torch needs: PyTorch, and a place for its tensors."""

import pytest

from support.libraries import need


@pytest.fixture(autouse=True)
def _library(request):
    torch = need("torch", "PyTorch")
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a PyTorch that is built with CUDA")


@pytest.fixture
def make(rng, device):
    """Makes a cache twice, in the reference's words and in PyTorch's tensors, on the device of the test."""
    from support.torch_caches import TorchCase

    return lambda pair=(None, None), **shape: TorchCase(rng, pair, device=device, **shape)
