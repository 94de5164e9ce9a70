"""Windows, sinks, trees and the like that cannot be: refused in words, before anything is launched."""

import re

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, make_case, on_gpu, poisoned, to_device
from support.quantised import Quantised

HEADS = 4


@pytest.fixture
def case(rng):
    return make_case(rng, [20, 3])


def float32(*shape):
    return to_device(np.zeros(shape, np.float32), "host")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, kvit.ShapeError, "window is 0; it must be 1 to"),
        ({"window": (-3, None)}, kvit.ShapeError, "window is -3"),
        ({"window": 2.5}, kvit.ShapeError, "window is 2.5; it must be a whole number"),
        ({"window": (1, 2, 3)}, kvit.ShapeError, r"window is \(1, 2, 3\); give a number.*or \(left, right\)"),
        ({"window": 2**31}, kvit.ShapeError, "window is 2147483648; it must be 1 to 2147483647"),
        ({"chunk": 0}, kvit.ShapeError, "chunk is 0; it must be 1 to"),
        ({"softcap": 0.0}, kvit.ShapeError, "softcap is 0.0; give what scores are capped at, more than 0"),
        ({"softcap": float("nan")}, kvit.ShapeError, "softcap is nan"),
        ({"softcap": float("inf")}, kvit.ShapeError, "softcap is inf"),
        ({"softcap": "50"}, kvit.ShapeError, "softcap is '50'; it must be one number"),
        ({"sinks": np.zeros(HEADS)}, kvit.DtypeError, "sinks is float64; it must be float32"),
        ({"sinks": np.zeros(3, np.float32)}, kvit.ShapeError, r"sinks has shape \[3\]; it must be \[query_heads = 4\]"),
        ({"alibi": np.zeros((HEADS, 1), np.float32)}, kvit.ShapeError, r"alibi has shape \[4, 1\]"),
        ({"alibi": np.zeros(2 * HEADS, np.float32)[::2]}, kvit.LayoutError, "alibi has entries 8 bytes apart"),
        ({"temperature": np.zeros(0, np.float32)}, kvit.ShapeError, "temperature is empty"),
        ({"sinks": on_gpu((HEADS,), "float32")}, kvit.DeviceError, "sinks is on cuda:0, the call on host"),
    ],
)
def test_arguments_that_cannot_be(case, options, error, message):
    with pytest.raises(error, match=message):
        kvit.Attention(case.view, HEADS, **options)


@pytest.mark.parametrize(
    ("made", "given", "error", "message"),
    [
        ({}, {"spans": np.zeros((2, 2), np.int32)}, kvit.ShapeError, "spans is given to .* make it with spans=True"),
        ({"window": 3}, {"tree": np.zeros((2, 1), np.int64)}, kvit.ShapeError, "make it with tree=True"),
        ({"spans": True}, {"spans": np.zeros((2, 3), np.int32)}, kvit.ShapeError, r"spans has shape \[2, 3\]"),
        ({"spans": True}, {"spans": np.zeros((3, 2), np.int32)}, kvit.ShapeError, r"tokens = 2, begin and end = 2"),
        ({"spans": True}, {"spans": np.zeros((2, 2), np.int64)}, kvit.DtypeError, "spans is int64; it must be int32"),
        ({"spans": True}, {"spans": np.zeros((2, 4), np.int32)[:, :2]}, kvit.LayoutError, "rows 16 bytes apart"),
        ({"spans": True}, {"spans": on_gpu((2, 2), "int32")}, kvit.DeviceError, "spans is on cuda:0"),
        ({"tree": True}, {"tree": np.zeros(2, np.int64)}, kvit.ShapeError, r"tree has shape \[2\].*words = 1 or 2"),
        ({"tree": True}, {"tree": np.zeros((2, 3), np.int64)}, kvit.ShapeError, r"tree has shape \[2, 3\]"),
        ({"tree": True}, {"tree": np.zeros((2, 1), np.int32)}, kvit.DtypeError, "tree is int32; it must be int64"),
        ({"tree": True}, {"tree": np.zeros((2, 2), np.int64)[:, 1:]}, kvit.LayoutError, "tree has rows 16 bytes apart"),
        ({"tree": True}, {"tree": on_gpu((2, 1), "int64")}, kvit.DeviceError, "tree is on cuda:0"),
    ],
)
def test_arrays_of_a_call_that_do_not_fit(rng, case, made, given, error, message):
    op = kvit.Attention(case.view, HEADS, **made)
    out = poisoned((2, HEADS, 64), BFLOAT16)
    with pytest.raises(error, match=message):
        op(case.queries(rng, 2, HEADS), case.view, case.page_table, out=out, **given)
    assert (out.view(np.uint16) == 0xFFFF).all()


