"""The cache that owns its memory, through the table: append, fork, truncate and attention, against the reference."""

import subprocess
import sys
import threading
from ctypes import byref, c_int64, c_void_p, pointer

import numpy as np
import pytest

import kvit
from kvit import reference
from support import ROOT, capi, tolerances
from support.caches import BFLOAT16, new_cache, new_tokens, poisoned, to_device

PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM, QUERY_HEADS = 12, 4, 2, 64, 8


class Cache:
    """A kvit_cache and its sequences, with what each must hold."""

    def __init__(self, api, device, **fields):
        device_type, device_id = (1, 0) if device == "host" else (2, int(device[5:]))
        given = {"pages": PAGES, "page_size": PAGE_SIZE, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, **fields}
        options = capi.options(capi.CacheOptions, device_type=device_type, device_id=device_id, **given)
        self.api, self.device = api, device
        self.handle = api.make("cache_create", options)
        self.sequences = []

    def sequence(self):
        self.sequences.append(self.api.make("sequence_create", self.handle))
        return self.sequences[-1]

    def fork(self, sequence):
        self.sequences.append(self.api.make("sequence_fork", sequence))
        return self.sequences[-1]

    def info(self):
        return self.api.ask("cache_query", self.handle, capi.CacheInfo)

    def length(self, sequence):
        info = self.api.ask("sequence_query", sequence, capi.SequenceInfo)
        return info.length, info.num_pages

    def append(self, sequences, k, v, counts=None):
        rows = [pointer(capi.tensor(to_device(x, self.device))) for x in (k, v)]
        self.api.cache_append(self.handle, handles(sequences), len(sequences), *rows, numbers(counts), None)

    def attend(self, sequences, q, counts=None, scale=0.0, mask=0):
        out = to_device(poisoned(q.shape, q.dtype), self.device)
        lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), self.device)
        rows = [pointer(capi.tensor(x)) for x in (to_device(q, self.device), out, lse)]
        self.api.cache_attention(
            self.handle, handles(sequences), len(sequences), *rows, numbers(counts), scale, mask, None
        )
        self.api.cache_check(self.handle, None, None)
        return out.numpy(), lse.numpy()

    def close(self):
        for sequence in self.sequences:
            self.api.table.sequence_destroy(sequence)
        self.api.table.cache_destroy(self.handle)


def handles(sequences):
    return (c_void_p * len(sequences))(*[sequence.value for sequence in sequences])


@pytest.fixture
def new(api):
    made = []

    def make(device="host", **fields):
        made.append(Cache(api, device, **fields))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def numbers(counts):
    return None if counts is None else (c_int64 * len(counts))(*counts)


