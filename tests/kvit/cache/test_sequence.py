"""kvit.Sequence as a handle: what it says of itself, and what it allows. Its tokens are looked at in test_cache.py."""

import gc

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16


@pytest.fixture
def cache():
    return kvit.PagedCache(8, 4, 1, 64, device="host")


def grown(cache, tokens):
    sequence = cache.sequence()
    sequence.append(*np.zeros((2, tokens, 1, 64), BFLOAT16))
    return sequence


def test_a_new_sequence_is_empty_and_holds_no_page(cache):
    sequence = cache.sequence()
    assert (len(sequence), sequence.pages, sequence.cache, sequence.is_freed) == (0, (), cache, False)


def test_a_sequence_says_its_length_and_pages(cache):
    sequence = grown(cache, 9)
    assert (len(sequence), len(sequence.pages)) == (9, 3)
    assert repr(sequence) == "<Sequence of 9 tokens in 3 pages>"


@pytest.mark.parametrize(("length", "pages"), [(9, 3), (8, 2), (5, 2), (4, 1), (0, 0)])
def test_truncating_keeps_the_pages_that_are_still_needed(cache, length, pages):
    sequence = grown(cache, 9)
    first = sequence.pages
    sequence.truncate(length)
    assert (len(sequence), sequence.pages) == (length, first[:pages])
    assert cache.num_free_pages == 8 - pages


@pytest.mark.parametrize("length", [-1, 10])
def test_truncating_to_a_length_it_never_had_is_refused(cache, length):
    sequence = grown(cache, 9)
    with pytest.raises(kvit.ShapeError, match=f"cannot truncate a sequence of 9 tokens to {length}; give 0 to 9"):
        sequence.truncate(length)
    assert len(sequence) == 9


def test_a_freed_sequence_says_so_whatever_is_asked_of_it(cache):
    sequence = grown(cache, 9)
    sequence.free()
    sequence.free()
    assert sequence.is_freed and repr(sequence) == "<Sequence freed>" and cache.num_free_pages == 8
    for use in (
        lambda: sequence.pages,
        sequence.fork,
        lambda: sequence.truncate(0),
        lambda: sequence.append(*np.zeros((2, 1, 1, 64), BFLOAT16)),
    ):
        with pytest.raises(kvit.SequenceFreed, match=r"was freed; take a new one from cache.sequence\(\)"):
            use()


def test_a_forgotten_sequence_gives_its_pages_back(cache):
    grown(cache, 9)
    gc.collect()
    assert cache.num_free_pages == 8


def test_a_sequence_keeps_its_cache_alive():
    sequence = grown(kvit.PagedCache(2, 4, 1, 64, device="host"), 3)
    gc.collect()
    k, _, _ = sequence.cache.gather([sequence])
    assert not k.numpy().any()


def test_a_fork_of_a_fork_holds_the_same_pages(cache):
    sequence = grown(cache, 9)
    forks = [sequence.fork(), sequence.fork().fork()]
    sequence.free()
    assert forks[0].pages == forks[1].pages and cache.num_free_pages == 5
