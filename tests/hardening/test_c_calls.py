"""Hunts for C calls that crash, say nothing, or write where they should not: any field of any argument may be wrong.

Tensors lie in the middle of large arrays, so that what a wrong shape or stride reaches is memory of the test.
"""

import ctypes
from ctypes import byref, c_void_p, pointer

import numpy as np
import pytest

from support import capi
from support.caches import make_case, new_tokens
from support.capi import say

MARGIN = 1 << 19  # bytes on either side; the furthest that a wrong tensor reaches is 16 rows of 16 KiB
KINDS = ["attention", "attention_masked", "append", "gather"]
MODIFIERS = ("sinks", "alibi", "temperature")  # memory that a masked operation reads at every launch


@pytest.fixture(scope="module")
def api():
    return capi.Api()


class Arena:
    """An array in the middle of more memory, as a kvit_tensor that may be spoilt."""

    def __init__(self, array):
        array = np.ascontiguousarray(array)
        self.memory = np.full(2 * MARGIN + array.nbytes, 0x3C, np.uint8)
        self.begin = MARGIN + -(self.memory.ctypes.data + MARGIN) % 256
        self.seen = self.memory[self.begin : self.begin + array.nbytes].view(array.dtype).reshape(array.shape)
        self.seen[...] = array
        self.before = self.memory.copy()
        self.tensor = capi.tensor(self.seen)
        self.is_null = False

    def spoil(self, rng):
        """Make one field wrong, or only other."""
        tensor, axis = self.tensor, int(rng.integers(0, 8))
        field = rng.choice([*["shape", "strides"] * 2, "ndim", "dtype", "device", "data", "readonly", "null"])
        few = rng.choice([0, 1, 2, 3, 5, 8, 16])
        garbage = rng.choice([-1, -(2**63), 2**31, 2**62, 2**63 - 1, few, few, few])
        if field == "shape":
            tensor.shape[axis % 4] = int(garbage)
        elif field == "strides":
            near = [0, 1, 2, 8, 16, -16, 64, 128, 1024, 4096, 16384]
            tensor.strides[axis % 4] = int(rng.choice([*near, 2**62, -(2**63)]))
        elif field == "ndim":
            tensor.ndim = int(rng.choice([-1, 0, 1, 2, 3, 4, 8, 9, 2**31 - 1]))
        elif field == "dtype":
            tensor.dtype = int(rng.integers(-1, 20))
        elif field == "device":
            tensor.device_type, tensor.device_id = int(rng.choice([0, 1, 2, 7])), int(rng.choice([0, 0, 3, -1]))
        elif field == "data":
            address = tensor.data or 0  # that may have been made wrong before
            tensor.data = int(rng.choice([0, address + 1, address + 2, address + 8, address + 4096]))
        elif field == "readonly":
            tensor.readonly = int(rng.integers(0, 3))
        else:
            self.is_null = True

    def argument(self):
        return None if self.is_null else pointer(self.tensor)

    def is_untouched(self):
        return np.array_equal(self.memory, self.before)

    def reach(self):
        """[memory] which bytes the tensor says are its elements'."""
        mine = np.zeros(self.memory.nbytes, bool)
        tensor = self.tensor
        if self.is_null or not tensor.data or not all(tensor.shape[: max(0, tensor.ndim)]):
            return mine
        at = np.array([tensor.data - self.memory.ctypes.data])
        for count, stride in zip(tensor.shape[: tensor.ndim], tensor.strides[: tensor.ndim], strict=True):
            at = (at[:, None] + np.arange(count) * stride).reshape(-1)
        for byte in range(8):  # at most; an element's neighbours are not told apart
            mine[at + min(byte, self.seen.itemsize - 1)] = True
        return mine


