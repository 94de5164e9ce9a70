"""Bad input through C: a status and kvit's words, nothing written, and never a crash."""

import ctypes
import threading
from ctypes import byref, pointer

import numpy as np
import pytest

from support import capi
from support.caches import BFLOAT16, FLOAT16, make_case, on_gpu, poisoned

NULL = None


class Scene:
    """A decode of two sequences that would work; each test spoils one thing of it."""

    def __init__(self, api, rng):
        self.api = api
        self.case = make_case(rng, [20, 3])
        self.view = api.view(self.case.view)
        self.ops = [api.op(self.view, kind, query_heads=8) for kind in (capi.ATTENTION, capi.APPEND, capi.GATHER)]
        self.q = self.case.queries(rng, 2, 8)
        self.k, self.v = rng.standard_normal((2, 2, 2, 64)).astype(BFLOAT16)
        self.out, self.lse = poisoned(self.q.shape, BFLOAT16), poisoned((2, 8), np.dtype(np.float32))
        self.query_indptr = np.array([0, 1, 2], np.int32)
        table = self.case.page_table
        self.pages, self.lengths = table.pages.numpy(), table.lengths.numpy()
        self.indices = np.array([0, 1, 2], np.int32)
        self.tensors = {}
        for name in ("q", "k", "v", "out", "lse", "query_indptr", "pages", "lengths"):
            self.give(name, getattr(self, name))
        self.stream = None

    def give(self, name, source):
        """Use this array, Tensor, kvit_tensor or NULL as the argument of that name."""
        if not (source is NULL or isinstance(source, capi.Tensor)):
            source = capi.tensor(source)
        self.tensors[name] = source

    def argument(self, name):
        found = self.tensors.get(name)
        return None if found is None else pointer(found)

    def call(self, kind, op=None, view=None, table=True):
        parts = [self.argument(name) for name in ("pages", "indptr", "lengths")]
        found = capi.PageTable(*parts)
        names = {"attention": ("q", "out", "lse", "query_indptr")}.get(kind, ("k", "v", "query_indptr"))
        position = ("attention", "append", "gather").index(kind)
        getattr(self.api, kind)(
            op or self.ops[position],
            view or self.view,
            byref(found) if table else None,
            *map(self.argument, names),
            self.stream,
        )

    def refuses(self, status, words, kind="attention", **options):
        before = [pool.copy() for pool in self.case.pools_on_device()]
        with pytest.raises(capi.Refused, match=words) as error:
            self.call(kind, **options)
        assert error.value.status == status
        assert np.isnan(self.out.astype(np.float32)).all() and np.isnan(self.lse).all()  # nothing was written
        assert all(map(np.array_equal, before, self.case.pools_on_device()))

    def close(self):
        for op in self.ops:
            self.api.op_destroy(op)
        self.api.view_destroy(self.view)


@pytest.fixture
def scene(api, rng):
    made = Scene(api, rng)
    yield made
    made.close()


def test_the_scene_is_right_before_it_is_spoiled(scene):
    for kind in ("append", "gather", "attention"):
        scene.call(kind)
    assert not np.isnan(scene.out.astype(np.float32)).any() and not np.isnan(scene.lse).any()


@pytest.mark.parametrize("name", ["q", "out", "pages", "lengths"])
def test_null_tensors_are_named(scene, name):
    scene.give(name, NULL)
    scene.refuses("ARGUMENT", f"ArgumentError: {name} is NULL; give a kvit_tensor")


@pytest.mark.parametrize(("kind", "name"), [("append", "k"), ("append", "v"), ("gather", "k"), ("gather", "v")])
def test_null_rows_are_named(scene, kind, name):
    scene.give(name, NULL)
    scene.refuses("ARGUMENT", f"ArgumentError: {name} is NULL", kind)


@pytest.mark.parametrize("kind", ["attention", "append", "gather"])
def test_a_null_table_is_named(scene, kind):
    scene.refuses("ARGUMENT", "table is NULL; give the address of a kvit_page_table", kind, table=False)


@pytest.mark.parametrize(("kind", "made_for"), [("attention", 1), ("append", 2), ("gather", 0)])
def test_an_operation_of_another_kind_says_what_it_is_for(scene, kind, made_for):
    words = f"made for {('attention', 'append', 'gather')[made_for]}, and this is {kind}"
    scene.refuses("ARGUMENT", words, kind, op=scene.ops[made_for])


