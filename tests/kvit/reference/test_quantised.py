"""kvit.reference over quantised caches: every operation is the codec's, row by row, in the right places."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kvit import reference

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
LENGTHS, PAGES = [7, 0, 4], [[5, 0, 2], [], [3, 6]]  # of pages of 3 in no order; 1 and 4 belong to nobody
USED = [5, 0, 2, 3, 6]
HEADS, HEAD_DIM = 2, 64  # 64 is where TurboMind's int4 is misaligned
PAIRS = pytest.mark.parametrize(
    ("k", "v"),
    [
        ("int8", "int8"),
        ("int8", "int4"),
        ("int4", "int4"),
        ("bfloat16", "int8"),
        ("float8_e4m3", "float8_e4m3"),
        ("float8_e5m2", "int4"),
        ("nvfp4", "nvfp4"),
        ("int8", "mxfp4"),
        ("mxfp4", "nvfp4"),
    ],
)
LAYOUTS = pytest.mark.parametrize("layout", ["NHD", "HND"])


def new_cache(k, v, layout="NHD", dtype=BFLOAT16, **scales):
    return reference.Cache.poisoned(7, 3, HEADS, HEAD_DIM, dtype=dtype, k=k, v=v, layout=layout, **scales)


def new_rows(rng, count, dtype=BFLOAT16):
    return rng.standard_normal((2, count, HEADS, HEAD_DIM)).astype(dtype)


def filled(rng, k, v, layout="NHD", dtype=BFLOAT16, **scales):
    """A cache with random tokens, its table, and those tokens' k and v."""
    cache, table = new_cache(k, v, layout, dtype, **scales), reference.Table(PAGES, LENGTHS)
    rows = new_rows(rng, sum(LENGTHS), dtype)
    reference.append(cache, table, *rows, LENGTHS)
    return cache, table, rows


def arrays(cache):
    return [array for array in (cache.k, cache.v, cache.k_params, cache.v_params) if array is not None]


def raw(cache):
    """All bytes that the cache stores, copied."""
    return [array.view(np.uint8).copy() for array in arrays(cache) if array.ndim > 1]


def decoded(codec, x, dtype=np.float64, scale=None):
    codec = reference.codec_of(codec)
    return codec.decode(*codec.encode(x, scale), dtype)


@PAIRS
@LAYOUTS
def test_gather_gives_what_encoding_left_of_each_row(rng, k, v, layout):
    cache, table, rows = filled(rng, k, v, layout)
    for dtype in (np.float64, BFLOAT16):
        *gathered, indptr = reference.gather(cache, table, dtype)
        assert_array_equal(indptr, [0, 7, 7, 11])
        for name, found, x in zip((k, v), gathered, rows, strict=True):
            assert found.dtype == dtype
            assert_array_equal(found, decoded(name, x, dtype))


@PAIRS
@LAYOUTS
def test_append_writes_no_byte_beside_its_rows(rng, k, v, layout):
    cache, table, _ = filled(rng, k, v, layout)
    places = [table.places(cache, sequence) for sequence in range(3)]
    page, row = (np.concatenate(parts) for parts in zip(*places, strict=True))
    for pool in cache.stores():
        for array in [pool.data] if pool.codec.is_scaled or pool.params is None else [pool.data, pool.params]:
            untouched = np.ones(array.shape[:2], bool)
            untouched[page, row] = False
            assert_array_equal(np.ascontiguousarray(array[untouched]).view(np.uint8), 0xFF)


@PAIRS
def test_append_in_two_steps_is_append_in_one(rng, k, v):
    cache, _, rows = filled(rng, k, v)
    stepwise = new_cache(k, v)
    for sequence, tokens in enumerate(reference.token_ranges(LENGTHS)):
        for token in range(LENGTHS[sequence]):
            one = reference.Table([PAGES[sequence]], [token + 1])
            reference.append(stepwise, one, *rows[:, tokens][:, token : token + 1])
    for ours, theirs in zip(raw(stepwise), raw(cache), strict=True):
        assert_array_equal(ours, theirs)


