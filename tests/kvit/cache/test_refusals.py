"""What kvit.PagedCache refuses, how it says so, and that nothing has changed when it does."""

import os
import subprocess
import sys

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, new_cache, new_tokens, on_gpu, poisoned


def state_of(cache, seqs):
    pools = [pool.numpy().view(np.uint16).copy() for pool in (cache.view.k, cache.view.v)]
    return pools, cache.num_free_pages, [(seq.pages, len(seq)) for seq in seqs]


def assert_refused(cache, seqs, error, match, call):
    before = state_of(cache, seqs)
    with pytest.raises(error, match=match):
        call()
    after = state_of(cache, seqs)
    np.testing.assert_array_equal(after[0], before[0])
    assert after[1:] == before[1:]


@pytest.fixture
def filled(rng):
    cache = new_cache(pages=4)
    a, b = cache.sequence(), cache.sequence()
    cache.append([a, b], *new_tokens(rng, 21), new_tokens=[20, 1])
    return cache, a, b


def test_a_full_cache_takes_nothing_of_the_whole_call(rng, filled):
    cache, a, b = filled
    assert_refused(cache, [a, b], kvit.CacheFull, "needs 3 more pages and has 1 free of 4",
                   lambda: cache.append([a, b], *new_tokens(rng, 60), new_tokens=[30, 30]))  # fmt: skip
    c = a.fork()
    a.append(*new_tokens(rng, 1))  # takes the last page for its copy
    assert_refused(cache, [a, b, c], kvit.CacheFull, "needs 1 more pages and has 0 free",
                   lambda: cache.append([b, c], *new_tokens(rng, 16), new_tokens=[16, 0]))  # fmt: skip


def test_a_launch_that_fails_gives_the_pages_back(rng, filled, monkeypatch):
    cache, a, b = filled
    c = b.fork()  # so that the call copies a page before it fails

    def fail(*_, **__):
        raise kvit.DriverError("cuLaunchKernelEx failed")

    monkeypatch.setattr(cache.groups[0], "append_as_it_is", fail)
    monkeypatch.setattr(cache.groups[0], "append", fail)
    before = cache.num_free_pages, a.pages, b.pages, len(b)
    with pytest.raises(kvit.DriverError):
        cache.append([b], *new_tokens(rng, 1))
    assert (cache.num_free_pages, a.pages, b.pages, len(b)) == before and c.pages == b.pages


def test_a_freed_sequence_cannot_be_used(rng, filled):
    cache, a, b = filled
    a.free()
    q = rng.standard_normal((2, 4, 64)).astype(BFLOAT16)
    for call in (
        lambda: cache.append([b, a], *new_tokens(rng, 2)),
        lambda: cache.gather([a]),
        lambda: cache.table([a]),
        lambda: kvit.attention(q, cache, [b, a]),
    ):
        assert_refused(cache, [b], kvit.SequenceFreed, "was freed", call)


def test_sequences_must_be_this_cache_s_and_grow_once_in_a_call(rng, filled):
    cache, a, b = filled
    other = new_cache().sequence()
    two = new_tokens(rng, 2)
    assert_refused(
        cache, [a, b], kvit.ShapeError, r"seqs\[1\] belongs to another cache", lambda: cache.append([a, other], *two)
    )
    assert_refused(cache, [a, b], kvit.ShapeError, r"seqs\[1\] is seqs\[0\] again", lambda: cache.append([a, a], *two))
    assert_refused(cache, [a, b], kvit.ShapeError, r"seqs\[0\] is a int", lambda: cache.append([3, a], *two))
    q = rng.standard_normal((2, 4, 64)).astype(BFLOAT16)
    assert kvit.attention(q, cache, [a, a]).shape == (2, 4, 64)  # reading one twice is fine