# (argument, what it becomes, status, words): as the Python operations have them.
SPOILED = {
    "q of another rank": ("q", lambda s: s.q[0], "SHAPE", r"q has shape \[8, 64\]; it must be \[tokens, query_heads"),
    "q of other heads": ("q", lambda s: s.q[:, :6], "SHAPE", r"q has shape \[2, 6, 64\]; it must be"),
    "q of another head_dim": ("q", lambda s: s.q[..., :32], "SHAPE", r"q has shape \[2, 8, 32\]; it must be"),
    "q of another dtype": ("q", lambda s: s.q.astype(FLOAT16), "DTYPE", "q is float16; it must be bfloat16"),
    "q on a GPU": ("q", lambda s: on_gpu((2, 8, 64)), "DEVICE", "q is on cuda:0, the call on host; copy it there"),
    "q off its vectors": ("q", lambda s: misaligned(s.q), "LAYOUT", "q begins at .* must be multiples of 16 bytes"),
    "q with channels apart": ("q", lambda s: apart(s.q), "LAYOUT", "q has channels 4 bytes apart; they must lie side"),
    "out of another shape": ("out", lambda s: s.out[:1], "SHAPE", r"out has shape \[1, 8, 64\]; q of \[2, 8"),
    "out of another dtype": ("out", lambda s: s.out.view(FLOAT16), "DTYPE", "out is float16; it must be bfloat16"),
    "out read-only": ("out", lambda s: frozen(s.out), "LAYOUT", "out is read-only and would be written"),
    "out on a GPU": ("out", lambda s: on_gpu((2, 8, 64)), "DEVICE", "out is on cuda:0"),
    "lse of another shape": ("lse", lambda s: s.lse[:, :2], "SHAPE", r"lse has shape \[2, 2\]; it must be"),
    "lse of another dtype": ("lse", lambda s: s.lse.astype(np.float64), "DTYPE", "lse is float64; it must be float32"),
    "lse read-only": ("lse", lambda s: frozen(s.lse), "LAYOUT", "lse is read-only and would be written"),
    "offsets too short": ("query_indptr", lambda s: s.query_indptr[:2], "SHAPE",
                          r"query_indptr has shape \[2\]; it must be \[sequences"),
    "offsets of int64": ("query_indptr", lambda s: s.query_indptr.astype(np.int64), "DTYPE",
                         "query_indptr is int64; it must be int32"),
    "offsets with gaps": ("query_indptr", lambda s: np.zeros(6, np.int32)[::2], "LAYOUT",
                          "query_indptr has entries 8 bytes apart"),
    "offsets on a GPU": ("query_indptr", lambda s: on_gpu((3,), "int32"), "DEVICE", "query_indptr is on cuda:0"),
    "lengths of another rank": ("lengths", lambda s: s.lengths[None], "SHAPE", r"lengths has shape \[1, 2\]"),
    "lengths of int64": ("lengths", lambda s: s.lengths.astype(np.int64), "DTYPE", "lengths is int64; it must"),
    "lengths on a GPU": ("lengths", lambda s: on_gpu((2,), "int32"), "DEVICE", "on cuda:0"),
    "pages of another rank": ("pages", lambda s: s.pages[0], "SHAPE", r"pages has shape .*; it must be \[seq"),
    "pages of too few rows": ("pages", lambda s: s.pages[:1], "SHAPE", r"pages has shape \[1, 3\]"),
    "pages with gaps": ("pages", lambda s: np.zeros((2, 6), np.int32)[:, ::2], "LAYOUT", "pages has entries 8 bytes"),
    "indptr too short": ("indptr", lambda s: s.indices[:2], "SHAPE", r"indices has shape|indptr has shape \[2\]"),
}  # fmt: skip


def misaligned(array):
    """The same elements two bytes further on."""
    memory = np.zeros(array.nbytes + 32, np.uint8)
    offset = -memory.ctypes.data % 16 + 2
    return memory[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)