@PAIRS
@LAYOUTS
def test_attention_is_over_the_decoded_rows(rng, k, v, layout):
    cache, table, rows = filled(rng, k, v, layout)
    q = rng.standard_normal((3, 2 * HEADS, HEAD_DIM)).astype(BFLOAT16)
    state = reference.paged_attention(q, cache, table)
    held = [decoded(name, x) for name, x in zip((k, v), rows, strict=True)]
    for sequence, tokens in enumerate(reference.token_ranges(LENGTHS)):
        alone = reference.attention(q[sequence : sequence + 1], *(x[tokens] for x in held))
        assert_array_equal(state.out[sequence], alone.out[0])
        assert_array_equal(state.lse[sequence], alone.lse[0])


@LAYOUTS
@pytest.mark.parametrize("of", ["tensor", "head", "token and head"])
def test_float8_scales_may_be_one_for_all_or_per_head_or_per_row(rng, layout, of):
    per_row = (7, 3, HEADS) if layout == "NHD" else (7, HEADS, 3)
    scale = rng.uniform(0.5, 4, {"tensor": (), "head": (HEADS,), "token and head": per_row}[of]).astype(np.float32)
    cache, table, (k, _) = filled(rng, "float8_e4m3", "int8", layout, k_scale=scale)
    rows = scale.swapaxes(1, 2) if scale.ndim > 1 and layout == "HND" else np.broadcast_to(scale, (7, 3, HEADS))
    places = [table.places(cache, sequence) for sequence in range(3)]
    page, row = (np.concatenate(parts) for parts in zip(*places, strict=True))
    assert_array_equal(reference.gather(cache, table)[0], decoded("float8_e4m3", k, scale=rows[page, row]))
    assert_array_equal(cache.k_params, scale)  # encoding reads them


def test_a_float8_cache_without_scales_has_scales_of_one(rng):
    cache, table, (k, _) = filled(rng, "float8_e5m2", "float8_e4m3")
    ones = replace(cache, k_params=np.float32(1), v_params=np.ones(HEADS, np.float32))
    for ours, theirs in zip(reference.gather(cache, table), reference.gather(ones, table), strict=True):
        assert_array_equal(ours, theirs)


def test_tokens_without_a_place_come_back_as_nan_from_integers_too(rng):
    cache, _, _ = filled(rng, "int8", "int4")
    table = reference.Table([[5, 9]], [4])
    for rows in reference.gather(cache, table, FLOAT16)[:2]:
        assert rows.dtype == FLOAT16
        assert_array_equal(np.isnan(rows).all(axis=(1, 2)), [False, False, False, True])


def test_gathering_no_sequences_gives_no_rows_of_head_dim_channels():
    cache = new_cache("int8", "int4", "HND")
    k, v, indptr = reference.gather(cache, reference.Table([], []), FLOAT16)
    assert k.shape == v.shape == (0, HEADS, HEAD_DIM)
    assert k.dtype == v.dtype == FLOAT16
    assert_array_equal(indptr, [0])
    assert [pool.head_dim for pool in cache.stores()] == [HEAD_DIM] * 2


@PAIRS
@LAYOUTS
def test_copied_pages_bring_their_parameters(rng, k, v, layout):
    scale = rng.uniform(1, 2, (7, 3, HEADS) if layout == "NHD" else (7, HEADS, 3)).astype(np.float32)
    scales = {f"{side}_scale": scale.copy() for side, name in (("k", k), ("v", v)) if name.startswith("float8")}
    cache, table, _ = filled(rng, k, v, layout, **scales)
    before = raw(cache)
    reference.copy_pages(cache, [5, 3], [1, 4])
    for now, old in zip(raw(cache), before, strict=True):
        assert_array_equal(now, old[[0, 5, 2, 3, 3, 5, 6]])
    copied = reference.Table([[1, 0, 2], [], [4, 6]], LENGTHS)
    for ours, theirs in zip(reference.gather(cache, copied), reference.gather(cache, table), strict=True):
        assert_array_equal(ours, theirs)


