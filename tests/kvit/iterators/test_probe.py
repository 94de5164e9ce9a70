"""kvit/iterators/probe.py: what a probe refuses. What it finds is tested with the kernels, in tests/kernels."""

import numpy as np
import pytest

from kvit.errors import KernelMissing, KvitError, LayoutError, ShapeError
from kvit.iterators import ProbeInput, ProbeSpec, Table, predict, probe

SPEC = ProbeSpec("sm80", "f16", 64, 64, 3, "paged")
POOL = np.zeros((2, 16, 1, 128), np.uint8)
TABLE = Table(np.zeros((1, 2), np.int32), np.array([20], np.int32))


def given(k=POOL, **which):
    return ProbeInput({"k": k, "v": POOL}, TABLE, **which)


@pytest.mark.parametrize("run", [predict, probe])
@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (ProbeInput({"k": POOL}, TABLE), ShapeError, "takes the pools k, v, not k"),
        (given(POOL.view(np.uint16)), ShapeError, r"takes uint8 \[pages, page_size, heads, 128\]"),
        (given(POOL[:1]), ShapeError, "the same pages, page_size and heads in every pool"),
        (given(np.zeros((2, 16, 1, 256), np.uint8)[..., ::2]), LayoutError, "2 bytes from channel to channel"),
        (given(stage=3), ShapeError, "stage is 3; it must be from 0 to 2"),
        (given(sequence=1), ShapeError, "sequence is 1; it must be from 0 to 0"),
        (given(head=-1), ShapeError, "head is -1; it must be from 0 to 0"),
        (given(tile=1, advances=2), ShapeError, "cannot be reached in 2 advances"),
        (given(s_slice=(-1, 2)), ShapeError, "two counts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_input_that_does_not_fit_is_refused_before_anything_runs(run, request_, error, words):
    with pytest.raises(error, match=words) as caught:
        run(SPEC, request_)
    assert isinstance(caught.value, KvitError)


def test_an_unknown_symbol_is_refused_with_those_that_exist():
    with pytest.raises(KernelMissing, match="kvit_probe__sm90 is no probe kernel; built are kvit_probe__sm70_f16"):
        probe("kvit_probe__sm90", given())


def test_a_shape_that_the_manifest_leaves_out_is_refused():
    with pytest.raises(KernelMissing):
        probe(ProbeSpec("sm70", "f16", 64, 64, 3, "paged"), given())


def test_a_kernel_may_be_named_by_its_symbol():
    found = probe("kvit_probe__sm80_f16_d64_t64_s3_paged", given())
    np.testing.assert_array_equal(found.shared, predict(SPEC, given()).shared)
