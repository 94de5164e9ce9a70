"""Steps of a PagedCache that are dropped, or closed twice: every sequence keeps its tokens."""

import numpy as np
import pytest

import kvit
from support.caches import new_tokens, to_device


def rows_for(rng, cache, count):
    """K and V of `count` tokens in every layer."""
    return [new_tokens(rng, count, layer.kv_heads, layer.head_dim) for layer in cache.layers]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("is_kept", [False, True])
def test_forks_of_different_lengths_take_a_step_and_keep_their_tokens(rng, device, order, is_kept):
    # All three have the same page of 16 tokens: 7, and 2 and 5 of forks that were truncated. What a step wrote into it
    # before it was dropped must lie behind the tokens of all.
    cache = kvit.PagedCache(12, 16, 2, 64, layers=2, device=device)
    rows, new = rows_for(rng, cache, 7), rows_for(rng, cache, 3)
    first = cache.sequence()
    cache.append([first], *([to_device(x, device) for x in side] for side in zip(*rows, strict=True)))
    seqs = [first, first.fork(), first.fork()]
    lengths = [7, 2, 5]
    for seq, length in zip(seqs, lengths, strict=True):
        seq.truncate(length)
    step = cache.step([seqs[i] for i in order], 1)
    for layer, (k, v) in zip(cache.layers, new, strict=True):
        layer.append(step, to_device(k, device), to_device(v, device))
    if is_kept:
        step.commit()
    else:
        step.close()
    assert cache.num_free_pages == (9 if is_kept else 11)
    for layer, old, added in zip(cache.layers, rows, new, strict=True):
        for place, i in enumerate(order):
            more = slice(place, place + is_kept)
            wanted = [np.concatenate([x[: lengths[i]], y[more]]) for x, y in zip(old, added, strict=True)]
            for found, side in zip(layer.gather([seqs[i]])[:2], wanted, strict=True):
                np.testing.assert_array_equal(found.numpy().view(np.uint16), side.view(np.uint16))


def test_a_step_that_is_closed_twice_leaves_the_tables_of_others_alone(rng, device):
    # The first step's table goes to the second one. Given back again, it would go to gather as well, in between.
    cache = kvit.PagedCache(12, 4, 2, 64, layers=2, device=device)
    first, second = cache.sequence(), cache.sequence()
    rows, new = rows_for(rng, cache, 6), rows_for(rng, cache, 3)

    def append(step, of_layers):
        for layer, (k, v) in zip(cache.layers, of_layers, strict=True):
            layer.append(step, to_device(k, device), to_device(v, device))

    step = cache.step([first], 6)
    append(step, rows)
    step.commit()
    other = cache.step([second], 3)
    step.close()
    cache.layer(0).gather([first])
    append(other, new)
    other.commit()
    for seq, expected in ((first, rows), (second, new)):
        for layer, wanted in zip(cache.layers, expected, strict=True):
            for found, side in zip(layer.gather([seq])[:2], wanted, strict=True):
                np.testing.assert_array_equal(found.numpy().view(np.uint16), side.view(np.uint16))