def apart(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


def frozen(array):
    view = array.view()
    view.flags.writeable = False
    return view


@pytest.mark.parametrize("case", SPOILED, ids=str)
def test_attention_refuses(scene, case):
    name, spoil, status, words = SPOILED[case]
    scene.give(name, spoil(scene))
    scene.refuses(status, words)


ROWS = {
    "k of another rank": ("k", lambda s: s.k[0], "SHAPE", r"k has shape \[2, 64\]; it must be"),
    "k of other heads": ("k", lambda s: s.k[:, :1], "SHAPE", r"k has shape \[2, 1, 64\]; it must be"),
    "k of another dtype": ("k", lambda s: s.k.astype(FLOAT16), "DTYPE", "k is float16; it must be bfloat16"),
    "v of another number": ("v", lambda s: s.v[:1], "SHAPE", r"v has shape \[1, 2, 64\]; it must be"),
    "v off its vectors": ("v", lambda s: misaligned(s.v), "LAYOUT", "v begins at"),
    "v on a GPU": ("v", lambda s: on_gpu((2, 2, 64)), "DEVICE", "v is on cuda:0"),
}


@pytest.mark.parametrize("kind", ["append", "gather"])
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_append_and_gather_refuse(scene, kind, case):
    name, spoil, status, words = ROWS[case]
    scene.give(name, spoil(scene))
    scene.refuses(status, words, kind)


def test_gather_does_not_write_what_is_read_only(scene):
    scene.give("v", frozen(scene.v))
    scene.refuses("LAYOUT", "v is read-only and would be written", "gather")


# What only C can say: fields out of any range. (field, value, status, words)
@pytest.mark.parametrize(
    ("field", "value", "status", "words"),
    [
        ("data", 0, "LAYOUT", r"q: shape \(2, 8, 64\) at address 0"),
        ("ndim", 9, "LAYOUT", "q has ndim 9; a kvit_tensor has 0 to 8 axes"),
        ("ndim", -1, "LAYOUT", "q has ndim -1"),
        ("dtype", 0, "DTYPE", "q has dtype 0, which is no type"),
        ("dtype", 99, "DTYPE", r"q has dtype 99; the codes are 1 \(float32\), 2 \(float16\), 3 \(bfloat16\)"),
        ("device_type", 7, "DEVICE", "device_type is 7 and device_id 0; give KVIT_DEVICE_HOST"),
        ("device_id", 3, "DEVICE", "device_type is 1 and device_id 3"),
    ],
)
def test_fields_that_mean_nothing_are_named(scene, field, value, status, words):
    setattr(scene.tensors["q"], field, value)
    scene.refuses(status, words)


@pytest.mark.parametrize(("axis", "length"), [(0, -1), (0, -(2**63)), (0, 2**31), (1, 2**62), (2, 2**63 - 1)])
def test_lengths_that_cannot_be_are_refused(scene, axis, length):
    scene.tensors["q"].shape[axis] = length
    scene.refuses("LAYOUT" if length > 2**31 else "SHAPE", "q")


@pytest.mark.parametrize("stride", [2**62, -(2**62), 2**63 - 16, -(2**63)])
@pytest.mark.parametrize("name", ["q", "out", "lse", "pages"])
def test_strides_beyond_any_memory_are_refused(scene, name, stride):
    scene.tensors[name].strides[0] = stride
    scene.refuses("LAYOUT", f"{name} has shape .* and strides .* bytes, which reach further than any memory")


def test_a_view_of_another_shape_is_refused(scene, api, rng):
    other = api.view(make_case(rng, [20, 3], head_dim=128).view)
    for kind in ("attention", "append", "gather"):
        scene.refuses("SHAPE", "the view has 2 KV heads and head_dim 128; the operation was made for", kind, view=other)
    api.view_destroy(other)


def test_a_view_of_another_dtype_is_refused(scene, api, rng):
    other = api.view(make_case(rng, [20, 3], dtype=FLOAT16).view)
    for kind in ("attention", "append", "gather"):
        scene.refuses("DTYPE", "the view holds float16; the operation was made for bfloat16", kind, view=other)
    api.view_destroy(other)


def test_rows_that_do_not_divide_among_sequences_are_refused(scene, rng):
    scene.give("query_indptr", NULL)
    for name in ("q", "out"):
        scene.give(name, np.zeros((3, 8, 64), BFLOAT16))
    scene.give("lse", NULL)
    scene.refuses("SHAPE", "q has 3 rows for 2 sequences; give query_indptr")


def test_a_number_that_is_no_stream_of_the_host_is_refused(scene):
    scene.stream = 0x1234
    for kind in ("attention", "append", "gather"):
        scene.refuses("DEVICE", "stream is 0x1234, which is none of the host's; give NULL", kind)
    with pytest.raises(capi.Refused, match="stream is 0x1234, which is none of the host's"):
        scene.api.op_check(scene.ops[0], 0x1234, None)


def test_a_null_place_for_the_answer_is_refused(api, scene):
    for query, handle, name in (("view_query", scene.view, "view_info"), ("op_query", scene.ops[0], "op_info")):
        with pytest.raises(capi.Refused, match=f"the kvit_{name} is NULL; give the address of one") as error:
            getattr(api, query)(handle, None)
        assert error.value.status == "ARGUMENT"
    with pytest.raises(capi.Refused, match="text is NULL and capacity 5"):
        api.op_explain(scene.ops[0], None, 5, None)
    api.op_explain(scene.ops[0], None, 0, None)


SIZED = [
    ("view_create", capi.ViewOptions, "kvit_view_options"),
    ("op_create", capi.OpOptions, "kvit_op_options"),
    ("cache_create", capi.CacheOptions, "kvit_cache_options"),
]


@pytest.mark.parametrize(("create", "kind", "name"), SIZED)
def test_options_of_an_unknown_size_are_refused(api, create, kind, name):
    known = ctypes.sizeof(kind)
    for size in (0, known - 4, known + 8, 2**32 - 1):
        with pytest.raises(capi.Refused, match=rf"{name}.size is {size}; set it to sizeof\({name}\), which is {known}"):
            api.make(create, kind(size=size))
    with pytest.raises(capi.Refused, match=f"the {name} is NULL"):
        api.make(create, None)


def test_answers_of_an_unknown_size_are_refused_and_not_written(api, scene):
    info = capi.ViewInfo(8, 7)
    with pytest.raises(capi.Refused, match="kvit_view_info.size is 8"):
        api.view_query(scene.view, byref(info))
    assert (info.size, info.dtype, info.num_pages) == (8, 7, 0)


def test_a_null_place_for_the_handle_is_refused(api, scene):
    k = pointer(capi.tensor(scene.case.view.k))
    cache = capi.options(capi.CacheOptions, pages=1, page_size=1, kv_heads=1, head_dim=64, device_type=1)
    held = api.make("cache_create", cache)
    sequence = api.make("sequence_create", held)
    for create, argument, name in (
        ("view_create", capi.options(capi.ViewOptions, k=k, v=k), "view"),
        ("op_create", capi.options(capi.OpOptions, view=scene.view, query_heads=8), "op"),
        ("cache_create", cache, "cache"),
        ("sequence_create", held, "sequence"),
        ("sequence_fork", sequence, "fork"),
    ):
        with pytest.raises(capi.Refused, match=f"{name} is NULL; give the address of a kvit_"):
            getattr(api, create)(argument, None)
    api.sequence_destroy(sequence)
    api.cache_destroy(held)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"query_heads": 7}, "SHAPE", "there are 7 query heads and 2 KV heads; query heads must be a multiple"),
        ({"query_heads": 0}, "SHAPE", "there are 0 query heads"),
        ({"query_heads": -8}, "SHAPE", "there are -8 query heads"),
        ({"query_heads": 8, "kind": 9}, "ARGUMENT", r"kind is 9; give KVIT_OP_ATTENTION \(0\)"),
        ({"query_heads": 8, "mask": 5}, "ARGUMENT", r"mask is 5; give KVIT_MASK_CAUSAL \(0\)"),
        (
            {"query_heads": 8, "split_tokens": -1},
            "SHAPE",
            "split_tokens is -1; the tiles of .*; the nearest that would do",
        ),
        ({"query_heads": 8, "reads_ahead": 2}, "ARGUMENT", "reads_ahead is 2; give 0 or 1"),
        ({"query_heads": 8, "reads_ahead": -1}, "ARGUMENT", "reads_ahead is -1; give 0 or 1"),
        ({"query_heads": 8, "dtype": 99}, "DTYPE", "has dtype 99; the codes are"),
        ({"query_heads": 8, "dtype": 12}, "KERNEL_MISSING", "float64|f64"),
    ],
)
def test_operations_that_cannot_be_are_refused(api, scene, fields, status, words):
    with pytest.raises(capi.Refused, match=words) as error:
        api.op(scene.view, **fields)
    assert error.value.status == status


