"""PyTorch's own kinds of tensors: which come in, and why the others do not."""

import gc
import weakref

import numpy as np
import pytest

import kvit
from support.caches import make_case
from support.libraries import need
from support.quantised import Quantised
from support.threads import run_side_by_side
from support.tolerances import assert_within


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


def test_torch_lends_by_its_c_functions_and_its_python_is_not_called(torch, monkeypatch):
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):  # without them a tensor costs ten times as much
        pytest.skip("needs a PyTorch with DLPack's C exchange API: pip install --upgrade 'kvit[test-interop]'")
    tensor = torch.zeros(4, 8)
    monkeypatch.setattr(torch.Tensor, "__dlpack__", None)
    monkeypatch.setattr(torch.Tensor, "__dlpack_device__", None)
    assert kvit.Tensor.wrap(tensor).pointer == tensor.data_ptr()


def test_a_parameter_is_refused_and_what_it_detaches_is_not(torch):
    parameter = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(kvit.LayoutError, match="the Parameter does not lend its memory: .*use tensor.detach"):
        kvit.Tensor.wrap(parameter)
    assert kvit.Tensor.wrap(parameter.detach()).pointer == parameter.data_ptr()
    frozen = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    assert kvit.Tensor.wrap(frozen).pointer == frozen.data_ptr()


def test_nothing_is_remembered_of_a_tensor(torch):
    tensor = torch.zeros(4)
    assert kvit.Tensor.wrap(tensor).shape == (4,)
    tensor.data = torch.ones(2, 3, dtype=torch.float16)  # the same object, other memory
    after = kvit.Tensor.wrap(tensor)
    assert (after.shape, after.dtype.name, after.pointer) == ((2, 3), "float16", tensor.data_ptr())


def test_tensors_are_wrapped_side_by_side(torch):
    tensors = [torch.zeros(4, 8 + i) for i in range(4)]

    def wrap(i):
        mine = tensors[i % 4]
        return {(kvit.Tensor.wrap(mine).pointer, kvit.Tensor.wrap(mine).shape) for _ in range(1000)}

    expected = [{(tensor.data_ptr(), tuple(tensor.shape))} for tensor in tensors]
    assert run_side_by_side(wrap) == expected * 2


@pytest.fixture
def step(torch, rng):
    """Queries, outputs and sums of PyTorch for a case of kvit's."""
    case = make_case(rng, [9, 3])
    q = case.queries(rng, 2, 4)
    given = torch.from_numpy(q.view(np.uint8)).view(torch.bfloat16)
    return case, q, given, torch.empty_like(given), torch.empty(2, 4)


def test_outputs_come_back_as_the_very_objects_that_were_given(torch, step):
    case, q, given, out, lse = step
    assert kvit.Attention(case.view, 4)(given, case.view, case.page_table, out=out, lse=lse) is out
    state, bound = case.expect(q)
    assert_within(out.view(torch.uint8).numpy().view(q.dtype), state.out, bound)
    merged, sums = torch.empty_like(out), torch.empty_like(lse)
    found = kvit.merge_state(out, lse, out, lse, out=merged, lse=sums)
    assert found[0] is merged and found[1] is sums
    assert torch.equal(merged, out)  # of two equal parts


def test_a_table_and_a_view_of_tensors_are_those_of_arrays(torch):
    pool = torch.zeros(6, 2, 16, 2, 64, dtype=torch.bfloat16)
    view = kvit.CacheView(pool[:, 0], pool[:, 1])
    assert view.packed.pools[1][0] == pool.data_ptr() + 16 * 2 * 64 * 2
    assert view.packed.pools[0][1:] == tuple(2 * pool.stride()[axis] for axis in (0, 2, 3))
    pages, lengths = torch.zeros(3, 9, dtype=torch.int32)[:, :8], torch.ones(3, dtype=torch.int32)
    table = kvit.PageTable(pages, lengths=lengths)
    assert (table.num_sequences, table.pages.strides, table.pages.pointer) == (3, (36, 4), pages.data_ptr())


@pytest.mark.parametrize("pair", ["int8", "int4", "float8_e4m3"])
def test_threads_that_take_denormals_for_zero_give_the_same_bits(torch, rng, pair):
    # PyTorch does so where it is told to, and XLA's threads always do. Kernels decode by way of denormals.
    case = Quantised((pair, pair), [20, 7], rng=rng)
    case.append(rng)
    q = rng.standard_normal((2, 4, 64)).astype(case.dtype)
    attention = kvit.Attention(case.view, 4)
    want = attention(q, case.view, case.page_table).numpy()
    assert torch.set_flush_denormal(True)
    try:
        found = attention(q, case.view, case.page_table).numpy()
        assert (torch.tensor(1e-40) * torch.tensor(1.0)).item() == 0  # the caller's own state is as it was
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(found, want)
