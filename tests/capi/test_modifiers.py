"""Windows, softcap, sinks, spans and trees in C: the bits of the same calls in Python."""

from ctypes import byref, pointer

import numpy as np
import pytest

from support import capi
from support.caches import make_case, poisoned, to_device
from support.modified import attend, branches

HEADS, COUNTS = 4, [3, 3, 3]
SINKS, SLOPES, TEMPERATURE = [0.5, -1.0, 2.0, 0.0], [0.5, 0.25, 0.1, 0.0], [1.0, 1.5, 0.5]


@pytest.fixture
def case(rng, device):
    return make_case(rng, [200, 5, 33], device=device)


@pytest.fixture
def view(api, case):
    made = api.view(case.view)
    yield made
    api.view_destroy(made)


def held(array, device, dtype=np.float32):
    return to_device(np.asarray(array, dtype), device)


def in_c(api, view, case, q, options, spans=None, tree=None):
    """(status, out, lse) of one call in C."""
    arrays = {name: capi.tensor(x) for name, x in options.items() if not isinstance(x, int | float)}
    numbers = {name: x for name, x in options.items() if name not in arrays}
    op = api.op(
        view, query_heads=HEADS, tokens_per_sequence=3, **numbers, **{name: pointer(x) for name, x in arrays.items()}
    )
    out, lse = (held(poisoned(shape, dtype), case.device, dtype) for shape, dtype in
                ((q.shape, q.dtype), (q.shape[:2], np.dtype(np.float32))))  # fmt: skip
    tensors = [None if x is None else pointer(capi.tensor(x)) for x in
               (held(q, case.device, q.dtype), out, lse, None, spans, tree)]  # fmt: skip
    table = capi.table_of(case.page_table)
    try:
        api.attention_masked(op, view, byref(table), *tensors, None)
        api.op_check(op, None, None)
    finally:
        api.op_destroy(op)
    return out.numpy(), lse.numpy()


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.view(f"u{a.dtype.itemsize}"), b.view(f"u{b.dtype.itemsize}"))


def test_options_of_version_4_mean_what_they_mean_in_python(api, rng, device, case, view):
    q = case.queries(rng, 9, HEADS)
    plain = in_c(api, view, case, q, {})
    for options, same in (
        ({"window_left": 20}, {"window": 20}),
        ({"window_left": 20, "window_right": 2, "mask": 1}, {"window": (20, 2), "causal": False}),
        ({"chunk": 30}, {"chunk": 30}),
        ({"softcap": 1.5}, {"softcap": 1.5}),
        ({"sinks": held(SINKS, device)}, {"sinks": SINKS}),
        ({"alibi": held(SLOPES, device)}, {"alibi": SLOPES}),
        ({"temperature": held(TEMPERATURE, device)}, {"temperature": TEMPERATURE}),
    ):
        found = in_c(api, view, case, q, options)
        assert_same(found, attend(case, q, COUNTS, **same))
        assert not (found[1] == plain[1]).all()


def test_spans_and_trees_belong_to_a_call(api, rng, device, case, view):
    q, tree = case.queries(rng, 9, HEADS), np.concatenate([branches(rng, 3, 1) for _ in COUNTS])
    spans = np.array([[197, 200], [197, 200], [197, 200], *[[0, 0]] * 6], np.int32)
    found = in_c(api, view, case, q, {"takes_spans": 1}, spans=held(spans, device, np.int32))
    assert_same(found, attend(case, q, COUNTS, spans=spans))
    found = in_c(api, view, case, q, {"takes_tree": 1}, tree=held(tree, device, np.int64))
    assert_same(found, attend(case, q, COUNTS, tree=tree))


@pytest.mark.parametrize(
    ("options", "arrays", "message"),
    [
        ({"window_left": -1}, {}, "window is -1"),
        ({"softcap": -2.0}, {}, "softcap is -2"),
        ({"takes_tree": 2}, {}, "takes_tree is 2; give 0 or 1"),
        ({}, {"tree": np.zeros((9, 1), np.int64)}, "make it with tree=True"),
        ({"takes_tree": 1}, {"tree": np.zeros((9, 3), np.int64)}, r"tree has shape \[9, 3\]"),
        ({"takes_spans": 1}, {"spans": np.zeros((8, 2), np.int32)}, r"spans has shape \[8, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(api, rng, device, case, view, options, arrays, message):
    on_device = {name: held(array, device, array.dtype) for name, array in arrays.items()}
    with pytest.raises(capi.Refused, match=message):
        in_c(api, view, case, case.queries(rng, 9, HEADS), options, **on_device)
