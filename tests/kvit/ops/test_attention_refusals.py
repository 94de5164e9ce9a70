"""What kvit.Attention refuses, how it says so, and that nothing is written before it does."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, FLOAT16, make_case, on_gpu, poisoned, to_device


class Refusal:
    """A call that is right but for what a test changes. `out` and `lse` are poisoned, and must stay so."""

    def __init__(self, rng):
        self.case = make_case(rng, [20, 3])
        self.op = kvit.Attention(self.case.view, 8)
        self.q = to_device(self.case.queries(rng, 2, 8), "host")
        self.out = to_device(poisoned((2, 8, 64), BFLOAT16), "host")
        self.lse = to_device(poisoned((2, 8), np.dtype(np.float32)), "host")

    def expect(self, error, match, **changes):
        arguments = (
            dict(q=self.q, view=self.case.view, table=self.case.page_table, out=self.out, lse=self.lse) | changes
        )
        with pytest.raises(error, match=match):
            self.op(arguments.pop("q"), arguments.pop("view"), arguments.pop("table"), **arguments)
        assert (self.out.numpy().view(np.uint16) == 0xFFFF).all()
        assert (self.lse.numpy().view(np.uint32) == 0xFFFFFFFF).all()


@pytest.fixture
def call(rng):
    return Refusal(rng)


def test_queries_of_another_dtype_are_refused(call):
    call.expect(kvit.DtypeError, "q is float16; it must be bfloat16", q=np.zeros((2, 8, 64), np.float16))
    call.expect(kvit.DtypeError, "q is float32; it must be bfloat16", q=np.zeros((2, 8, 64), np.float32))


def test_raw_16_bit_integers_pass_as_queries(call):
    bits = call.q.numpy().view(np.uint16)
    expected = call.op(call.q, call.case.view, call.case.page_table).numpy()
    np.testing.assert_array_equal(call.op(bits, call.case.view, call.case.page_table).numpy(), expected)


@pytest.mark.parametrize("shape", [(2, 4, 64), (2, 8, 128), (2, 8), (16, 64)], ids=str)
def test_queries_of_another_shape_are_refused(call, shape):
    call.expect(
        kvit.ShapeError,
        r"q has shape .* must be \[tokens, query_heads = 8, head_dim = 64\]",
        q=poisoned(shape, BFLOAT16),
    )


def test_rows_that_cannot_be_shared_out_evenly_need_an_indptr(call):
    call.expect(
        kvit.ShapeError, "q has 3 rows for 2 sequences; give query_indptr", q=poisoned((3, 8, 64), BFLOAT16), out=None
    )
    call.expect(
        kvit.ShapeError, r"query_indptr has shape \[2\].*sequences \+ 1 = 3", query_indptr=np.zeros(2, np.int32)
    )
    call.expect(kvit.DtypeError, "query_indptr is int64; it must be int32", query_indptr=np.zeros(3, np.int64))


def test_an_output_that_does_not_fit_is_refused(call):
    call.expect(kvit.ShapeError, r"out has shape \[1, 8, 64\]", out=poisoned((1, 8, 64), BFLOAT16))
    call.expect(kvit.DtypeError, "out is float32", out=np.zeros((2, 8, 64), np.float32))
    call.expect(kvit.ShapeError, r"lse has shape \[2, 4\]", lse=np.zeros((2, 4), np.float32))
    call.expect(kvit.DtypeError, "lse is float64", lse=np.zeros((2, 8), np.float64))


def test_read_only_memory_is_not_written(call):
    for name, shape, dtype in (("out", (2, 8, 64), BFLOAT16), ("lse", (2, 8), np.dtype(np.float32))):
        locked = poisoned(shape, dtype)
        locked.flags.writeable = False
        call.expect(kvit.LayoutError, f"{name} is read-only", **{name: locked})


def test_rows_that_are_not_dense_or_not_aligned_are_refused(call):
    wide = poisoned((2, 8, 128), BFLOAT16)
    call.expect(kvit.LayoutError, "q has channels 4 bytes apart", q=wide[..., ::2])
    call.expect(kvit.LayoutError, "multiples of 16 bytes", q=wide[..., 1:65])
    call.expect(kvit.LayoutError, "multiples of 16 bytes", q=poisoned((2, 8, 65), BFLOAT16)[..., :64])


def test_a_mix_of_devices_is_refused(call):
    call.expect(kvit.DeviceError, "q is on cuda:0, the call on host", q=on_gpu((2, 8, 64), "bfloat16"))
    call.expect(kvit.DeviceError, "out is on cuda:0", out=on_gpu((2, 8, 64), "bfloat16"))
    call.expect(kvit.DeviceError, "lse is on cuda:0", lse=on_gpu((2, 8), "float32"))
    call.expect(kvit.DeviceError, "query_indptr is on cuda:0", query_indptr=on_gpu((3,), "int32"))
    table = kvit.PageTable(on_gpu((2, 2), "int32"), lengths=on_gpu((2,), "int32"))
    call.expect(kvit.DeviceError, "table is on cuda:0", table=table)


def test_a_view_of_another_shape_is_refused(rng, call):
    call.expect(kvit.ShapeError, "4 KV heads.* made for 2", view=make_case(rng, [4, 4], kv_heads=4).view)
    call.expect(kvit.DtypeError, "holds float16.* made for bfloat16", view=make_case(rng, [4, 4], dtype=FLOAT16).view)


def test_query_heads_must_be_a_multiple_of_kv_heads(rng):
    view = make_case(rng, [4], kv_heads=3).view
    for heads in (4, 0, -3):
        with pytest.raises(kvit.ShapeError, match=f"{heads} query heads and 3 KV heads"):
            kvit.Attention(view, heads)


def test_a_head_dim_that_was_not_built_says_which_were(rng):
    with pytest.raises(kvit.KernelMissing, match="head_dim=520.*64, 128"):
        kvit.Attention(make_case(rng, [4], head_dim=520).view, 8)


@pytest.mark.parametrize(("head_dim", "wider"), [(20, 24), (84, 88), (250, 256)])  # no multiples of 8
def test_what_a_refused_head_dim_is_told_works(rng, head_dim, wider):
    sizes = {"pages": 8, "page_size": 16, "kv_heads": 2, "dtype": "float16", "device": "host"}
    with pytest.raises(kvit.KernelMissing, match=rf"zeros to {wider} channels, .* give scale={head_dim} \*\* -0.5"):
        kvit.PagedCache(head_dim=head_dim, **sizes)
    cache = kvit.PagedCache(head_dim=wider, **sizes)
    sequence = cache.sequence()
    q, k, v = (rng.standard_normal(shape).astype(FLOAT16) for shape in ((3, 8, head_dim), *[(70, 2, head_dim)] * 2))
    padded = [np.pad(rows, ((0, 0), (0, 0), (0, wider - head_dim))) for rows in (q, k, v)]
    cache.append([sequence], *padded[1:])
    out = kvit.attention(padded[0], cache, [sequence], new_tokens=[3], scale=head_dim**-0.5).numpy()
    np.testing.assert_allclose(out[..., :head_dim], reference.attention(q, k, v).out, atol=2e-3)
    assert (out[..., head_dim:] == 0).all()
    with pytest.raises(kvit.KernelMissing, match="dtype=f32"):
        kvit.Attention(make_case(rng, [4]).view, 8, dtype="float32")