@pytest.mark.parametrize(
    ("error", "match", "k", "v"),
    [
        (kvit.DtypeError, "k is float32; it must be bfloat16", np.zeros((2, 2, 64), np.float32), None),
        (kvit.DtypeError, "v is float16; it must be bfloat16", None, np.zeros((2, 2, 64), np.float16)),
        (kvit.ShapeError, r"k has shape \[2, 3, 64\]", poisoned((2, 3, 64), BFLOAT16), None),
        (kvit.ShapeError, r"k has shape \[2, 2, 32\]", poisoned((2, 2, 32), BFLOAT16), None),
        (kvit.ShapeError, r"v has shape \[3, 2, 64\]; it must be \[tokens = 2", None, poisoned((3, 2, 64), BFLOAT16)),
        (kvit.LayoutError, "channels 4 bytes apart", poisoned((2, 2, 128), BFLOAT16)[..., ::2], None),
        (kvit.LayoutError, "multiples of 16 bytes", None, poisoned((2, 2, 65), BFLOAT16)[..., 1:]),
        (kvit.DeviceError, "v is on cuda:0, the call on host", None, on_gpu((2, 2, 64))),
    ],
)
def test_new_tokens_that_do_not_fit_are_refused(filled, error, match, k, v):
    cache, a, b = filled
    good = poisoned((2, 2, 64), BFLOAT16)
    k, v = (good if given is None else given for given in (k, v))
    assert_refused(cache, [a, b], error, match, lambda: cache.append([a, b], k, v))


@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [3, -1], [1, 2], [0, 0]])
def test_new_tokens_must_be_one_number_for_each_sequence_and_add_up(rng, filled, counts):
    cache, a, b = filled
    assert_refused(cache, [a, b], kvit.ShapeError, "new_tokens are .*2 sequences.*2 tokens of k",
                   lambda: cache.append([a, b], *new_tokens(rng, 2), new_tokens=counts))  # fmt: skip
    q = rng.standard_normal((2, 4, 64)).astype(BFLOAT16)
    with pytest.raises(kvit.ShapeError, match="add up to the 2 tokens of q"):
        kvit.attention(q, cache, [a, b], new_tokens=counts)


def test_uneven_shares_need_new_tokens(rng, filled):
    cache, a, b = filled
    assert_refused(cache, [a, b], kvit.ShapeError, "k has 3 tokens for 2 sequences; give new_tokens",
                   lambda: cache.append([a, b], *new_tokens(rng, 3)))  # fmt: skip
    with pytest.raises(kvit.ShapeError, match="k has 3 tokens for 0 sequences"):
        cache.append([], *new_tokens(rng, 3))


def test_queries_that_do_not_fit_the_cache_are_refused(rng, filled):
    cache, a, b = filled
    for error, match, q in [
        (kvit.ShapeError, "3 query heads and 2 KV heads", poisoned((2, 3, 64), BFLOAT16)),
        (kvit.ShapeError, "head_dim = 64", poisoned((2, 4, 128), BFLOAT16)),
        (kvit.DtypeError, "q is float32; it must be bfloat16", np.zeros((2, 4, 64), np.float32)),
        (kvit.DeviceError, "q is on cuda:0", on_gpu((2, 4, 64))),
    ]:
        with pytest.raises(error, match=match):
            kvit.attention(q, cache, [a, b])


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (kvit.ShapeError, "pages is 0", {"pages": 0}),
        (kvit.ShapeError, "page_size is -1", {"page_size": -1}),
        (kvit.ShapeError, "kv_heads is 0", {"kv_heads": 0}),
        (kvit.DtypeError, "dtype is float32; queries are", {"dtype": "float32"}),
        (kvit.DtypeError, "unknown dtype 'bf17'", {"dtype": "bf17"}),
        (kvit.LayoutError, "layout is 'hnd'", {"layout": "hnd"}),
        (kvit.KernelMissing, "head_dim=100.*64, 128", {"head_dim": 100}),
        (kvit.DeviceError, "device is 'tpu'", {"device": "tpu"}),
    ],
)
def test_a_cache_that_cannot_be_is_refused(error, match, options):
    with pytest.raises(error, match=match):
        new_cache(**options)


def test_without_a_gpu_a_cache_on_one_is_refused():
    program = (
        "import kvit\n"
        "try: kvit.PagedCache(4, 16, 2, 64, device='cuda:0')\n"
        "except kvit.NoGpuError as error: print('refused:', error)"
    )
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], env=hidden, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("refused:"), done.stderr
