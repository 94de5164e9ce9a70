"""Moving tokens and pages through tables that may lie: what has no place is reported, not written, and read as NaN."""

import numpy as np
import pytest

import kvit
from kvit import reference
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
    form = make_table(table.pages, table.lengths, "ragged", device)
    indptr = to_device(np.array([0, 4, 6], np.int32), device)
    append = kvit.Append(cache.view)
    append(to_device(k, device), to_device(v, device), cache.view, form, query_indptr=indptr)
    with pytest.raises(kvit.PageTableError, match=f"{NO_PAGE}|length 1"):
        append.check()
    for ours, expected in zip(held(cache, [everything]), (plain.k, plain.v), strict=True):
        np.testing.assert_array_equal(ours, expected.reshape(16, 2, 64))

    out = [to_device(np.zeros((7, 2, 64), BFLOAT16), device) for _ in range(2)]
    indptr = to_device(np.array([0, 6, 7], np.int32), device)
    gather = kvit.Gather(cache.view)
    gather(cache.view, form, out=out, query_indptr=indptr)
    with pytest.raises(kvit.PageTableError, match=f"page 1 of sequence 0 has id {NO_PAGE}"):
        gather.check()
    for ours, expected in zip(out, reference.gather(plain, table)[:2], strict=True):
        np.testing.assert_array_equal(ours.numpy().astype(np.float32), expected.astype(np.float32))


def test_copying_pages_copies_k_and_v_and_nothing_else(rng, device):
    cache = new_cache(device, pages=5, page_size=3)
    everything = cache.sequence()
    everything.append(*(to_device(x, device) for x in new_tokens(rng, 15)))
    before = held(cache, [everything])
    source, target = (to_device(np.array(pages, np.int32), device) for pages in ([0, 3], [4, 1]))
    kvit.CopyPages(cache.view)(cache.view, source, target)
    for ours, old in zip(held(cache, [everything]), before, strict=True):
        np.testing.assert_array_equal(ours.reshape(5, 3, 2, 64), old.reshape(5, 3, 2, 64)[[0, 3, 2, 3, 0]])


def test_copying_to_a_page_that_is_not_there_is_reported(rng, device):
    cache = new_cache(device, pages=2)
    source, target = (to_device(np.array([page], np.int32), device) for page in (0, 2))
    copy = kvit.CopyPages(cache.view)
    copy(cache.view, source, target)
    with pytest.raises(kvit.PageTableError, match="entry 0 of the pages is 2, which the cache does not have"):
        copy.check()


def test_gathering_the_last_tokens_reads_what_the_last_append_wrote(rng, device):
    # Three tokens each, of sequences that hold more: no indptr, strided rows (K and V in one packed tensor), odd pages.
    cache = new_cache(device, pages=12, page_size=3)
    seqs = [cache.sequence(), cache.sequence()]
    cache.append(seqs, *(to_device(x, device) for x in new_tokens(rng, 11)), new_tokens=[4, 7])
    both = np.concatenate(new_tokens(rng, 6), axis=1)  # [tokens, K heads then V heads, head_dim]
    packed = kvit.Tensor.wrap(to_device(both, device))
    k, v = (packed_heads(packed, first, device) for first in (0, 2))
    cache.append(seqs, k, v)
    out = [to_device(np.zeros((6, 2, 64), BFLOAT16), device) for _ in range(2)]
    kvit.Gather(cache.view)(cache.view, cache.table(seqs), out=out)
    for ours, expected in zip(out, (both[:, :2], both[:, 2:]), strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected)


def packed_heads(packed, first, device):
    """Heads [first, first + 2) of [tokens, 4, 64], in place."""
    head_bytes = 64 * 2
    return kvit.Tensor.from_pointer(
        packed.pointer + first * head_bytes, (6, 2, 64), "bfloat16", device,
        strides=(4 * head_bytes, head_bytes, 2), owner=packed,
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [5, 7])
def test_rows_that_do_not_split_evenly_need_an_indptr(rng, tokens):
    cache = new_cache("host", pages=4)
    seqs = [cache.sequence() for _ in range(3)]
    with pytest.raises(kvit.ShapeError, match=f"k has {tokens} rows for 3 sequences; give query_indptr"):
        kvit.Append(cache.view)(*new_tokens(rng, tokens), cache.view, cache.table(seqs))