def test_a_workspace_of_another_size_is_refused(api, scene):
    workspace = pointer(capi.tensor(np.zeros(100, np.uint8)))
    with pytest.raises(capi.Refused, match="workspace has 100 bytes and this operation needs"):
        api.op(scene.view, query_heads=8, workspace=workspace)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"layout": 9}, "ARGUMENT", r"layout is 9; give KVIT_LAYOUT_NHD \(1\) or KVIT_LAYOUT_HND \(2\)"),
        ({"k": NULL}, "ARGUMENT", "k is NULL"),
        ({"v": NULL}, "ARGUMENT", "v is NULL"),
        ({"page_size": -1}, "SHAPE", "page_size is -1; a page holds at least 1 token"),
        ({"page_size": 5}, "SHAPE", "page_size is 5, but in layout NHD the pages of k hold 4"),
        ({"k_dtype": 77}, "DTYPE", "k_dtype of kvit_view_options has dtype 77"),
        ({"k_dtype": 3 | capi.HADAMARD}, "DTYPE", "k_dtype of .* KVIT_HADAMARD with bfloat16; add it to KVIT_DTYPE_U8"),
        ({"v_dtype": capi.HADAMARD}, "DTYPE", "v_dtype of .* KVIT_HADAMARD with no dtype"),
        ({"v": np.zeros((3, 4, 1, 64), BFLOAT16)}, "SHAPE", r"v \(like k\) has shape \[3, 4, 1, 64\]"),
        ({"v": on_gpu((3, 4, 2, 64))}, "DEVICE", "v is on cuda:0, the call on host"),
        ({"v": misaligned(np.zeros((3, 4, 2, 64), BFLOAT16))}, "LAYOUT", "v begins at"),
    ],
)
def test_views_that_cannot_be_are_refused(api, fields, status, words):
    pool = np.zeros((3, 4, 2, 64), BFLOAT16)
    given = {"k": pool, "v": pool, **fields}
    for name in ("k", "v"):
        given[name] = None if given[name] is NULL else pointer(capi.tensor(given[name]))
    with pytest.raises(capi.Refused, match=words) as error:
        api.make("view_create", capi.options(capi.ViewOptions, **given))
    assert error.value.status == status


