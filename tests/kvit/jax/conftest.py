"""What every test of kvit.jax needs: JAX, and a place for its arrays."""

import os

import pytest

from support.libraries import need


@pytest.fixture(autouse=True)
def _library(request):
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # or it takes three quarters of the GPU's memory
    jax = need("jax", "JAX")
    if request.node.get_closest_marker("gpu"):
        try:
            jax.devices("gpu")
        except RuntimeError as error:
            pytest.skip(f"needs a JAX that is built with CUDA: {error}")


@pytest.fixture
def make(rng, device):
    """Makes a cache twice, in the reference's words and in JAX's arrays, on the device of the test."""
    from support.jax_caches import JaxCase

    return lambda pair=(None, None), **shape: JaxCase(rng, pair, device=device, **shape)
