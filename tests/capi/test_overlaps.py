"""Outputs over inputs through the table of calls: refused in Python's words, or the bits of separate memory."""

from ctypes import byref, pointer

import numpy as np
import pytest

import kvit
from support import capi
from support.caches import BFLOAT16, make_case, poisoned

Q, ROWS = (2, 8, 64), (2, 2, 64)  # of two sequences with a new token each


class Scene:
    """Two sequences, and the memory of all arguments: q, out and lse, k and v may lie over each other."""

    def __init__(self, api, rng):
        self.api = api
        self.case = make_case(rng, [20, 3])
        self.view = api.view(self.case.view)
        kinds = {"attention": capi.ATTENTION, "append": capi.APPEND, "gather": capi.GATHER}
        self.ops = {name: api.op(self.view, kind, query_heads=8) for name, kind in kinds.items()}
        self.memory = poisoned((64, 64), BFLOAT16)
        self.memory[:16] = rng.standard_normal((16, 64)).astype(BFLOAT16)
        self.numbers = [np.array(self.case.page_table.pages.numpy()), np.array([20, 3], np.int32)]

    def rows(self, first, shape):
        """The rows of the memory from `first` on."""
        return self.memory[first : first + shape[0] * shape[1]].reshape(shape)

    def call(self, kind, *arguments):
        pages, lengths = (pointer(capi.tensor(numbers)) for numbers in self.numbers)
        table = capi.PageTable(pages, None, lengths)
        tensors = [None if x is None else pointer(capi.tensor(x)) for x in arguments]
        getattr(self.api, kind)(self.ops[kind], self.view, byref(table), *tensors, None, None)

    def refuses(self, words, kind, *arguments):
        before = self.memory.tobytes(), [pool.tobytes() for pool in self.case.pools_on_device()]
        with pytest.raises(capi.Refused, match=words) as error:
            self.call(kind, *arguments)
        assert error.value.status == "LAYOUT"
        assert before == (self.memory.tobytes(), [pool.tobytes() for pool in self.case.pools_on_device()])

    def close(self):
        for op in self.ops.values():
            self.api.op_destroy(op)
        self.api.view_destroy(self.view)


@pytest.fixture
def scene(api, rng):
    scene = Scene(api, rng)
    yield scene
    scene.close()


def test_attention_refuses_outputs_over_inputs(scene):
    q, lse = scene.rows(0, Q), np.zeros((2, 8), np.float32)
    sums = scene.memory.view(np.float32).reshape(-1)
    scene.refuses("out lies over q, and not row for row", "attention", q, scene.rows(8, Q), None)
    scene.refuses("lse is written and lies over q", "attention", q, scene.rows(16, Q), sums[:16].reshape(2, 8))
    scene.refuses("lse is written and lies over out", "attention", q, scene.rows(16, Q), sums[600:616].reshape(2, 8))
    scene.numbers[1] = lse.view(np.int32).reshape(-1)[:2]
    scene.refuses("lse is written and lies over table.lengths", "attention", q, scene.rows(16, Q), lse)


def test_attention_may_replace_its_queries(scene):
    scene.call("attention", scene.rows(0, Q), scene.rows(16, Q), None)
    scene.call("attention", scene.rows(0, Q), scene.rows(0, Q), None)
    np.testing.assert_array_equal(scene.memory[:16].view(np.uint16), scene.memory[16:32].view(np.uint16))


def test_gather_refuses_outputs_over_each_other_and_over_the_cache(scene):
    pool = scene.case.view.k
    inside = kvit.Tensor.from_pointer(pool.pointer, ROWS, "bfloat16", owner=pool)
    scene.refuses("k is written and lies over v", "gather", scene.rows(0, ROWS), scene.rows(2, ROWS))
    scene.refuses("v is written and lies over view.k", "gather", scene.rows(0, ROWS), inside)


def test_append_refuses_rows_in_the_cache(scene):
    pool = scene.case.view.v
    inside = kvit.Tensor.from_pointer(pool.pointer, ROWS, "bfloat16", owner=pool)
    scene.refuses("k lies in view.v", "append", inside, scene.rows(0, ROWS))