def check(cache, sequences, contents, q, counts=None, **options):
    out, lse = cache.attend(sequences, q, counts, **options)
    counts = counts or [len(q) // len(sequences)] * len(sequences)
    plain = {"causal": options.get("mask", 0) == 0, "scale": options.get("scale") or None}
    for rows, (k, v) in zip(reference.token_ranges(counts), contents, strict=True):
        state = reference.attention(q[rows], k, v, **plain)
        magnitude = reference.attention(q[rows], k, np.abs(v), **plain).out
        tolerances.assert_within(out[rows], state.out, tolerances.attention_bound(magnitude, q.dtype))
        tolerances.assert_within(lse[rows], state.lse, tolerances.LSE)


def queries(rng, count):
    return rng.standard_normal((count, QUERY_HEADS, HEAD_DIM)).astype(BFLOAT16)


@pytest.mark.parametrize("layout", [0, capi.NHD, capi.HND])
def test_sequences_grow_fork_shrink_and_are_attended(new, rng, device, layout):
    cache = new(device, layout=layout)
    a, b = cache.sequence(), cache.sequence()
    k, v = new_tokens(rng, 13)
    cache.append([a, b], k, v, [10, 3])
    check(cache, [a, b], [(k[:10], v[:10]), (k[10:], v[10:])], queries(rng, 4), [3, 1])

    c = cache.fork(a)
    assert cache.length(c) == (10, 3) and cache.info().num_free_pages == PAGES - 4  # 3 shared, 1 of b
    more_k, more_v = new_tokens(rng, 2)
    cache.append([a, c], more_k, more_v)  # each grows by a token of its own: the page that they share is copied
    of_a, of_c = ([np.concatenate([old[:10], extra[i : i + 1]]) for old, extra in ((k, more_k), (v, more_v))]
                  for i in (0, 1))  # fmt: skip
    check(cache, [a, c], [of_a, of_c], queries(rng, 2))

    cache.api.sequence_truncate(a, 5)
    assert cache.length(a) == (5, 2)
    check(cache, [a], [(k[:5], v[:5])], queries(rng, 1), mask=1, scale=0.25)


@pytest.mark.parametrize(
    ("k", "v"),
    [
        ("int8", "int4"),
        ("int4", "int4"),
        ("float8_e4m3", "float8_e4m3"),
        (None, "int8"),
        ("int4_hadamard", "int4_hadamard"),
        ("int8", "int4_hadamard"),
    ],
)
def test_a_quantised_cache_gives_the_bits_of_pythons(new, rng, device, k, v):
    codes = {"int8": 4, "int4": 5, "float8_e4m3": 6, None: 0, "int4_hadamard": 5 | capi.HADAMARD}
    scales = [
        to_device(np.array([0.02, 0.03], np.float32), device) if name == "float8_e4m3" else None for name in (k, v)
    ]
    theirs = [None if scale is None else pointer(capi.tensor(scale)) for scale in scales]
    cache = new(device, k_dtype=codes[k], v_dtype=codes[v], k_scale=theirs[0], v_scale=theirs[1])
    same = new_cache(device, PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM, k=k, v=v, k_scale=scales[0], v_scale=scales[1])
    assert (cache.info().k_dtype, cache.info().v_dtype) == (codes[k] or same.dtype.code, codes[v] or same.dtype.code)
    assert cache.info().bytes == same.nbytes

    rows, q, sequence, like = new_tokens(rng, 10), queries(rng, 2), cache.sequence(), same.sequence()
    cache.append([sequence], *rows)
    like.append(*(to_device(x, device) for x in rows))
    out, lse = cache.attend([sequence], q)
    expected = kvit.attention(to_device(q, device), same, [like], return_lse=True)
    for have, want in zip((out, lse), expected, strict=True):
        assert np.isfinite(have.astype(np.float32)).all()
        np.testing.assert_array_equal(have.view(np.uint8), want.numpy().view(np.uint8))


def test_a_cache_says_what_it_is(new):
    info = new(dtype=2).info()
    assert (info.num_pages, info.num_free_pages, info.page_size) == (PAGES, PAGES, PAGE_SIZE)
    assert info.bytes == 2 * PAGES * PAGE_SIZE * KV_HEADS * HEAD_DIM * 2
    assert (info.dtype, info.k_dtype, info.v_dtype, info.kv_heads, info.head_dim) == (2, 2, 2, KV_HEADS, HEAD_DIM)
    assert (info.device_type, info.device_id) == (1, 0)


def test_bfloat16_is_the_default(new):
    assert new().info().dtype == 3


def test_pages_come_back_when_a_sequence_is_destroyed(new, rng):
    cache = new()
    sequence = cache.sequence()
    cache.append([sequence], *new_tokens(rng, 9))
    assert cache.info().num_free_pages == PAGES - 3
    cache.api.sequence_destroy(sequence)
    assert cache.info().num_free_pages == PAGES


def refused(status, words):
    class Expect:
        def __enter__(self):
            self.raises = pytest.raises(capi.Refused, match=words)
            self.error = self.raises.__enter__()

        def __exit__(self, *problem):
            found = self.raises.__exit__(*problem)
            assert self.error.value.status == status
            return found

    return Expect()


def test_a_full_cache_is_refused_and_nothing_is_taken(new, rng):
    cache = new()
    sequence = cache.sequence()
    with refused("CACHE_FULL", "CacheFull: the cache needs 13 more pages and has 12 free of 12"):
        cache.append([sequence], *new_tokens(rng, 49))
    assert cache.info().num_free_pages == PAGES and cache.length(sequence) == (0, 0)


def test_a_cache_refuses_what_python_refuses(new, rng):
    cache, other = new(), new()
    a, stranger = cache.sequence(), other.sequence()
    k, v = new_tokens(rng, 4)
    with refused("SHAPE", r"seqs\[0\] belongs to another cache"):
        cache.append([stranger], k, v)
    with refused("SHAPE", r"seqs\[1\] is seqs\[0\] again"):
        cache.append([a, a], k, v)
    with refused("SHAPE", "new_tokens are .*; they must be one number of tokens for each"):
        cache.append([a], k, v, [3])
    with refused("DTYPE", "k is float16; it must be bfloat16"):
        cache.append([a], k.astype(np.float16), v)
    with refused("SHAPE", "cannot truncate a sequence of 0 tokens to 1"):
        cache.api.sequence_truncate(a, 1)
    with refused("SHAPE", "there are 7 query heads and 2 KV heads"):
        cache.attend([a], queries(rng, 1)[:, :7])
    with refused("ARGUMENT", "mask is 3"):
        cache.attend([a], queries(rng, 1), mask=3)
    with refused("ARGUMENT", "sequences is NULL and count 2"):
        cache.api.cache_append(cache.handle, None, 2, None, None, None, None)
    with refused("ARGUMENT", "count -1"):
        cache.api.cache_append(cache.handle, handles([a]), -1, None, None, None, None)
    with refused("ARGUMENT", "k is NULL"):
        cache.api.cache_append(cache.handle, handles([a]), 1, None, None, None, None)
    assert cache.length(a) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"pages": 0}, "SHAPE", "pages is 0; it must be 1 to"),
        ({"page_size": 2**40}, "SHAPE", "page_size is 1099511627776"),
        ({"layout": 4}, "ARGUMENT", "layout is 4"),
        ({"dtype": 1}, "DTYPE", "float32"),
        ({"dtype": -4}, "DTYPE", "dtype of kvit_cache_options has dtype -4"),
        ({"head_dim": 100}, "KERNEL_MISSING", "head_dim=100; built head_dims are"),
    ],
)
def test_caches_that_cannot_be_are_refused(new, fields, status, words):
    with refused(status, words):
        new(**fields)


