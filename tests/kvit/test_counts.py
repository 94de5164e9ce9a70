"""Counts are whole numbers: numpy's of any width and sign count as Python's do, and nothing else is one."""

import numpy as np
import pytest

import kvit
from kvit._native import host
from support.caches import BFLOAT16, FLOAT16

WIDTHS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]
NONE = [5.0, 5.5, "4", None, np.float32(4), np.array([4]), b"4", 4j]


@pytest.fixture
def cache():
    return kvit.PagedCache(20, 16, 1, 64, device="host")


def grown(cache, tokens):
    sequence = cache.sequence()
    sequence.append(*np.zeros((2, tokens, 1, 64), BFLOAT16))
    return sequence


def pages():
    return np.zeros((4, 16, 2, 64), FLOAT16)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("length", [0, 1, 100, 120])
def test_a_sequence_is_truncated_to_a_number_of_any_width(cache, width, length):
    sequence = grown(cache, 130)
    sequence.truncate(width(length))
    assert (len(sequence), len(sequence.pages)) == (length, -(-length // 16))
    assert type(len(sequence)) is int and cache.num_free_pages == 20 - -(-length // 16)


def test_unsigned_lengths_do_not_wrap(cache):
    sequence = grown(cache, 300)
    sequence.truncate(np.uint8(250))
    assert (len(sequence), len(sequence.pages)) == (250, 16)


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_that_counts_takes_any_width(width):
    n = width
    cache = kvit.PagedCache(n(8), n(16), n(2), n(64), dtype="float16", device="host")
    sequences = [cache.sequence(), cache.sequence()]
    k, v = np.ones((2, 24, 2, 64), FLOAT16)
    cache.append(sequences, k, v, [n(20), n(4)])
    assert ([len(s) for s in sequences], [len(s.pages) for s in sequences]) == ([20, 4], [2, 1])
    kvit.attention(np.zeros((3, 4, 64), FLOAT16), cache, sequences, [n(2), n(1)])
    cache.check()
    assert cache.view.page_size == 16 and type(cache.view.page_size) is int
    view = kvit.CacheView(np.zeros((64, 2, 64), FLOAT16), np.zeros((64, 2, 64), FLOAT16), page_size=n(16))
    assert (view.num_pages, view.page_size) == (4, 16)
    memory = np.zeros((4, 1 << 14), np.uint8)
    blocks = kvit.TurboMindBlocks(memory, page_size=n(16), kv_heads=n(2), head_dim=n(64), kv="int8", layer=n(1))
    plain = kvit.TurboMindBlocks(memory, page_size=16, kv_heads=2, head_dim=64, kv="int8", layer=1)
    assert (blocks.packed.pools, blocks.offset) == (plain.packed.pools, plain.offset)
    split = np.uint8(128) if n is np.int8 else n(128)
    op = kvit.Attention(cache.view, n(4), tokens_per_sequence=n(3), split_tokens=split)
    assert (op.query_heads, op.split_tokens) == (4, 128) and type(op.query_heads) is int
    assert op.explain([n(100)]) == op.explain([100]) == op.explain(batch=n(1), context=n(100))
    assert kvit.Rope(n(64), rotary_dim=n(32)).steps == kvit.Rope(64, rotary_dim=32).steps


@pytest.mark.parametrize("count", NONE, ids=repr)
def test_what_is_no_whole_number_is_no_count(cache, count):
    view = kvit.CacheView(pages(), pages())
    sequence = grown(cache, 8)
    rows = np.zeros((2, 4, 1, 64), BFLOAT16)
    calls = [
        lambda: kvit.PagedCache(count, 16, 1, 64, device="host"),
        lambda: kvit.PagedCache(8, count, 1, 64, device="host"),
        lambda: kvit.PagedCache(8, 16, count, 64, device="host"),
        lambda: kvit.PagedCache(8, 16, 1, count, device="host"),
        lambda: sequence.truncate(count),
        lambda: cache.append([sequence], *rows, [count]),
        lambda: kvit.attention(np.zeros((4, 1, 64), BFLOAT16), cache, [sequence], [count]),
        lambda: kvit.TurboMindBlocks(np.zeros((4, 1 << 14), np.uint8), page_size=count, kv_heads=2, head_dim=64),
        lambda: kvit.Attention(view, count),
        lambda: kvit.Attention(view, 2, tokens_per_sequence=count),
        lambda: kvit.Attention(view, 2).explain([count]),
        lambda: kvit.Rope(count),
    ]
    for call in calls:
        with pytest.raises(kvit.ShapeError, match="it must be a whole number"):
            call()
    assert len(sequence) == 8 and cache.num_free_pages == 19


def test_a_hint_is_not_negative():
    view = kvit.CacheView(pages(), pages())
    with pytest.raises(kvit.ShapeError, match="tokens_per_sequence is -1; it counts the new tokens"):
        kvit.Attention(view, 2, tokens_per_sequence=-1)


@pytest.mark.parametrize("scale", [np.array(0.1), np.float32(0.1), np.float64(0.1), 0.1, np.float16(0.1)], ids=repr)
def test_a_scale_is_any_number(cache, scale):
    sequence = grown(cache, 8)
    kvit.attention(np.zeros((1, 1, 64), BFLOAT16), cache, [sequence], scale=scale)
    assert kvit.Attention(cache.view, 1, scale=scale).scale == float(scale)


@pytest.mark.parametrize("scale", ["0.1", np.array([0.1]), [0.1], 1j, object()], ids=lambda x: type(x).__name__)
def test_what_is_no_number_is_no_scale(cache, scale):
    sequence = grown(cache, 8)
    for call in (
        lambda: kvit.attention(np.zeros((1, 1, 64), BFLOAT16), cache, [sequence], scale=scale),
        lambda: kvit.Attention(cache.view, 1, scale=scale),
    ):
        with pytest.raises(kvit.ShapeError, match="scale is .*; it must be one number"):
            call()


def test_an_array_with_a_mask_is_refused():
    masked = np.ma.masked_array(np.zeros((4, 16, 2, 64), FLOAT16), mask=True)
    for call in (
        lambda: kvit.Tensor.wrap(masked),
        lambda: kvit.Buffer.from_numpy(masked, "host"),
        lambda: kvit.CacheView(masked, pages()),
    ):
        with pytest.raises(kvit.LayoutError, match="the array has a mask"):
            call()


@pytest.mark.parametrize("width", WIDTHS)
def test_what_describes_memory_takes_any_width(width):
    n = width
    memory = np.arange(64, dtype=np.uint8)
    found = kvit.Tensor.from_pointer(
        np.uint64(memory.ctypes.data), (n(4), n(8)), "uint8", "host", strides=(n(16), n(1)), owner=memory
    )
    assert (found.shape, found.strides) == ((4, 8), (16, 1))
    assert [type(number) for number in (*found.shape, *found.strides)] == [int] * 4
    buffer = kvit.Buffer.empty((n(3), n(5)), "float32", "host")
    assert buffer.shape == (3, 5) and kvit.Buffer.empty(n(7), "uint8", "host").shape == (7,)
    buffer.fill_bytes(n(63))
    assert (buffer.numpy().view(np.uint8) == 63).all()
    assert buffer[n(1)].shape == (5,) and buffer[n(1) : n(3)].shape == (2, 5)
    assert kvit.Tensor.wrap(memory, stream=n(0)).shape == (64,)
    blocks = dict(page_size=n(16), kv_heads=n(2), head_dim=n(64), kv="int8")
    assert kvit.TurboMindBlocks.bytes_of_layer(**blocks) == kvit.TurboMindBlocks.bytes_of_layer(16, 2, 64, "int8")
    plain = {"head_dim": 64, "rope_theta": 1e4, "max_position_embeddings": 64}
    scaled = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}
    config = {**plain, "head_dim": n(64), "rope_scaling": scaled}
    assert kvit.Rope.from_config(config, length=n(100)).steps == kvit.Rope(64, scaling={**scaled, "length": 100}).steps


@pytest.mark.parametrize("width", WIDTHS)
def test_the_host_backend_is_configured_with_numbers_of_any_width(width):
    before = host.configure(workers=width(3), seed=width(9))
    try:
        assert host.configure() == {**before, "workers": 3, "seed": 9}
    finally:
        host.configure(workers=before["workers"], seed=before["seed"])
