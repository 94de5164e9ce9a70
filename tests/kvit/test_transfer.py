"""Moving tokens and pages through tables that may lie: what has no place is reported, not written, and read as NaN."""

import numpy as np
import pytest

import kvit
from kvit import _transfer, reference
from support.caches import BFLOAT16, NO_PAGE, held, make_table, new_cache, new_tokens, to_device


def test_tokens_without_a_place_are_reported_not_written_and_read_as_nan(rng, device):
    cache = new_cache(device, pages=4, page_size=4)
    everything = cache.sequence()
    old_k, old_v = new_tokens(rng, 16)
    everything.append(to_device(old_k, device), to_device(old_v, device))
    plain = reference.Cache(
        old_k.reshape(4, 4, 2, 64).copy(), old_v.reshape(4, 4, 2, 64).copy()
    )  # page i is tokens 4 i ...
    table = reference.Table([[3, NO_PAGE], [1]], [6, 1])
    k, v = new_tokens(rng, 6)
    reference.append(
        plain, table, k, v, [4, 2]
    )  # of the six, one is on page 3, three on none, one before the first token
    queue = kvit.Stream.default(device)
    form = make_table(table.pages, table.lengths, "ragged", device)
    indptr = to_device(np.array([0, 4, 6], np.int32), device)
    _transfer.append(cache.view, form, to_device(k, device), to_device(v, device), indptr, 0, cache._faults, queue)
    with pytest.raises(kvit.PageTableError, match=f"{NO_PAGE}|length 1"):
        cache.check()
    for ours, expected in zip(held(cache, [everything]), (plain.k, plain.v), strict=True):
        np.testing.assert_array_equal(ours, expected.reshape(16, 2, 64))

    out = [to_device(np.zeros((7, 2, 64), BFLOAT16), device) for _ in range(2)]
    indptr = to_device(np.array([0, 6, 7], np.int32), device)
    _transfer.gather(cache.view, form, *out, indptr, cache._faults, queue)
    with pytest.raises(kvit.PageTableError, match=f"page 1 of sequence 0 has id {NO_PAGE}"):
        cache.check()
    for ours, expected in zip(out, reference.gather(plain, table)[:2], strict=True):
        np.testing.assert_array_equal(ours.numpy().astype(np.float32), expected.astype(np.float32))


def test_copying_pages_copies_k_and_v_and_nothing_else(rng, device):
    cache = new_cache(device, pages=5, page_size=3)
    everything = cache.sequence()
    everything.append(*(to_device(x, device) for x in new_tokens(rng, 15)))
    before = held(cache, [everything])
    source, target = (to_device(np.array(pages, np.int32), device) for pages in ([0, 3], [4, 1]))
    _transfer.copy_pages(cache.view, source, target, cache._faults, kvit.Stream.default(device))
    for ours, old in zip(held(cache, [everything]), before, strict=True):
        np.testing.assert_array_equal(ours.reshape(5, 3, 2, 64), old.reshape(5, 3, 2, 64)[[0, 3, 2, 3, 0]])


def test_copying_to_a_page_that_is_not_there_is_reported(rng, device):
    cache = new_cache(device, pages=2)
    source, target = (to_device(np.array([page], np.int32), device) for page in (0, 2))
    _transfer.copy_pages(cache.view, source, target, cache._faults, kvit.Stream.default(device))
    with pytest.raises(kvit.PageTableError, match="2"):
        cache.check()
