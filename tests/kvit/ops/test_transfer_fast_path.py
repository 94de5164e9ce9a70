"""kvit.Append's and kvit.Gather's quick way: which calls take it, and that it moves and refuses the same."""

import sys

import numpy as np
import pytest

import kvit
from kvit.ops.operation import Operation
from support.caches import BFLOAT16, make_case, new_cache, new_tokens, on_gpu, poisoned, to_device


@pytest.fixture
def through_python(monkeypatch):
    """The operations whose calls did not fit as they were, one entry for each such call."""
    calls = []

    def note(self, view):
        calls.append(self)
        Operation._check_view(self, view)

    for kind in (kvit.Append, kvit.Gather):
        monkeypatch.setattr(kind, "_check_view", note, raising=False)
    return calls


@pytest.mark.parametrize("stored", ["bfloat16", "int8", "float8_e4m3"])
@pytest.mark.parametrize("is_even", [True, False], ids=["as_many_each", "indptr"])
def test_what_fits_goes_straight_to_the_kernel(rng, device, through_python, stored, is_even):
    # bf16 has no parameters, int8 has some that append writes, float8 some that it only reads.
    caches = [new_cache(device, k=stored, v=stored) for _ in range(2)]
    k, v = (to_device(x, device) for x in new_tokens(rng, 6))
    counts = [3, 3] if is_even else [1, 5]
    indptr = None if is_even else to_device(np.array([0, 1, 6], np.int32), device)
    tables = []
    for cache in caches:
        seqs = [cache.sequence(), cache.sequence()]
        cache.append(seqs, *(to_device(np.zeros((6, 2, 64), BFLOAT16), device) for _ in range(2)), new_tokens=counts)
        tables.append(cache.table(seqs))
    stream = kvit.Stream(device)
    stream.synchronize()
    kvit.Append(caches[0].view)(k, v, caches[0].view, tables[0], query_indptr=indptr, stream=stream)
    out = [kvit.Buffer.empty(k.shape, "bfloat16", device, stream) for _ in range(2)]
    kvit.Gather(caches[0].view)(caches[0].view, tables[0], out=out, query_indptr=indptr, stream=stream)

    assert not through_python

    # The same through Python's checks: raw 16-bit integers never fit as they are.
    raw = [kvit.Tensor.from_pointer(x.pointer, x.shape, "uint16", device, owner=x) for x in (k, v)]
    kvit.Append(caches[1].view)(*raw, caches[1].view, tables[1], query_indptr=indptr, stream=stream)
    same = [kvit.Buffer.empty(k.shape, "uint16", device, stream) for _ in range(2)]
    kvit.Gather(caches[1].view)(caches[1].view, tables[1], out=same, query_indptr=indptr, stream=stream)
    assert [type(operation) for operation in through_python] == [kvit.Append, kvit.Gather]
    for ours, other, given in zip(out, same, (k, v), strict=True):
        assert ours.numpy().tobytes() == other.numpy().tobytes()
        assert stored != "bfloat16" or ours.numpy().tobytes() == given.numpy().tobytes()


def test_arrays_of_others_are_wrapped_and_go_the_same_way(rng, through_python):
    cache = new_cache()
    sequence = cache.sequence()
    k, v = new_tokens(rng, 3)
    cache.append([sequence], k, v)
    out = [poisoned(k.shape, BFLOAT16) for _ in range(2)]
    indptr = np.array([0, 3], np.int32)
    kvit.Gather(cache.view)(cache.view, cache.table([sequence]), out=out, query_indptr=indptr)
    np.testing.assert_array_equal(out, [k, v])
    assert not through_python


def test_a_right_call_makes_no_wrong_one_pass(rng):
    # Same operation, same other arguments, right after and right before a call that is right.
    case, other = make_case(rng, [20, 3]), make_case(rng, [20, 3], kv_heads=4)
    k, v = (to_device(x, "host") for x in new_tokens(rng, 4))
    right = dict(k=k, v=v, view=case.view, table=case.page_table, query_indptr=None)
    locked = poisoned((4, 2, 64), BFLOAT16)
    locked.flags.writeable = False
    three = make_case(rng, [1, 1, 1]).page_table
    wrong_for_both = [
        (kvit.ShapeError, dict(k=k[:2])),
        (kvit.ShapeError, dict(v=k[:2])),
        (kvit.ShapeError, dict(table=three)),
        (kvit.ShapeError, dict(view=other.view)),
        (kvit.ShapeError, dict(query_indptr=np.zeros(2, np.int32))),
        (kvit.DtypeError, dict(v=np.zeros(v.shape, np.float16))),
        (kvit.DtypeError, dict(query_indptr=np.zeros(3, np.int64))),
        (kvit.DeviceError, dict(k=on_gpu(k.shape))),
        (kvit.LayoutError, dict(v=poisoned((4, 2, 65), BFLOAT16)[..., :64])),
    ]
    append, gather = kvit.Append(case.view), kvit.Gather(case.view)
    for call, cases in (
        (lambda k, v, view, table, query_indptr: append(k, v, view, table, query_indptr=query_indptr), wrong_for_both),
        (
            lambda k, v, view, table, query_indptr: gather(view, table, out=(k, v), query_indptr=query_indptr),
            [*wrong_for_both, (kvit.LayoutError, dict(k=locked)), (kvit.LayoutError, dict(v=locked))],
        ),
    ):
        call(**right)
        before = [*case.pools_on_device(), k.numpy(), v.numpy()]
        for error, wrong in cases:
            with pytest.raises(error):
                call(**right | wrong)
            for old, new in zip(before, [*case.pools_on_device(), k.numpy(), v.numpy()], strict=True):
                assert old.tobytes() == new.tobytes()
            call(**right)


@pytest.mark.parametrize("name", ["k", "v", "k_params", "v_params"])
def test_a_pool_that_is_read_only_is_gathered_from_and_not_appended_to(rng, name):
    pools = {side: np.zeros((4, 2, 16, 64), np.uint8) for side in "kv"}
    pools |= {f"{side}_params": np.zeros((4, 2, 16, 2), BFLOAT16) for side in "kv"}
    pools[name].flags.writeable = False
    view = kvit.CacheView(layout="HND", kv="int8", **pools)
    table = kvit.PageTable(np.array([[1]], np.int32), lengths=np.array([2], np.int32))
    k, v = new_tokens(rng, 2)
    with pytest.raises(kvit.LayoutError, match=f"view.{name} is read-only"):
        kvit.Append(view)(k, v, view, table)
    kvit.Gather(view)(view, table, out=(k, v))
    assert not np.asarray(k, np.float32).any() and not np.asarray(v, np.float32).any()


def test_a_call_keeps_none_of_its_arguments_but_the_stream(rng, device):
    case = make_case(rng, [20, 3], device=device)
    stream = kvit.Stream(device)
    arguments = *(to_device(x, device) for x in new_tokens(rng, 4)), case.view, case.page_table
    append, gather = kvit.Append(case.view), kvit.Gather(case.view)
    before = [sys.getrefcount(argument) for argument in arguments]
    append(*arguments, stream=stream)
    gather(*arguments[2:], out=arguments[:2], stream=stream)
    assert [sys.getrefcount(argument) for argument in arguments] == before
    assert append.faults.last_stream is stream and gather.faults.last_stream is stream
    stream.synchronize()


def test_what_was_not_made_refuses_to_be_called():
    with pytest.raises(TypeError, match="was not called"):
        kvit.Append.__new__(kvit.Append)(None, None, None, None)
