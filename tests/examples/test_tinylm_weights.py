"""examples/tinylm/weights.py: files that the safetensors package reads, and reads of files that it wrote."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import weights

# One, two and no axes; a tensor of no elements; a name that JSON must escape; the ends of float16 and a NaN.
TENSORS = {
    "b": np.array([65504, -(2.0**-24), np.nan], np.float16),
    'a."quoted"': np.arange(6, dtype=np.float16).reshape(2, 3),
    "scalar": np.array(1.5, np.float16),
    "empty": np.empty((0, 4), np.float16),
}
FACTS = {"config": "{}", "note": "häufig"}


def assert_same(found: dict[str, np.ndarray]) -> None:
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor, strict=True)


def test_the_package_reads_what_was_written(tmp_path):
    path = tmp_path / "model.safetensors"
    weights.write(path, {name: tensor.astype(np.float64) for name, tensor in TENSORS.items()}, FACTS)
    assert_same(safetensors.numpy.load_file(path))
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == FACTS
    assert_same(weights.read(path)[0])


def test_what_the_package_wrote_is_read(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors", FACTS)
    found, facts = weights.read(tmp_path / "model.safetensors")
    assert_same(found)
    assert facts == FACTS


def test_the_order_of_tensors_does_not_change_the_file(tmp_path):
    weights.write(tmp_path / "one", TENSORS, FACTS)
    weights.write(tmp_path / "other", dict(reversed(TENSORS.items())), FACTS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize(
    "content",
    [b"", b"no tensors in here", b"\2\0\0\0\0\0\0\0[]", b'\x0d\0\0\0\0\0\0\0{"tensor": 5}'],
    ids=["empty", "text", "list", "number"],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(weights.WeightsError, match="other is not a safetensors file"):
        weights.read(tmp_path / "other")


def test_a_file_cut_short_is_refused(tmp_path):
    weights.write(tmp_path / "whole", TENSORS, FACTS)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-1])
    with pytest.raises(weights.WeightsError, match="cut is not a safetensors file"):
        weights.read(tmp_path / "cut")


def test_another_dtype_is_refused(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "wide")
    with pytest.raises(weights.WeightsError, match="a tensor is F32"):
        weights.read(tmp_path / "wide")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(weights.WeightsError, match="no weights at .*absent; .*train.py --out"):
        weights.read(tmp_path / "absent")
