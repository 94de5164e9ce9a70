"""kvit.reference.shift: tokens are where they should be, and keys are as if they had been there always."""

import numpy as np
import pytest

from kvit import reference
from kvit.reference.rope import default_frequencies
from support.caches import BFLOAT16

ROTATION = reference.Rotation.of(default_frequencies(10000.0, 64))


def filled(rng, lengths, codec="bfloat16", pages=20):
    cache = reference.Cache.poisoned(pages, 4, 2, 64, dtype=BFLOAT16, k=codec, v=codec)
    slots = np.cumsum([0, *(-(-length // 4) for length in lengths)])
    table = reference.Table([np.arange(a, b) for a, b in zip(slots, slots[1:], strict=False)], lengths)
    k, v = rng.standard_normal((2, sum(lengths), 2, 64)).astype(BFLOAT16)
    reference.append(cache, table, k, v, lengths, rotation=ROTATION)
    return cache, table, k, v


def test_keys_are_near_those_of_tokens_that_were_always_at_their_new_places(rng):
    cache, table, k, v = filled(rng, [10, 7])
    reference.shift(cache, table, [25, -3], [4, 3], ROTATION, BFLOAT16)
    places = np.concatenate([np.arange(4), np.arange(29, 35), np.arange(3), np.arange(4)])
    found, values, _ = reference.gather(cache, table)
    at_once = reference.rotate(k, places, ROTATION).astype(np.float64)
    np.testing.assert_allclose(found.astype(np.float64), at_once, atol=4 * 2.0**-8)  # one rounding more, of rows near 4
    np.testing.assert_array_equal(values, v)


def test_tokens_in_front_of_the_first_keep_their_bits(rng):
    cache, table, *_ = filled(rng, [10])
    before = cache.k.copy().view(np.uint16)
    reference.shift(cache, table, [5], [6], ROTATION, BFLOAT16)
    changed = (cache.k.view(np.uint16) != before).any((2, 3)).ravel()
    assert np.flatnonzero(changed).tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("codec", ["bfloat16", "int8", "int4", "float8_e4m3"])
def test_tokens_that_only_move_keep_their_codes(rng, codec):
    cache, table, *_ = filled(rng, [11], codec)
    before = reference.gather(cache, table, BFLOAT16)
    target = reference.Table([np.array([12, 9, 10])], [8])
    reference.shift(cache, target, [-3], [2], None, BFLOAT16, source=table)
    for found, old in zip(reference.gather(cache, target, BFLOAT16)[:2], before, strict=False):
        np.testing.assert_array_equal(found, np.concatenate([old[:2], old[5:]]))


def test_nothing_else_is_written(rng):
    cache, table, *_ = filled(rng, [11])
    before = cache.k.copy().view(np.uint16)
    reference.shift(cache, reference.Table([np.array([12, 9])], [6]), [-5], [2], ROTATION, BFLOAT16, source=table)
    rows = (cache.k.view(np.uint16) != before).any((2, 3))
    assert np.argwhere(rows).tolist() == [[9, 0], [9, 1], *([12, row] for row in range(4))]
