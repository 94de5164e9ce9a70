"""kvit.PagedCache and kvit.attention on it: tokens in, tokens out, forks, and refusals that change nothing."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import rotation_of
from support.caches import BFLOAT16, FLOAT16, assert_cache_attention, held, new_cache, new_tokens, to_device


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("page_size", [1, 16, 100])
def test_tokens_come_back_as_they_went_in(rng, device, dtype, layout, head_dim, page_size):
    cache = new_cache(device, 60, page_size, head_dim=head_dim, dtype=dtype.name, layout=layout)
    a, b = cache.sequence(), cache.sequence()
    k, v = new_tokens(rng, 47, head_dim=head_dim, dtype=dtype)
    cache.append([a, b], to_device(k, device), to_device(v, device), new_tokens=[30, 17])
    for ours, given in zip(held(cache, [a, b]), (k, v), strict=True):
        np.testing.assert_array_equal(ours, given)  # nothing is computed: bit for bit
    assert (len(a), len(b)) == (30, 17)


def test_appending_piece_by_piece_is_appending_at_once(rng, device):
    cache = new_cache(device, page_size=5)
    whole, pieces = cache.sequence(), cache.sequence()
    k, v = new_tokens(rng, 23)
    cache.append([whole], to_device(k, device), to_device(v, device))
    for start, end in [(0, 1), (1, 6), (6, 6), (6, 23)]:  # one token, over a page's end, none, several pages
        pieces.append(to_device(k[start:end], device), to_device(v[start:end], device))
    for ours, given in zip(held(cache, [pieces]), held(cache, [whole]), strict=True):
        np.testing.assert_array_equal(ours, given)


def test_rows_of_k_and_v_may_lie_anywhere(rng):
    cache = new_cache()
    a = cache.sequence()
    projection = rng.standard_normal((10, 3, 2, 64)).astype(BFLOAT16)  # q, k and v of a token side by side
    a.append(projection[:, 1], projection[:, 2])
    for ours, given in zip(held(cache, [a]), (projection[:, 1], projection[:, 2]), strict=True):
        np.testing.assert_array_equal(ours, given)


def test_equal_shares_need_no_lengths(rng, device):
    cache = new_cache(device)
    a, b = cache.sequence(), cache.sequence()
    k, v = new_tokens(rng, 8)
    cache.append([a, b], to_device(k, device), to_device(v, device))
    assert len(a) == len(b) == 4


def test_prefill_then_decode_is_the_reference(rng, device):
    cache = new_cache(device, pages=20)
    a, b = cache.sequence(), cache.sequence()
    k, v = new_tokens(rng, 117)
    cache.append([a, b], to_device(k, device), to_device(v, device), new_tokens=[100, 17])
    contents = [(k[:100], v[:100]), (k[100:], v[100:])]
    q = rng.standard_normal((117, 8, 64)).astype(BFLOAT16)
    assert_cache_attention(cache, [a, b], contents, q, [100, 17])
    assert_cache_attention(cache, [a, b], contents, q[:2], [1, 1])
    assert_cache_attention(cache, [b, a], contents[::-1], q[:2], [1, 1], causal=False, scale=0.25)


def test_out_and_lse_are_written_in_place(rng, device):
    cache = new_cache(device)
    a = cache.sequence()
    a.append(*(to_device(x, device) for x in new_tokens(rng, 3)))
    q = to_device(rng.standard_normal((1, 4, 64)).astype(BFLOAT16), device)
    out, lse = kvit.Buffer.empty((1, 4, 64), "bfloat16", device), kvit.Buffer.empty((1, 4), "float32", device)
    assert kvit.attention(q, cache, [a], out=out, lse=lse) is out
    again, lse_again = kvit.attention(q, cache, [a], return_lse=True)
    np.testing.assert_array_equal(out.numpy(), again.numpy())
    np.testing.assert_array_equal(lse.numpy(), lse_again.numpy())


def test_sequences_without_tokens_and_calls_without_sequences_are_fine(rng, device):
    cache = new_cache(device)
    empty = cache.sequence()
    k, v, indptr = cache.gather([empty])
    assert k.shape == v.shape == (0, 2, 64) and indptr.numpy().tolist() == [0, 0]
    q = rng.standard_normal((1, 4, 64)).astype(BFLOAT16)
    out, lse = kvit.attention(to_device(q, device), cache, [empty], return_lse=True)
    assert not out.numpy().any() and np.isneginf(lse.numpy()).all()
    assert kvit.attention(to_device(q[:0], device), cache, []).shape == (0, 4, 64)
    cache.append([], *(to_device(x, device) for x in new_tokens(rng, 0)))


def test_a_fork_shares_pages_until_one_of_the_two_writes(rng, device):
    cache = new_cache(device)
    a = cache.sequence()
    k, v = (to_device(x, device) for x in new_tokens(rng, 20))  # one full page, one part full
    a.append(k, v)
    b = a.fork()
    assert b.pages == a.pages and cache.num_free_pages == 10
    new_a, new_b = new_tokens(rng, 1), new_tokens(rng, 1)
    b.append(*(to_device(x, device) for x in new_b))
    a.append(*(to_device(x, device) for x in new_a))
    assert a.pages[0] == b.pages[0] and a.pages[1] != b.pages[1]
    for seq, new in ((a, new_a), (b, new_b)):
        for ours, shared, own in zip(held(cache, [seq]), (k.numpy(), v.numpy()), new, strict=True):
            np.testing.assert_array_equal(ours, np.concatenate([shared, own]))
    a.free()
    b.free()
    assert cache.num_free_pages == 12


def test_pages_go_back_only_when_nobody_holds_them(rng):
    cache = new_cache()
    a = cache.sequence()
    a.append(*new_tokens(rng, 40))
    b = a.fork()
    a.free()
    assert cache.num_free_pages == 9
    b.truncate(16)
    assert cache.num_free_pages == 11 and b.pages == (0,)
    del b
    assert cache.num_free_pages == 12


def test_a_table_for_one_s_own_attention(rng, device):
    cache = new_cache(device)
    a, b = cache.sequence(), cache.sequence()
    cache.append([a, b], *(to_device(x, device) for x in new_tokens(rng, 40)), new_tokens=[33, 7])
    q = to_device(rng.standard_normal((2, 8, 64)).astype(BFLOAT16), device)
    out = kvit.Attention(cache.view, 8)(q, cache.view, cache.table([a, b]))
    np.testing.assert_array_equal(out.numpy(), kvit.attention(q, cache, [a, b]).numpy())


def test_a_table_follows_its_sequences(rng):
    cache = new_cache()
    a, b = cache.sequence(), cache.sequence()
    for length in (1, 20):
        a.append(*new_tokens(rng, length))
        table = cache.table([b, a])
        assert table.lengths.numpy().tolist() == [0, len(a)]
        assert table.pages.numpy().tolist() == list(a.pages)
        assert table.indptr.numpy().tolist() == [0, 0, len(a.pages)]
    a.truncate(3)
    assert cache.table([a]).lengths.numpy().tolist() == [3]


def test_the_bytes_of_a_cache_are_those_of_its_pages():
    cache = new_cache(pages=3, page_size=5, kv_heads=2, head_dim=64)
    assert cache.nbytes == 2 * 3 * 5 * 2 * 64 * 2


@pytest.mark.parametrize("codec", [None, "int8"])
def test_rows_that_gather_returned_are_stored_again_as_they_are(rng, device, codec):
    # In a cache with a rope, K comes back turned: with rotate=False it keeps its bits, turned again it does not.
    cache = new_cache(device, 12, 16, k=codec, v=codec, rope=kvit.Rope(64))
    a, b, c = (cache.sequence() for _ in range(3))
    k, v = (to_device(rows, device) for rows in new_tokens(rng, 37))
    cache.append([a], k, v)
    stored_k, stored_v, _ = cache.gather([a])
    cache.append([b], stored_k, stored_v, rotate=False)
    cache.append([c], stored_k, stored_v)
    again_k, again_v, _ = cache.gather([b])
    twice_k, _, _ = cache.gather([c])
    if codec is None:
        assert np.array_equal(again_k.numpy().view(np.uint16), stored_k.numpy().view(np.uint16))
        assert np.array_equal(again_v.numpy().view(np.uint16), stored_v.numpy().view(np.uint16))
    bound = 0.0 if codec is None else 0.05
    assert np.abs(again_k.numpy().astype(np.float32) - stored_k.numpy().astype(np.float32)).max() <= bound
    assert np.abs(twice_k.numpy().astype(np.float32) - stored_k.numpy().astype(np.float32)).max() > 0.5


@pytest.mark.parametrize("by_layer", [False, True])
def test_keys_and_queries_turn_to_positions_that_are_given(rng, device, by_layer):
    # Those of tokens that are stored at other places than they have: far ones, backward, and twice the same.
    rope = kvit.Rope(64)
    cache = new_cache(device, 12, 16, rope=rope, layers=2 if by_layer else 1)
    seq, (k, v) = cache.sequence(), new_tokens(rng, 5)
    q = rng.standard_normal((5, 4, 64)).astype(k.dtype)
    positions = np.array([700, 3, 2, 100_000, 3], np.int32)
    given = {"q": to_device(q, device), "positions": to_device(positions, device)}
    if by_layer:
        with cache.step([seq], 5) as step:
            cache.layer(0).append(step, to_device(k, device), to_device(v, device))
            cache.layer(1).append(step, to_device(k, device), to_device(v, device), **given)
    else:
        cache.append([seq], to_device(k, device), to_device(v, device), **given)
    found = (cache.layer(1) if by_layer else cache).gather([seq])[0]
    for got, rows in ((found, k), (given["q"], q)):
        want = reference.rotate(rows, positions, rotation_of(rope))
        assert np.array_equal(got.numpy().view(np.uint16), want.view(np.uint16))