def test_copying_pages_leaves_scales_that_belong_to_no_page(rng):
    scale = np.array([2, 3], np.float32)
    cache, _, _ = filled(rng, "float8_e4m3", "float8_e4m3", k_scale=scale, v_scale=0.5)
    reference.copy_pages(cache, [1], [0])  # copied as an array of pages, head 1's scale would replace head 0's
    assert_array_equal(cache.k_params, [2, 3])


def live_bits(cache, table):
    """What is stored of the table's tokens, params included, as bytes."""
    places = [table.places(cache, sequence) for sequence in range(len(table.lengths))]
    page, row = (np.concatenate(parts) for parts in zip(*places, strict=True))
    found = []
    for pool in cache.stores():
        for array in (pool.data, pool.params):
            if array is not None:
                found.append(np.ascontiguousarray(array[page, row]).view(np.uint8))
    return found


@LAYOUTS
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_requantising_from_sixteen_bits_is_appending_to_the_narrow_cache(rng, layout, dtype):
    wide, table, rows = filled(rng, str(dtype), str(dtype), layout, dtype)
    for k, v in [("int8", "int4"), ("float8_e4m3", "int8")]:
        narrow, appended = new_cache(k, v, layout, dtype), new_cache(k, v, layout, dtype)
        reference.append(appended, table, *rows, LENGTHS)
        reference.convert_pages(wide, narrow, USED, USED, dtype)
        for ours, theirs in zip(live_bits(narrow, table), live_bits(appended, table), strict=True):
            assert_array_equal(ours, theirs)


def test_requantising_in_steps_encodes_what_the_step_before_decodes(rng):
    int8, table, rows = filled(rng, "int8", "int8")
    int4 = new_cache("int4", "int4")
    reference.convert_pages(int8, int4, USED, USED, BFLOAT16)
    for found, x in zip(reference.gather(int4, table)[:2], rows, strict=True):
        assert_array_equal(found, decoded("int4", decoded("int8", x, BFLOAT16)))


def test_requantising_one_of_k_and_v_leaves_every_bit_of_the_other(rng):
    int8, _, _ = filled(rng, "int8", "int8")
    mixed = new_cache("int8", "int4")
    reference.convert_pages(int8, mixed, USED, USED, BFLOAT16)
    same = [array[[5, 0, 2, 3, 6]].view(np.uint8) for cache in (int8, mixed) for array in (cache.k, cache.k_params)]
    assert_array_equal(same[0], same[2])
    assert_array_equal(same[1], same[3])
    assert_array_equal(mixed.k[[1, 4]], 0xFF)  # pages that were not asked for
    assert_array_equal(mixed.v[[1, 4]], 0xFF)


def test_float8_that_stays_float8_brings_the_scales_of_its_rows(rng):
    scale = rng.uniform(1, 2, (7, 3, HEADS)).astype(np.float32)
    old, table, _ = filled(rng, "float8_e4m3", "float8_e4m3", k_scale=scale, v_scale=0.5)
    new = new_cache("float8_e4m3", "float8_e4m3", k_scale=np.zeros_like(scale), v_scale=0.5)
    reference.convert_pages(old, new, USED, USED, BFLOAT16)
    for ours, theirs in zip(reference.gather(new, table), reference.gather(old, table), strict=True):
        assert_array_equal(ours, theirs)
    other = new_cache("float8_e4m3", "float8_e4m3", k_scale=scale, v_scale=0.25)
    with pytest.raises(AssertionError, match="equal scales"):
        reference.convert_pages(old, other, USED, USED, BFLOAT16)


def test_converted_pages_may_get_other_numbers(rng):
    old, table, _ = filled(rng, "int8", "int4")
    new = new_cache("int8", "int4", layout="HND")
    reference.convert_pages(old, new, USED, [0, 5, 1, 6, 4], BFLOAT16)
    moved = dict(zip(USED, [0, 5, 1, 6, 4], strict=True))
    there = reference.Table([[moved[page] for page in pages] for pages in table.pages], LENGTHS)
    for ours, theirs in zip(live_bits(new, there), live_bits(old, table), strict=True):
        assert_array_equal(ours, theirs)