def test_a_device_that_cannot_be_is_refused(api):
    for device_type, device_id in ((0, 0), (1, 1), (2, -1), (5, 0)):
        options = capi.options(capi.CacheOptions, pages=1, page_size=1, kv_heads=1, head_dim=64)
        options.device_type, options.device_id = device_type, device_id
        with refused("DEVICE", f"device_type is {device_type} and device_id {device_id}; give KVIT_DEVICE_HOST"):
            api.make("cache_create", options)


def test_a_stale_sequence_among_others_is_refused_before_anything_is_written(new, rng):
    cache = new()
    a, b = cache.sequence(), cache.sequence()
    cache.api.sequence_destroy(b)
    with refused("HANDLE", "this kvit_sequence was destroyed"):
        cache.append([a, b], *new_tokens(rng, 2))
    assert cache.length(a) == (0, 0)


def test_words_that_are_too_long_are_cut(new, rng):
    cache = new()
    sequences = [cache.sequence() for _ in range(1000)]
    with pytest.raises(capi.Refused) as error:  # names all 1000 numbers
        cache.append(sequences, *new_tokens(rng, 1), [2] * 1000)
    assert error.value.message.startswith("ShapeError: new_tokens are [2, 2, ") and len(error.value.message) == 2047


def test_one_cache_serves_eight_threads(new, rng):
    # Each has sequences of its own; the calls take turns.
    cache = new(pages=64)
    contents = [new_tokens(rng, 6) for _ in range(8)]
    q = queries(rng, 1)
    found, problems = [None] * 8, []

    def work(i):
        try:
            sequence = cache.sequence()
            for token in range(6):
                cache.append([sequence], *(x[token : token + 1] for x in contents[i]))
            found[i] = cache.attend([sequence], q)[0]
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for out, (k, v) in zip(found, contents, strict=True):
        magnitude = reference.attention(q, k, np.abs(v)).out
        bound = tolerances.attention_bound(magnitude, q.dtype)
        tolerances.assert_within(out, reference.attention(q, k, v).out, bound)


def test_a_host_backend_that_is_not_there_has_a_status():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from kvit._native import host; host.configure(library='/nowhere/libkvit_host.so')\n"
        "from support import capi\n"
        "api = capi.Api()\n"
        "cache = api.make('cache_create', capi.options(capi.CacheOptions, pages=1, page_size=1, kv_heads=1,"
        " head_dim=64, device_type=1))\n"
        "import numpy, ml_dtypes\n"
        "row = capi.ctypes.pointer(capi.tensor(numpy.zeros((1, 1, 64), ml_dtypes.bfloat16)))\n"
        "sequence = api.make('sequence_create', cache)\n"
        "try:\n"
        "    api.cache_append(cache, capi.ctypes.byref(sequence), 1, row, row, None, None)\n"
        "except capi.Refused as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("HOST_BACKEND: HostBackendError: the host backend does not load"), done.stderr


def test_nothing_is_needed_for_the_answer_but_a_handle(new):
    cache = new()
    with refused("ARGUMENT", "the kvit_cache_info is NULL"):
        cache.api.cache_query(cache.handle, None)
    with refused("ARGUMENT", "kvit_sequence_info.size is 3"):
        cache.api.sequence_query(cache.sequence(), byref(capi.SequenceInfo(3)))
