"""kvit/cache/operations.py: a cache keeps the operations of kvit.attention that are in use, and no more."""

import numpy as np
import pytest

import kvit
from kvit.cache.operations import MOST_KEPT, MOST_SPARSE
from support.caches import BFLOAT16


@pytest.fixture
def cache():
    return kvit.PagedCache(8, 16, 2, 64, device="host")


def call(cache, **options):
    sequence = cache.sequence()
    sequence.append(*np.ones((2, 5, 2, 64), BFLOAT16))
    q = np.ones((options.pop("tokens", 1), options.pop("query_heads", 4), 64), BFLOAT16)
    out = kvit.attention(q, cache, [sequence], **options)
    sequence.free()
    return np.asarray(out)


def test_any_number_of_scales_leaves_a_bounded_number_of_operations(cache):
    for i in range(3 * MOST_KEPT):
        call(cache, scale=0.1 + i)
    assert len(cache.operations) == MOST_KEPT


@pytest.mark.parametrize("scale", [float("nan"), np.float32("nan"), np.float32(0.25), np.array(0.25), None], ids=repr)
def test_the_same_scale_finds_the_same_operation(cache, scale):
    for _ in range(3):
        call(cache, scale=scale)
    assert len(cache.operations) == 1


def test_the_same_number_in_another_type_is_the_same_scale(cache):
    for scale in (0.25, np.float32(0.25), np.array(0.25), np.float16(0.25)):
        call(cache, scale=scale)
    assert len(cache.operations) == 1


def test_an_operation_in_use_stays_and_one_that_was_not_used_long_goes(cache):
    kept = cache.operations.find(4, 1, True, 0.5)
    first = cache.operations.find(4, 1, True, 1.5)
    for i in range(MOST_KEPT):
        assert cache.operations.find(4, 1, True, 0.5) is kept
        cache.operations.find(4, 1, True, 2.0 + i)
    assert cache.operations.find(4, 1, True, 1.5) is not first


def test_operations_that_differ_in_scale_alone_share_a_workspace(cache):
    find = cache.operations.find
    one, other = find(4, 1, True, 0.5), find(4, 1, True, 0.25)
    assert one is not other and one.workspace.pointer == other.workspace.pointer
    assert find(4, 1, False, 0.5).workspace.pointer != one.workspace.pointer
    assert find(4, 64, True, 0.5).workspace.pointer != one.workspace.pointer


def test_scales_are_honoured_whatever_was_asked_before(cache):
    rng = np.random.default_rng(0)
    sequence = cache.sequence()
    sequence.append(*rng.standard_normal((2, 9, 2, 64)).astype(BFLOAT16))
    q = rng.standard_normal((1, 4, 64)).astype(BFLOAT16)

    def attend(scale):
        return np.asarray(kvit.attention(q, cache, [sequence], scale=scale)).astype(np.float32)

    fresh = [np.asarray(kvit.Attention(cache.view, 4, scale=scale)(q, cache.view, cache.table([sequence])))
             for scale in (0.1, 0.9)]  # fmt: skip
    for _ in range(2):
        for scale, expected in zip((0.1, 0.9), fresh, strict=True):
            np.testing.assert_array_equal(attend(scale), expected.astype(np.float32))


def test_operations_for_queries_that_choose_have_room_for_powers_of_two(cache):
    def find(tokens, **options):
        given = {"entry_tokens": 4, "entries": 3, "per_head": False, "scale": None} | options
        return cache.operations.find_sparse(4, tokens, **given)

    first = find(5)
    assert first.queries == 8 and find(8) is first and find(7) is first
    assert first.faults is cache.operations.find(4, 1, True, None).faults
    for options in ({"scale": 0.5}, {"entries": 4}, {"per_head": True}, {"causal": False}, {"softcap": 2.0}):
        assert find(5) is first and find(5, **options) is not first
    assert find(5) is first
    for tokens in [16 << i for i in range(MOST_SPARSE)]:
        find(tokens)
    assert find(5) is not first  # each has memory for what its queries may choose
