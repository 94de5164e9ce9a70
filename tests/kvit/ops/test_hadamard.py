"""Caches that store the Hadamard transform of rows: the reference's bits, and attention as if nothing had happened.

Everything that a row passes through is tried with every codec that may be so: append, with rotary positions that
turn all channels, some and none; gather; shift; conversion; attention by decode's kernels and prefill's.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.appends import rotation_of
from support.built import need_copies
from support.caches import BFLOAT16, FLOAT16, to_device
from support.quantised import Quantised, transformed_score_bound
from support.stored import full_stored, new_stored
from support.tolerances import assert_within

# Both sides; each alone beside another codec of the same kernels; K alone, as where V's is folded into weights.
PAIRS = [
    ("int4_hadamard", "int4_hadamard"),
    ("int8_hadamard", "int8_hadamard"),
    ("int8_hadamard", "int4_hadamard"),
    ("int8_hadamard", "int4"),
    ("int8", "int8_hadamard"),
]
EVEN_PAIRS = PAIRS[:2]

# Blocks of 64, of 128, of half a row, and of 32 in rows that kernels of 64, 128 and 256 channels serve.
DIMS = [64, 128, 256, 32, 96, 160]


def pairs_of(head_dim):
    return PAIRS if head_dim in (64, 128) else EVEN_PAIRS  # K and V apart are built for two widths


CASES = [(pair, dim) for dim in DIMS for pair in pairs_of(dim)]


def same_bytes(case):
    for name, buffer in case.buffers.items():
        found = buffer.numpy().view(np.uint8)
        np.testing.assert_array_equal(found, case.host[name].view(np.uint8), err_msg=name)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize(("pair", "head_dim"), CASES, ids=str)
def test_rows_are_stored_and_gathered_bit_for_bit(rng, device, pair, head_dim, dtype):
    case = Quantised(pair, [37, 0, 5], page_size=5, head_dim=head_dim, dtype=dtype, device=device, rng=rng)
    case.append(rng)
    same_bytes(case)
    out = [to_device(np.zeros((42, 2, head_dim), dtype), device) for _ in range(2)]
    indptr = to_device(np.array([0, 37, 37, 42], np.int32), device)
    kvit.Gather(case.view)(case.view, case.page_table, out=out, query_indptr=indptr)
    for found, want in zip(out, reference.gather(case.cache, case.table, dtype)[:2], strict=True):
        np.testing.assert_array_equal(found.numpy().view(np.uint16), want.view(np.uint16))


# Lanes hold other channels where only a part of them turns, but not where its halves end within vec8s, as those of 20.
TURNING = [(64, 64), (64, 16), (64, 20), (128, 32), (128, 96), (96, 32), (256, 64)]


@pytest.mark.parametrize(("head_dim", "rotary_dim"), TURNING)
@pytest.mark.parametrize("pair", EVEN_PAIRS, ids=str)
def test_keys_are_transformed_after_they_have_turned(rng, device, pair, head_dim, rotary_dim):
    case = Quantised(pair, [30, 7], head_dim=head_dim, device=device, rng=rng)
    k, v = rng.standard_normal((2, 37, 2, head_dim)).astype(BFLOAT16)
    q = rng.standard_normal((37, 4, head_dim)).astype(BFLOAT16)
    rope = kvit.Rope(head_dim, rotary_dim=rotary_dim)
    counts, turned = [30, 7], to_device(np.zeros_like(q), device)
    reference.append(case.cache, case.table, k, v, counts, rotation=rotation_of(rope))
    want = reference.rotate(q, np.concatenate([np.arange(30), np.arange(7)]), rotation_of(rope))
    op = kvit.Append(case.view, rope=rope)
    indptr = to_device(np.array([0, 30, 37], np.int32), device)
    given = (to_device(x, device) for x in (k, v))
    op(*given, case.view, case.page_table, query_indptr=indptr, q=to_device(q, device), q_out=turned)
    same_bytes(case)
    np.testing.assert_array_equal(turned.numpy().view(np.uint16), want.view(np.uint16))  # attention transforms queries


def attend(case, rng, group, counts, **options):
    q = rng.standard_normal((sum(counts), 2 * group, case.view.head_dim)).astype(case.dtype)
    lse = to_device(np.zeros(q.shape[:2], np.float32), case.device)
    op = kvit.Attention(case.view, 2 * group, tokens_per_sequence=max(counts), **options)
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), case.device)
    out = op(to_device(q, case.device), case.view, case.page_table, lse=lse, query_indptr=indptr)
    op.check()
    state = reference.paged_attention(q, case.cache, case.table, counts)
    assert_within(out.numpy(), state.out, case.bound(q, counts))
    assert_within(
        lse.numpy(), state.lse, tolerances.SCORE_QUANTISED + transformed_score_bound(case.cache, case.table, q, counts)
    )
    return op.kernel


# As test_quantised has them; an odd number of query rows of 64 channels leaves half a warp without a row.
@pytest.mark.parametrize("group", [1, 5, 8, 12])
@pytest.mark.parametrize(("pair", "head_dim"), CASES, ids=str)
def test_attention_is_that_of_rows_as_they_came(rng, device, pair, head_dim, group):
    case = Quantised(pair, [100, 1, 0, 300, 129], head_dim=head_dim, device=device, rng=rng)
    case.append(rng)
    attend(case, rng, group, [1] * 5)


@pytest.mark.parametrize("copies", ["cp_async", "registers", "tma", "tma_packed"])
@pytest.mark.parametrize("page_size", [16, 64])
def test_every_way_to_copy_gives_the_same(rng, device, copies, page_size):
    need_copies(copies, device)
    case = Quantised(("int4_hadamard",) * 2, [300, 70, 33], page_size=page_size, device=device, rng=rng)
    case.append(rng)
    kernel = attend(case, rng, 5, [1, 3, 2], kernel={"copies": copies})
    assert kernel.axes["copies"] == copies


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("pair", EVEN_PAIRS, ids=str)
def test_prompts_too(rng, device, pair, head_dim):
    case = Quantised(pair, [150, 40, 0], head_dim=head_dim, device=device, rng=rng)
    case.append(rng)
    kernel = attend(case, rng, 5, [70, 33, 0], kernel={"rows": 128})
    assert kernel.family == "prefill"


def test_split_sequences_give_the_same_bits_in_any_batch(rng, device):
    case = Quantised(("int8_hadamard", "int4_hadamard"), [700, 300], device=device, rng=rng)
    case.append(rng)
    attend(case, rng, 4, [1, 1], split_tokens=512, kernel={"copies": "cp_async"})


def test_what_a_row_hides_reaches_no_output(rng, device):
    case = Quantised(("int8_hadamard",) * 2, [20], device=device, rng=rng)
    k, v = rng.standard_normal((2, 20, 2, 64)).astype(BFLOAT16)
    k[17:], v[17:] = np.nan, np.inf
    reference.append(case.cache, case.table, k, v, [20])
    kvit.Append(case.view)(to_device(k, device), to_device(v, device), case.view, case.page_table)
    q = rng.standard_normal((4, 4, 64)).astype(BFLOAT16)
    out = kvit.Attention(case.view, 4)(to_device(q, device), case.view, case.page_table).numpy().astype(np.float32)
    want = reference.paged_attention(q, case.cache, case.table, [4]).out
    assert np.isfinite(out[0]).all() and np.isnan(out[1:]).all()
    assert_within(out[:1], want[:1], case.bound(q, [4])[:1])


@pytest.mark.parametrize("by", [-3, 5])
@pytest.mark.parametrize("rotary_dim", [64, 32, 24])
def test_shifted_keys_turn_as_they_came(rng, device, by, rotary_dim):
    case = Quantised(("int8_hadamard", "int4"), [30], device=device, rng=rng)
    case.append(rng)
    rope = kvit.Rope(64, rotary_dim=rotary_dim)
    reference.shift(case.cache, case.table, [by], [4], rotation_of(rope), case.dtype)
    op = kvit.Shift(case.view, rope)
    op(case.view, case.page_table, by, first=4)
    op.check()
    same_bytes(case)


CHANGES = [
    (("bfloat16", "bfloat16"), ("int4_hadamard", "int8_hadamard")),
    (("int8_hadamard", "int8"), ("int4_hadamard", "int4_hadamard")),
    (("int4_hadamard", "int8_hadamard"), ("bfloat16", "int4")),
    (("int4_hadamard", "int4_hadamard"), ("int4_hadamard", "bfloat16")),
]


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize(("before", "after"), CHANGES, ids=str)
def test_pages_change_to_and_from_transforms(rng, device, before, after, head_dim):
    old = full_stored(rng, before, BFLOAT16, device, head_dim=head_dim)
    new = new_stored(after, BFLOAT16, device, head_dim=head_dim)
    pages = np.arange(old.cache.num_pages)
    reference.convert_pages(old.cache, new.cache, pages, pages, BFLOAT16)
    op = kvit.ConvertPages(old.view, new.view)
    op(old.view, new.view)
    op.check()
    new.assert_same()


def test_a_change_by_the_transform_alone_is_refused_with_what_would_do(rng):
    old = full_stored(rng, ("int4", "int4"), BFLOAT16, "host")
    new = new_stored(("int4_hadamard", "int4"), BFLOAT16, "host")
    with pytest.raises(
        kvit.KernelMissing, match="convert to bfloat16 in one ConvertPages and to int4_hadamard in anot"
    ):
        kvit.ConvertPages(old.view, new.view)


@pytest.mark.parametrize(
    "make", [lambda view: kvit.Attention(view, 2), kvit.Append, kvit.Gather], ids=["att", "app", "g"]
)
def test_an_operation_of_plain_codes_does_not_take_a_view_of_transforms(rng, make):
    plain = Quantised(("int4", "int4"), [5], rng=rng)
    transformed = Quantised(("int4_hadamard", "int4"), [5], rng=rng)
    op, rows = make(plain.view), np.zeros((5, 2, 64), BFLOAT16)
    with pytest.raises(kvit.DtypeError, match="K in int4_hadamard and V in int4"):
        if isinstance(op, kvit.Attention):
            op(rows, transformed.view, transformed.page_table)
        elif isinstance(op, kvit.Append):
            op(rows, rows, transformed.view, transformed.page_table)
        else:
            op(transformed.view, transformed.page_table, out=(rows, rows.copy()))


def test_a_cache_of_transforms_does_all_that_caches_do(rng, device):
    cache = kvit.PagedCache(20, 5, 2, 64, k="int4_hadamard", v="int4_hadamard", device=device)
    assert cache.view.codecs[0].name == "int4_hadamard" and "int4_hadamard" in repr(cache)
    seq = cache.sequence()
    k, v = rng.standard_normal((2, 23, 2, 64)).astype(BFLOAT16)
    seq.append(to_device(k, device), to_device(v, device))
    twin = seq.fork()
    twin.append(to_device(k[:3], device), to_device(v[:3], device))
    codec = reference.codec_of("int4_hadamard")
    for found, rows in zip(cache.gather([twin])[:2], (k, v), strict=True):
        want = codec.decode(*codec.encode(np.concatenate([rows, rows[:3]])), BFLOAT16)
        np.testing.assert_array_equal(found.numpy().view(np.uint16), want.view(np.uint16))
    cache.requantise(k="bfloat16", v="bfloat16")
    want = codec.decode(*codec.encode(k), BFLOAT16)
    np.testing.assert_array_equal(cache.gather([seq])[0].numpy().view(np.uint16), want.view(np.uint16))
    cache.check()