def test_outputs_may_not_lie_over_what_is_read(rng, case):
    memory = np.zeros(4096, np.uint8)
    numbers = memory[: HEADS * 4].view(np.float32)
    lse = memory[: 2 * HEADS * 4].view(np.float32).reshape(2, HEADS)
    spans, tree = memory[:16].view(np.int32).reshape(2, 2), memory[:16].view(np.int64).reshape(2, 1)
    q = case.queries(rng, 2, HEADS)
    for name in ("sinks", "alibi", "temperature"):
        op = kvit.Attention(case.view, HEADS, **{name: numbers})
        with pytest.raises(kvit.LayoutError, match=f"lse is written and lies over {name}"):
            op(q, case.view, case.page_table, lse=lse)
    op = kvit.Attention(case.view, HEADS, spans=True, tree=True)
    for name, array in (("spans", spans), ("tree", tree)):
        with pytest.raises(kvit.LayoutError, match=f"lse is written and lies over {name}"):
            op(q, case.view, case.page_table, lse=lse, **{name: array})
    assert not memory.any()


@pytest.mark.parametrize("pair", [("float8_e5m2", "float8_e5m2"), ("int8", "int4")])
def test_a_pair_without_general_kernels_is_named_with_one_that_has_them(rng, pair):
    view = Quantised(pair, [5], rng=rng).view
    with pytest.raises(kvit.KernelMissing) as refused:
        kvit.Attention(view, HEADS, window=3)
    words = str(refused.value)
    assert "variant=general" in words and "skip" in words
    near = re.search(r"The nearest pair that is built is k='(\w+)', v='(\w+)'", words)
    assert near is not None, words
    built = Quantised(near.groups(), [5], rng=rng).view
    assert kvit.Attention(built, HEADS, window=3).kernel.axes["variant"] == "general"
    assert kvit.Attention(view, HEADS).kernel.axes["variant"] == "plain"


def test_explain_says_what_is_done_besides(case):
    text = kvit.Attention(
        case.view, HEADS, window=(7, 2), chunk=5, softcap=50, sinks=float32(HEADS), alibi=float32(HEADS),
        temperature=float32(3), spans=True, tree=True,
    ).explain()  # fmt: skip
    (line,) = [line for line in text.splitlines() if line.startswith("  besides")]
    for words in ("7 keys up", "2 keys from", "chunks of 5", "spans", "trees", "50", "sinks", "ALiBi", "temperature"):
        assert words in line
    assert "besides" not in kvit.Attention(case.view, HEADS).explain()


def test_what_asks_for_nothing_takes_the_plain_kernel_and_any_may_be_asked_for(case):
    asked = {"window": None, "chunk": None, "softcap": None, "sinks": None, "spans": False, "tree": False}
    plain = kvit.Attention(case.view, HEADS, **asked).kernel
    general = kvit.Attention(case.view, HEADS, kernel={"variant": "general"}).kernel
    assert (plain.axes["variant"], general.axes["variant"]) == ("plain", "general")
    assert kvit.Attention(case.view, HEADS, kernel=general.symbol).kernel is general
    with pytest.raises(kvit.KernelMissing, match="is none of those"):
        kvit.Attention(case.view, HEADS, kernel={"variant": "plain"}, window=3)
