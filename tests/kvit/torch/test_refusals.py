"""What kvit.torch does not do, and in which words it says so."""

import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")

import torch

import kvit
import kvit.torch
from support.torch_caches import ONE_NEW

pytestmark = pytest.mark.interop


def needing_gradients(case):
    return case.put(case.random(4, 6, 64)).requires_grad_(), case.put(case.random(4, 3, 64)).requires_grad_()


def test_gradients_are_refused_by_name_where_autograd_would_record(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    q, k = needing_gradients(case)
    calls = {
        "attention": lambda: kvit.torch.attention(q, case.tensors, case.dense),
        "append": lambda: kvit.torch.append(k, k, case.tensors, case.dense),
    }
    for name, call in calls.items():
        with pytest.raises(kvit.KvitError, match=rf"kvit.torch.{name} has no backward.*torch.no_grad"):
            call()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                call()
    with pytest.raises(kvit.KvitError, match="kvit.torch.gather has no backward"):
        pool = case.tensors.k.detach().clone().requires_grad_()
        kvit.torch.gather(case.tensors._replace(k=pool), case.dense, 4)


def test_the_operators_themselves_refuse_a_backward(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    q, _ = needing_gradients(case)
    places = (case.tensors.k, case.tensors.v, case.dense.lengths, case.dense.pages)
    out = torch.ops.kvit.attention(q, *places, layout=case.tensors.layout)
    with pytest.raises(kvit.KvitError, match="kvit.torch.attention has no backward"):
        out.sum().backward()


def test_vmap_is_refused_by_name(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    rows = case.put(case.random(2, 4, 3, 64))
    calls = {
        "attention": lambda q: kvit.torch.attention(q, case.tensors, case.dense),
        "append": lambda k: kvit.torch.append(k, k, case.tensors, case.dense),
        "gather": lambda k: kvit.torch.gather(case.tensors._replace(k_scale=k.float()), case.dense, 4),
    }
    for name, call in calls.items():
        with pytest.raises(kvit.KvitError, match=f"kvit.torch.{name} has no vmap.*page table"):
            torch.vmap(call)(rows)


def test_a_wrong_page_id_is_told_by_check_and_told_once(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    pages = case.dense.pages.clone()
    pages[3, 1] = 99
    out = kvit.torch.attention(case.put(case.random(4, 6, 64)), case.tensors, case.dense._replace(pages=pages))
    with pytest.raises(kvit.PageTableError, match="page 1 of sequence 3 has id 99"):
        kvit.torch.check()
    kvit.torch.check()
    assert out[3].isnan().all() and not out[:3].isnan().any()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda case: {"q": case.put(case.random(4, 4, 64))}, kvit.ShapeError, "4 query heads and 3 KV heads"),
        (lambda case: {"q": case.put(case.random(4, 6, 32))}, kvit.ShapeError, r"q has shape \[4, 6, 32\]"),
        (lambda case: {"q": case.put(case.random(4, 6, 64)).half()}, kvit.DtypeError, "bfloat16"),
        (lambda case: {"q": case.put(case.random(24, 64))}, kvit.ShapeError, "query heads"),
        (lambda case: {"lengths": case.dense.lengths.long()}, kvit.DtypeError, "lengths is int64"),
        (lambda case: {"cache": case.tensors._replace(layout="HDN")}, kvit.LayoutError, "layout is 'HDN'"),
        (lambda case: {"cache": case.tensors._replace(kv="int7")}, kvit.DtypeError, "int7"),
        (
            lambda case: {"cache": case.tensors._replace(k_scale=torch.ones(()))},
            kvit.DtypeError,
            "k_scale is of float8",
        ),
        (lambda case: {"window": (1, 2, 3)}, kvit.ShapeError, r"window is \(1, 2, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_the_operations(make, change, error, words):
    case = make(lengths=ONE_NEW)
    case.fill()
    given = {"q": case.put(case.random(4, 6, 64)), "cache": case.tensors, "table": case.dense, **change(case)}
    if "lengths" in given:
        given["table"] = case.dense._replace(lengths=given.pop("lengths"))
    with pytest.raises(error, match=words):
        kvit.torch.attention(given.pop("q"), given.pop("cache"), given.pop("table"), **given)


def test_a_rope_that_is_no_words_is_refused(make):
    case = make(lengths=ONE_NEW)
    k = case.put(case.random(4, 3, 64))
    with pytest.raises(TypeError, match="give what rope_words"):
        kvit.torch.append(k, k, case.tensors, case.dense, rope="llama")


def test_clear_gives_back_what_was_made_and_calls_go_on(make):
    case = make(lengths=ONE_NEW)
    case.fill()
    q = case.put(case.random(4, 6, 64))
    before = kvit.torch.attention(q, case.tensors, case.dense)
    kvit.torch.clear()
    assert torch.equal(kvit.torch.attention(q, case.tensors, case.dense), before)


def test_importing_kvit_imports_no_torch():
    code = "import sys, kvit; print('torch' in sys.modules, 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 2