class Scene:
    """Calls of a view and its operations that would work."""

    def __init__(self, api, rng):
        self.api, self.rng = api, rng
        self.case = make_case(rng, [20, 3])
        table = self.case.page_table
        arrays = {
            "q": self.case.queries(rng, 2, 8), "out": self.case.queries(rng, 2, 8), "lse": np.zeros((2, 8), np.float32),
            "k": new_tokens(rng, 2)[0], "v": new_tokens(rng, 2)[1], "pages": table.pages.numpy(),
            "lengths": table.lengths.numpy(), "query_indptr": np.array([0, 1, 2], np.int32),
            "pool k": self.case.cache.k, "pool v": self.case.cache.v, "spans": np.array([[0, 20], [1, 3]], np.int32),
            "tree": np.ones((2, 2), np.int64), **{name: np.ones(8, np.float32) for name in MODIFIERS},
        }  # fmt: skip
        self.arenas = {name: Arena(array) for name, array in arrays.items()}
        view = capi.options(
            capi.ViewOptions, layout=capi.HND, dtype=3,
            k=self.arenas["pool k"].argument(), v=self.arenas["pool v"].argument(),
        )  # fmt: skip
        self.view = api.make("view_create", view)
        self.ops = [api.op(self.view, kind, query_heads=8) for kind in (capi.ATTENTION, capi.APPEND, capi.GATHER)]
        arrays = {name: self.arenas[name].argument() for name in MODIFIERS}
        self.ops.append(api.op(self.view, query_heads=8, takes_spans=1, takes_tree=1, window_left=5, chunk=7, **arrays))

    def close(self):
        for op in self.ops:
            self.api.op_destroy(op)
        self.api.view_destroy(self.view)

    def handle(self, right):
        """The right handle, most of the time."""
        anything = int(self.rng.integers(1 << 62))
        wrong = [0, 1, right.value + 1, right.value ^ (1 << 30), 2**64 - 1, anything, self.view.value]
        return right if self.rng.integers(6) else c_void_p(int(self.rng.choice(np.array(wrong, np.uint64))))

    def call(self, kind):
        """(status, names of what it may write)."""
        index, names, written = {
            "attention": (0, ("q", "out", "lse", "query_indptr"), ("out", "lse")),
            "append": (1, ("k", "v", "query_indptr"), ("pool k", "pool v")),
            "gather": (2, ("k", "v", "query_indptr"), ("k", "v")),
            "attention_masked": (3, ("q", "out", "lse", "query_indptr", "spans", "tree"), ("out", "lse")),
        }[kind]
        for _ in range(int(self.rng.integers(0, 4))):
            self.arenas[str(self.rng.choice([*names, "pages", "lengths"]))].spoil(self.rng)
        pages, lengths = (self.arenas[name].argument() for name in ("pages", "lengths"))
        table = capi.PageTable(pages, None, lengths)
        arguments = [self.arenas[name].argument() for name in names]
        op, view = self.handle(self.ops[index]), self.handle(self.view)
        table = None if self.rng.integers(20) == 0 else byref(table)
        stream = int(self.rng.choice([1, 2**40, 77])) if self.rng.integers(20) == 0 else None
        return getattr(self.api.table, kind)(op, view, table, *arguments, stream), written


@pytest.mark.hunt(share=4, short=60)
def test_calls_with_wrong_tensors_are_refused_in_words_or_right(hunt, api):
    scene = None
    for rng in hunt.rounds():
        scene = Scene(api, rng)
        status, written = scene.call(str(rng.choice(KINDS)))
        words = "" if status == 0 else say(api, status)
        for name, arena in scene.arenas.items():
            if status == 0 and name in written:
                changed = arena.memory != arena.before
                assert not (changed & ~arena.reach()).any(), f"bytes beside {name} were written"
                assert not changed.any() or not arena.tensor.readonly, f"{name} is read-only, and was written"
            else:
                assert arena.is_untouched(), f"{name} was written: {words or 'the call was right'}"
        if status == 0:
            for op in scene.ops:
                scene.api.table.op_check(op, None, None)
        hunt.count("right" if status == 0 else f"refused: {capi.STATUSES[status]}")
        scene.close()


def garbage_options(rng, struct, right):
    """A struct of options with some fields wrong. Pointers are right or NULL: others nobody can check."""
    fields = dict(right)
    for name, kind in struct._fields_:
        if rng.integers(4) or name in ("k", "v", "workspace", "k_params", "v_params", "k_scale", "v_scale"):
            continue
        if kind in (ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64):
            bits = ctypes.sizeof(kind) * 8
            wrong = [0, 1, 2, 3, 7, 63, 64, 128, 2 ** (bits - 1) - 1]
            wrong += [-1, -(2 ** (bits - 1))] if kind is not ctypes.c_uint32 else [2**bits - 1]
            fields[name] = int(rng.choice(np.array(wrong, np.int64)))
        elif kind is ctypes.c_float:
            fields[name] = float(rng.choice([0, -1, np.nan, np.inf, 1e38]))
    if fields.get("pages", 0) * fields.get("page_size", 0) > 1 << 16 or fields.get("kv_heads", 0) > 1 << 10:
        fields["head_dim"] = 77  # refused before memory is asked for
    size = fields.pop("size", None)
    made = capi.options(struct, **fields)
    if size is not None:
        made.size = size if size <= ctypes.sizeof(struct) else 0
    return made


@pytest.mark.hunt(share=2, short=40)
def test_objects_of_wrong_options_are_refused_in_words_or_made(hunt, api):
    for rng in hunt.rounds():
        scene = Scene(api, rng)
        pools = {name: scene.arenas[f"pool {name}"].argument() for name in "kv"}
        create, struct, right, destroy = [
            ("view_create", capi.ViewOptions, {"layout": capi.HND, "dtype": 3, **pools}, "view_destroy"),
            ("op_create", capi.OpOptions, {"view": scene.view, "kind": 0, "query_heads": 8}, "op_destroy"),
            ("cache_create", capi.CacheOptions,
             {"layout": capi.HND, "pages": 4, "page_size": 4, "kv_heads": 1, "head_dim": 64, "dtype": 3,
              "device_type": 1}, "cache_destroy"),
        ][rng.integers(3)]  # fmt: skip
        handle = c_void_p()
        made = garbage_options(rng, struct, right)
        status = getattr(api.table, create)(byref(made), byref(handle))
        if status:
            say(api, status)
            hunt.count(f"refused: {capi.STATUSES[status]}")
        else:
            assert handle.value
            assert getattr(api.table, destroy)(handle) == 0
            hunt.count("made")
        assert all(arena.is_untouched() for arena in scene.arenas.values())
        scene.close()
