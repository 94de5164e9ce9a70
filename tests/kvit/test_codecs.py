"""kvit/codecs.py: names and near misses, what a row takes, and which pair stands in for one that is not built."""

import pytest

import kvit
from kvit import codecs, dtypes, reference
from kvit.codecs import BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, FLOAT16, INT4, INT8
from kvit.selection import registry


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("int3", "int3 is no way to store K or V; did you mean int8 or int4?; known are float16, bfloat16, int8, "),
        ("e4m3", "did you mean float8_e4m3"),
        ("INT8", "did you mean int8"),
        ("fp8_e5m2", "did you mean float8_e5m2"),
        ("float32", "float32 is no way to store K or V; did you mean float16"),
        ("zfp", "zfp is no way to store K or V; known are"),
        (dtypes.int64, "int64 is no way to store K or V; known are"),
    ],
)
def test_an_unknown_name_is_told_beside_what_was_meant_and_what_there_is(word, words):
    for kv in (word, (word, "int8"), ("int8", word)):
        with pytest.raises(kvit.DtypeError) as raised:
            codecs.pair_of(kv)
        assert words in str(raised.value)


def test_what_the_reference_alone_has_is_refused_in_words():
    alone = set(reference.CODECS) - {codec.name for codec in codecs.CODECS}
    assert alone == {"nvfp4", "mxfp4"}
    for name in alone:
        with pytest.raises(
            kvit.DtypeError, match=f"{name} has no kernels yet, kvit.reference alone encodes it; caches"
        ):
            kvit.PagedCache(4, 16, 2, 64, k=name, v="int8", device="host")


def test_a_pair_is_one_name_or_two():
    assert codecs.pair_of("int4") == (INT4, INT4)
    assert codecs.pair_of(["int8", dtypes.bfloat16]) == (INT8, BFLOAT16)
    with pytest.raises(kvit.DtypeError, match="give one name for K and V, or a pair"):
        codecs.pair_of(("int8", "int4", "int4"))


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16], ids=str)
def test_kernel_keys_and_pairs_are_two_words_for_the_same(dtype):
    for entry in registry.candidates("decode", dtype=dtype.short):
        assert codecs.key_of(*codecs.pair_of_key(entry.axes["kv"], dtype)) == entry.axes["kv"]
    assert codecs.pair_of_key("b16_i8", dtypes.float16) == (FLOAT16, INT8)
    with pytest.raises(kvit.DtypeError, match="'i8_u9' is no pair of codecs"):
        codecs.pair_of_key("i8_u9", dtype)


# K and V of head_dim elements, and 4 bytes of (scale, zero) where there are any.
@pytest.mark.parametrize(
    ("k", "v", "size"),
    [(BFLOAT16, BFLOAT16, 512), (INT8, INT8, 264), (INT8, INT4, 200), (INT4, INT4, 136), (FLOAT8_E4M3, INT4, 196)],
    ids=str,
)
def test_a_token_takes_its_codes_and_its_parameters(k, v, size):
    assert codecs.pair_bytes(k, v, 128) == size


EVEN = [(BFLOAT16, BFLOAT16), (INT8, INT8), (INT4, INT4), (FLOAT8_E4M3, FLOAT8_E4M3)]
BUILT = [*EVEN, (FLOAT8_E5M2, FLOAT8_E5M2), (INT8, INT4), (FLOAT8_E4M3, INT4), (BFLOAT16, INT8)]


@pytest.mark.parametrize(
    ("wanted", "built", "found"),
    [
        ((INT4, INT8), BUILT, (INT8, INT8)),  # V stays as it was asked for, though float8 for both takes 8 bytes less
        ((INT8, FLOAT8_E4M3), BUILT, (FLOAT8_E4M3, FLOAT8_E4M3)),  # one side changes either way: no parameters to store
        ((BFLOAT16, INT4), BUILT, (BFLOAT16, INT8)),
        ((FLOAT8_E5M2, INT4), BUILT, (FLOAT8_E4M3, INT4)),
        ((INT8, INT4), EVEN, (INT8, INT8)),  # as with head_dim 256
        ((INT8, BFLOAT16), BUILT, (BFLOAT16, BFLOAT16)),
        ((BFLOAT16, BFLOAT16), EVEN[1:], None),  # all others lose bits
    ],
    ids=str,
)
def test_the_nearest_pair_loses_no_bits_changes_fewest_sides_and_then_takes_fewest_bytes(wanted, built, found):
    assert codecs.nearest_pair(wanted, built, 128) == found
