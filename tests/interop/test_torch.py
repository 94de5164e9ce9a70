"""PyTorch's own kinds of tensors: which come in, and why the others do not."""

import gc
import weakref

import numpy as np
import pytest

import kvit
from support.libraries import need


@pytest.fixture
def torch():
    return need("torch", "PyTorch")


def test_a_tensor_is_kept_until_its_view_goes(torch):
    array = np.zeros(64, np.float32)
    gone = weakref.ref(array)
    view = kvit.Tensor.wrap(torch.from_numpy(array))
    del array
    gc.collect()
    assert gone() is not None
    del view
    gc.collect()
    assert gone() is None


def test_a_part_of_a_tensor_begins_where_the_part_begins(torch):
    whole = torch.zeros(6, 8, 32, dtype=torch.bfloat16)
    part = whole[2:, ::2, 16:]
    view = kvit.Tensor.wrap(part)
    assert (view.pointer, view.shape) == (part.data_ptr(), tuple(part.shape))
    assert view.strides == tuple(stride * 2 for stride in part.stride())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda torch: torch.zeros(4, requires_grad=True), "require gradient, use tensor.detach"),
        (lambda torch: torch.zeros(4, dtype=torch.complex64).conj(), "conjugate bit"),
        (lambda torch: torch.eye(4).to_sparse(), "layout other than torch.strided"),
        (lambda torch: torch.empty(4, device="meta"), "meta"),
    ],
    ids=["gradient", "conjugate", "sparse", "meta"],
)
def test_a_tensor_that_torch_does_not_lend_is_refused_in_torchs_words(torch, make, reason):
    with pytest.raises(kvit.LayoutError, match=f"does not lend its memory: .*{reason}"):
        kvit.Tensor.wrap(make(torch))


def test_writes_of_kvit_are_seen_through_the_tensor_and_the_other_way(torch):
    buffer = kvit.Buffer.empty((2, 4), "float32", "host")
    tensor = torch.from_dlpack(buffer)
    buffer.fill_bytes(0)
    assert not tensor.any()
    tensor[1] = 2.0
    assert (buffer.numpy() == [[0, 0, 0, 0], [2, 2, 2, 2]]).all()


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "uint8", "int8", "int32"])
def test_types_of_torch_name_types_of_kvit(torch, name):
    dtype = getattr(torch, name)
    buffer = kvit.Buffer.empty((2, 4), dtype, "host")
    assert str(buffer.dtype) == name and torch.from_dlpack(buffer).dtype is dtype
