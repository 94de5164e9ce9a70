"""Arrays of every library go in and come out in place: the same addresses on both sides, and the same bits."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, FLOAT16, NO_PAGE, poisoned
from support.libraries import LIBRARIES, Numpy, Torch, plain
from support.tolerances import LSE, assert_within, attention_bound

EVERYWHERE = [
    pytest.param((kind, device), id=f"{kind.__name__}-{device}", marks=[pytest.mark.gpu] * (device != "host"))
    for kind in LIBRARIES
    for device in kind.devices
]
PAGE_SIZE, KV_HEADS, QUERY_HEADS, HEAD_DIM = 4, 2, 4, 64
LENGTHS = [9, 3]
PAGES = [[4, 0, 2], [3]]


WRITABLE = [place for place in EVERYWHERE if place.values[0][0].is_writable]
READ_ONLY = [place for place in EVERYWHERE if place not in WRITABLE]
STRIDED = [place for place in EVERYWHERE if place.values[0][0] in (Numpy, Torch)]  # whose arrays can be views of others


@pytest.fixture(params=EVERYWHERE)
def library(request):
    """Each library on each device that it has arrays on; `of` narrows them down."""
    kind, device = request.param
    return kind(device)


def of(places):
    return pytest.mark.parametrize("library", places, indirect=True)


@pytest.fixture(params=[BFLOAT16, FLOAT16], ids=str)
def dtype(request):
    return request.param


class Step:
    """A decode step whose every array is of one library: pools with their tokens, poison around them."""

    def __init__(self, library, rng, dtype):
        self.library, self.dtype = library, dtype
        pools = [poisoned((5, PAGE_SIZE, KV_HEADS, HEAD_DIM), dtype) for _ in range(2)]
        self.cache = reference.Cache(*pools, "NHD")
        self.plain = reference.Table([np.array(row, np.int32) for row in PAGES], LENGTHS)
        self.rows = rng.standard_normal((2, sum(LENGTHS), KV_HEADS, HEAD_DIM)).astype(dtype)
        reference.append(self.cache, self.plain, *self.rows, LENGTHS)
        self.q = rng.standard_normal((2, QUERY_HEADS, HEAD_DIM)).astype(dtype)
        dense = np.array([row + [NO_PAGE] * (4 - len(row)) for row in PAGES], np.int32)
        self.arrays = dict(
            k=library.array(self.cache.k), v=library.array(self.cache.v), q=library.array(self.q),
            pages=library.array(dense), lengths=library.array(np.array(LENGTHS, np.int32)),
        )  # fmt: skip
        self.view = kvit.CacheView(self.arrays["k"], self.arrays["v"], kv=dtype.name)
        self.table = kvit.PageTable(self.arrays["pages"], lengths=self.arrays["lengths"])
        self.op = kvit.Attention(self.view, QUERY_HEADS)

    def assert_right(self, out, lse=None):
        state = reference.paged_attention(self.q, self.cache, self.plain)
        positive = reference.Cache(self.cache.k, np.abs(self.cache.v), "NHD")
        bound = attention_bound(reference.paged_attention(self.q, positive, self.plain).out, self.dtype)
        assert_within(out, state.out, bound)
        if lse is not None:
            assert_within(lse, state.lse, LSE)


def test_a_view_and_a_table_lie_where_the_librarys_arrays_lie(library, rng, dtype):
    step = Step(library, rng, dtype)
    found = dict(k=step.view.k, v=step.view.v, pages=step.table.pages, lengths=step.table.lengths)
    for name, tensor in found.items():
        assert tensor.pointer == library.address(step.arrays[name]), name
        assert tensor.device == library.device
        assert tensor.readonly != library.is_writable


@of(WRITABLE)
def test_a_decode_step_writes_into_the_librarys_arrays(library, rng, dtype):
    step = Step(library, rng, dtype)
    out = library.array(poisoned(step.q.shape, dtype))
    lse = library.array(poisoned(step.q.shape[:2], np.dtype(np.float32)))
    found = step.op(step.arrays["q"], step.view, step.table, out=out, lse=lse)
    assert found is out
    step.op.check()
    step.assert_right(library.numpy(out, dtype), library.numpy(lse, np.dtype(np.float32)))


def test_an_output_of_kvit_is_read_in_place(library, rng):
    dtype = BFLOAT16 if library.knows_bfloat16 else FLOAT16
    step = Step(library, rng, dtype)
    out = step.op(step.arrays["q"], step.view, step.table)
    theirs = library.adopt(out)
    assert library.address(theirs) == out.pointer
    assert tuple(theirs.shape) == out.shape
    step.op.check()
    step.assert_right(library.numpy(theirs, dtype))


def test_rows_of_a_library_go_into_pages_and_come_back_in_place(library, rng, dtype):
    step = Step(library, rng, dtype)
    rows = [library.array(x) for x in step.rows]
    indptr = library.array(np.array([0, 9, 12], np.int32))
    pools = [kvit.Buffer.from_numpy(poisoned(step.cache.k.shape, dtype), library.device) for _ in range(2)]
    view = kvit.CacheView(*pools)
    append = kvit.Append(view)
    append(*rows, view, step.table, query_indptr=indptr)
    append.check()
    for pool, expected in zip(pools, (step.cache.k, step.cache.v), strict=True):
        np.testing.assert_array_equal(pool.numpy().view(np.uint8), expected.view(np.uint8))
    gather, into = kvit.Gather(view), [library.array(poisoned(x.shape, dtype)) for x in step.rows]
    if not library.is_writable:
        with pytest.raises(kvit.LayoutError, match="k is read-only"):
            gather(view, step.table, out=into, query_indptr=indptr)
        return
    gather(view, step.table, out=into, query_indptr=indptr)
    gather.check()
    for array, expected in zip(into, step.rows, strict=True):
        np.testing.assert_array_equal(library.numpy(array, dtype), expected)


@of(READ_ONLY)
def test_what_a_library_lends_for_reading_alone_is_never_written(library, rng, dtype):
    step = Step(library, rng, dtype)
    before = library.numpy(step.arrays["k"], np.uint8)
    with pytest.raises(kvit.LayoutError, match="view.k is read-only and would be written"):
        kvit.Append(step.view)(*(library.array(x) for x in step.rows[:, :2]), step.view, step.table)
    with pytest.raises(kvit.LayoutError, match="out is read-only"):
        step.op(step.arrays["q"], step.view, step.table, out=library.array(step.q))
    np.testing.assert_array_equal(library.numpy(step.arrays["k"], np.uint8), before)


@pytest.mark.parametrize("stored", ["int4", "int8", "float8_e4m3", "float8_e5m2"])
def test_codes_of_a_library_are_read_in_place(library, rng, stored):
    # Written by kvit through one set of pools, read through the library's copies of the same bytes.
    is_integer = stored.startswith("int")
    row = HEAD_DIM // 2 if stored == "int4" else HEAD_DIM
    shape = (5, PAGE_SIZE, KV_HEADS)
    pools = [kvit.Buffer.empty((*shape, row), "uint8" if is_integer else stored, library.device) for _ in range(2)]
    params = [kvit.Buffer.empty((*shape, 2), "bfloat16", library.device) for _ in range(2)] if is_integer else []
    names = ["k_params", "v_params"][: len(params)]
    options = dict(kv=stored, dtype="bfloat16")
    ours = kvit.CacheView(*pools, **options, **dict(zip(names, params, strict=True)))
    step = Step(library, rng, BFLOAT16)
    rows = [kvit.Buffer.from_numpy(x, library.device) for x in step.rows]
    indptr = kvit.Buffer.from_numpy(np.array([0, 9, 12], np.int32), library.device)
    kvit.Append(ours)(*rows, ours, step.table, query_indptr=indptr)
    expected = kvit.Attention(ours, QUERY_HEADS)(step.arrays["q"], ours, step.table).numpy()

    known = (lambda x: x) if library.knows_bfloat16 else plain
    theirs = [library.array(known(pool.numpy())) for pool in pools]
    # (scale, zero) must say what they are, because nothing else does.
    pairs = [
        kvit.Tensor.wrap(array, None if library.knows_bfloat16 else "bfloat16")
        for array in (library.array(known(pair.numpy())) for pair in params)
    ]
    view = kvit.CacheView(*theirs, **options, **dict(zip(names, pairs, strict=True)))
    assert [view.k.pointer, view.v.pointer] == [library.address(array) for array in theirs]
    out = kvit.Attention(view, QUERY_HEADS)(step.arrays["q"], view, step.table)
    assert out.numpy().tobytes() == expected.tobytes()


@of(STRIDED)
def test_strides_of_a_fused_projection_are_honoured(library, rng, dtype):
    # One array of q, k and v side by side, as a model's projection gives it: three views with gaps, none copied.
    step = Step(library, rng, dtype)
    widths = np.cumsum([QUERY_HEADS, KV_HEADS, KV_HEADS])
    fused = np.concatenate([step.q, *step.rows[:, -2:]], axis=1)
    array = library.array(fused)
    q, k, v = (array[:, begin:end] for begin, end in zip([0, *widths[:2]], widths, strict=True))
    assert kvit.Tensor.wrap(k).pointer == library.address(k) == library.address(array) + QUERY_HEADS * HEAD_DIM * 2
    pools = [kvit.Buffer.empty(step.cache.k.shape, dtype.name, library.device) for _ in range(2)]
    view = kvit.CacheView(*pools)
    kvit.Append(view)(k, v, view, step.table)
    for pool, expected in zip(pools, step.rows[:, -2:], strict=True):
        found = pool.numpy()[[PAGES[0][2], PAGES[1][0]], [0, 2]]  # the last tokens of sequences of 9 and of 3
        np.testing.assert_array_equal(found, expected)
    step.assert_right(step.op(q, step.view, step.table).numpy())


@of(STRIDED)
def test_strides_that_a_kernel_cannot_follow_are_refused_not_copied(library, rng, dtype):
    step = Step(library, rng, dtype)
    turned = library.array(np.ascontiguousarray(step.q.transpose(0, 2, 1))).swapaxes(1, 2)
    assert tuple(turned.shape) == step.q.shape
    out = kvit.Buffer.from_numpy(poisoned(step.q.shape, dtype), library.device)
    with pytest.raises(kvit.LayoutError, match="q has channels 8 bytes apart; they must lie side by side"):
        step.op(turned, step.view, step.table, out=out)
    assert (out.numpy().view(np.uint16) == 0xFFFF).all()
