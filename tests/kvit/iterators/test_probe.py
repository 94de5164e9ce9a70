"""kvit/iterators/probe.py, prediction.py: what a probe refuses. What it finds is tested with the kernels."""

from dataclasses import replace

import numpy as np
import pytest

from kvit.errors import KernelMissing, KvitError, LayoutError, ShapeError
from kvit.iterators import BoxProbeSpec, ProbeInput, ProbeSpec, Table, predict, probe, spec_of

SPEC = ProbeSpec("sm80", "f16", 64, 64, 3, "paged")
BOXES = BoxProbeSpec("f16", 64, 64, 2)
POOL = np.zeros((2, 16, 1, 128), np.uint8)
TABLE = Table(np.zeros((1, 2), np.int32), np.array([20], np.int32))


def given(k=POOL, **which):
    return ProbeInput({"k": k, "v": POOL}, TABLE, **which)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loader": "sm75"}, "loader is 'sm75'; it must be sm70 or sm80"),
        ({"element": "f32"}, "element is 'f32'; it must be f16 or bf16 or u8 or u4"),
        ({"source": "pages"}, "source is 'pages'; it must be paged or linear"),
        ({"head_dim": 0}, "head_dim is 0; it must be a whole number of at least 1"),
        ({"tile": 64.0}, "tile is 64.0"),
        ({"stages": True}, "stages is True"),
        ({"head_dim": 72}, "head_dim 72 in 16 bits has no layout"),
    ],
)
def test_a_spec_that_no_kernel_can_have_is_refused_when_it_is_made(change, words):
    with pytest.raises((ShapeError, LayoutError), match=words):
        replace(SPEC, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"element": "bf16"}, "element is 'bf16'; it must be f16 or u8 or u4"),
        ({"stages": -1}, "stages is -1"),
        ({"tile": 12}, "12 tokens; the pattern repeats after 8"),
    ],
)
def test_a_spec_of_boxes_that_no_kernel_can_have_is_refused_when_it_is_made(change, words):
    with pytest.raises((ShapeError, LayoutError), match=words):
        replace(BOXES, **change)


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
        (given(box_tokens=8), ShapeError, "copies no boxes; leave it out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_input_that_does_not_fit_is_refused_before_anything_runs(run, request_, error, words):
    with pytest.raises(error, match=words) as caught:
        run(SPEC, request_)
    assert isinstance(caught.value, KvitError)


@pytest.mark.parametrize("run", [predict, probe])
@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (given(box_tokens=32), ShapeError, "box_tokens is 32 in pages of 16 and tiles of 64; it may be 8, 16"),
        (given(box_tokens=0), ShapeError, "box_tokens is 0"),
        (given(s_slice=(0, -1)), ShapeError, "two counts"),
        (given(stage=2), ShapeError, "stage is 2; it must be from 0 to 1"),
        (
            ProbeInput({"k": POOL[:, :10], "v": POOL[:, :10]}, TABLE),
            ShapeError,
            "pages of 10 tokens hold no boxes; the page size must be a multiple of 8",
        ),
        (
            ProbeInput({name: POOL for name in ("k", "v", "k_params", "v_params")}, TABLE),
            ShapeError,
            "takes the pools k, v, not k, v, k_params, v_params",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_boxes_that_do_not_fit_are_refused_before_anything_runs(run, request_, error, words):
    with pytest.raises(error, match=words):
        run(BOXES, request_)


def test_rows_that_no_tensor_map_describes_are_refused_by_address_and_strides():
    # 8 bytes between rows: the engine takes strides of whole 16-byte vectors.
    raw = np.zeros((2, 16, 1, 136), np.uint8)[..., :128]
    with pytest.raises(LayoutError, match=r"strides \(2176, 136, 136\) cannot be copied by boxes"):
        probe(BOXES, ProbeInput({"k": raw, "v": POOL}, TABLE))


def test_an_unknown_symbol_is_refused_with_those_that_exist():
    with pytest.raises(KernelMissing, match="kvit_probe__sm90 is no probe kernel; built are kvit_probe__sm70_f16") as e:
        probe("kvit_probe__sm90", given())
    assert "kvit_probe_boxes__f16_d64_t64_s2" in str(e.value)


def test_a_shape_that_the_manifest_leaves_out_is_refused():
    with pytest.raises(KernelMissing):
        probe(ProbeSpec("sm70", "f16", 64, 64, 3, "paged"), given())


def test_a_kernel_may_be_named_by_its_symbol():
    found = probe("kvit_probe__sm80_f16_d64_t64_s3_paged", given())
    np.testing.assert_array_equal(found.shared, predict(SPEC, given()).shared)
    assert spec_of("kvit_probe_boxes__f16_d64_t64_s2") == BOXES
    found = probe("kvit_probe_boxes__f16_d64_t64_s2", given())
    np.testing.assert_array_equal(found.shared, predict(BOXES, given()).shared)