def test_append_does_not_write_into_a_read_only_view(api, scene):
    k, v = (capi.tensor(x) for x in (scene.case.view.k, scene.case.view.v))
    k.readonly = 1
    layout = {"NHD": capi.NHD, "HND": capi.HND}[scene.case.view.layout]
    view = api.make("view_create", capi.options(capi.ViewOptions, layout=layout, k=pointer(k), v=pointer(v)))
    scene.refuses("LAYOUT", "view.k is read-only and would be written", "append", view=view)
    scene.call("attention", view=view)
    api.view_destroy(view)


def test_merge_refuses_as_python_does(api):
    out, lse = poisoned((2, 4, 64), BFLOAT16), np.zeros((2, 4), np.float32)
    good = [out, lse, out, lse, out.copy(), None]
    for place, bad, status, words in (
        (0, NULL, "ARGUMENT", "out_a is NULL"),
        (4, NULL, "ARGUMENT", "out is NULL"),
        (1, lse[:1], "SHAPE", "lse_a has shape"),
        (2, out.astype(np.float16), "DTYPE", "out_b is float16; it must be bfloat16"),
        (3, on_gpu((2, 4), "float32"), "DEVICE", "lse_b is on cuda:0"),
        (4, frozen(out), "LAYOUT", "out is read-only"),
    ):
        arguments = [*good[:place], bad, *good[place + 1 :]]
        with pytest.raises(capi.Refused, match=words) as error:
            api.merge_states(*(None if x is None else pointer(capi.tensor(x)) for x in arguments), None)
        assert error.value.status == status


def test_errors_belong_to_their_thread(api, scene):
    with pytest.raises(capi.Refused, match="kvit_op is NULL"):
        api.op_query(None, None)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(api.table.last_error()))
    thread.start()
    thread.join()
    assert seen == [b""] and b"kvit_op is NULL" in api.table.last_error()
