"""KvitCache on tensors of the tests' own: what attention gives, where it reads and writes, and what a cache forgets."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch
from transformers import LlamaConfig

import kvit
from kvit import reference
from kvit.cache.layer import CacheLayer
from kvit.transformers import KvitCache, layer
from kvit.transformers.attention import attend
from support import tolerances
from support.caches import BFLOAT16, FLOAT16
from support.language_models import torch_device
from support.tolerances import assert_within

pytestmark = pytest.mark.interop

PAIRS = [(None, None), ("int8", "int8"), ("int4", "int4"), ("int8", "int4"), ("float8_e4m3", "float8_e4m3")]
MODULE = SimpleNamespace(layer_idx=0, is_causal=True)
KV_HEADS, HEADS, CHANNELS = 2, 6, 64


@pytest.fixture(autouse=True)
def _device_of_pytorch(request):
    is_on_gpu = "device" in request.fixturenames and request.getfixturevalue("device") != "host"
    if is_on_gpu and not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use: this PyTorch sees none")


def new_cache(pages=24, page_size=16, layers=1, **options):
    config = LlamaConfig(num_hidden_layers=layers, attn_implementation="kvit")
    return KvitCache(config, pages, page_size, **options)


def to_torch(array, device="host"):
    """The same bits; numpy's bfloat16 is none of torch's types."""
    kind = torch.bfloat16 if array.dtype == BFLOAT16 else torch.float16
    return torch.from_numpy(array.view(np.int16)).view(kind).to(torch_device(device))


def to_numpy(tensor):
    kind = BFLOAT16 if tensor.dtype == torch.bfloat16 else FLOAT16
    return tensor.cpu().contiguous().view(torch.int16).numpy().view(kind)


def new_states(rng, batch, tokens, dtype=BFLOAT16):
    """q, k and v [batch, tokens, heads, CHANNELS]."""
    return [rng.standard_normal((batch, tokens, n, CHANNELS)).astype(dtype) for n in (HEADS, KV_HEADS, KV_HEADS)]


def step(cache, states, mask=None, layer_idx=0, **options):
    """What a layer of a model does with q, k and v [batch, tokens, heads, channels]: output, in the same order."""
    q, k, v = (x.transpose(1, 2) for x in states)
    k, v = cache.update(k, v, layer_idx)
    return attend(MODULE, q, k, v, mask, **options)[0]


def stored(rows, name):
    """Rows as a cache gives them back, in float64."""
    if name is None:
        return rows.astype(np.float64)
    codec = reference.codec_of(name)
    scale = np.ones(rows.shape[:-1], np.float32) if name.startswith("float8") else None
    return np.asarray(codec.decode(*codec.encode(rows, scale)), np.float64)


def assert_attention(out, q, k, v, pair=(None, None)):
    """Rows `out` are the last tokens' attention to what a cache of `pair` keeps of k and v."""
    k_stored, v_stored = stored(k, pair[0]), stored(v, pair[1])
    want = reference.attention(q, k_stored, v_stored).out
    bound = tolerances.attention_bound(reference.attention(q, k_stored, np.abs(v_stored)).out, q.dtype)
    if pair != (None, None):  # codes are weighed from a row's least value on: see kvit._cli.codec_checks
        ranges = np.broadcast_to(2 * np.abs(v_stored).max(axis=-1, keepdims=True), v_stored.shape)
        share = 2.25 * 2.0**-11 + 2 * tolerances.SCORE_QUANTISED
        bound = bound + share * reference.attention(q, k_stored, ranges).out
    assert_within(out, want, bound)


def contents(cache, layer_idx=0):
    """[(k, v)] of each sequence, as stored."""
    held = cache.layers[layer_idx]
    k, v, indptr = (buffer.numpy() for buffer in held.stored.gather(held.sequences))
    return [(k[a:b], v[a:b]) for a, b in zip(indptr, indptr[1:], strict=False)]


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_real_tokens_attend_to_real_tokens_wherever_padding_is(rng, device, pair, dtype):
    cache = new_cache(k=pair[0], v=pair[1])
    mask = np.ones((4, 30), bool)
    mask[0, :13] = False  # left, as generation has it
    mask[1, 20:24] = False  # right of a first piece
    mask[2, [0, 7, 25]] = False  # holes
    whole = new_states(rng, 4, 30, dtype)
    for x in whole:
        x[~mask] = np.nan  # padding is never read
    outs = []
    for start, end in [(0, 24), (24, 25), (25, 30)]:  # prefill, one token, several
        part = [to_torch(x[:, start:end].copy(), device) for x in whole]
        outs.append(to_numpy(step(cache, part, torch.from_numpy(mask[:, :end]).to(torch_device(device)))))
        assert cache.get_seq_length() == end
    out = np.concatenate(outs, axis=1)
    assert (out[~mask] == 0).all()
    for i in range(4):
        assert len(cache.layers[0].sequences[i]) == mask[i].sum()
        assert_attention(out[i, mask[i]], *(x[i, mask[i]] for x in whole), pair)


def test_scores_are_scaled_as_the_model_says(rng, device):
    q, k, v = new_states(rng, 1, 9)
    out = to_numpy(step(new_cache(), [to_torch(x, device) for x in (q, k, v)], scaling=0.5))
    # Four times head_dim ** -0.5, which is 1/8 and exact: queries four times as large have the same scores without it.
    assert_attention(out[0], (q[0].astype(np.float32) * 4).astype(BFLOAT16), k[0], v[0])


def test_a_pass_of_padding_alone_stores_nothing(rng, device):
    cache = new_cache()
    padding = [to_torch(x, device) for x in new_states(rng, 2, 3)]
    out = step(cache, padding, torch.zeros(2, 3, dtype=torch.bool, device=torch_device(device)))
    assert not out.any() and [len(sequence) for sequence in cache.layers[0].sequences] == [0, 0]
    assert cache.get_seq_length() == 3


def test_kvit_reads_and_writes_the_tensors_of_the_model(rng, device, monkeypatch):
    seen = {}

    def note(name, function, *arguments):
        def noting(*args, **kwargs):
            seen.update({word: kvit.Tensor.wrap(args[i]).pointer for word, i in arguments[0].items()})
            seen[name] = args, kwargs
            return function(*args, **kwargs)

        return noting

    monkeypatch.setattr(CacheLayer, "append", note("append", CacheLayer.append, {"k": 2, "v": 3}))
    monkeypatch.setattr(layer, "attention", note("attention", layer.attention, {"q": 0}))
    cache = new_cache()
    for tokens in (9, 1):
        # One tensor of q, k and v side by side, as a fused projection makes it: rows lie apart.
        fused = to_torch(new_states(rng, 3, tokens)[0], device).repeat(1, 1, 2, 1)
        states = fused[:, :, :HEADS], fused[:, :, HEADS : HEADS + 2], fused[:, :, HEADS + 2 : HEADS + 4]
        out = step(cache, states)
        assert [seen[name] for name in "qkv"] == [x.data_ptr() for x in states]
        assert kvit.Tensor.wrap(seen["attention"][1]["out"]).pointer == out.data_ptr()
        if device != "host":
            current = torch.cuda.current_stream(torch_device(device)).cuda_stream
            assert seen["append"][0][1].stream.handle == seen["attention"][1]["stream"] == current


def test_quantised_pages_take_the_bytes_of_their_codecs(rng):
    step(plain := new_cache(), [to_torch(x) for x in new_states(rng, 1, 1)])
    step(small := new_cache(k="int8", v="int4"), [to_torch(x) for x in new_states(rng, 1, 1)])
    rows = 24 * 16 * KV_HEADS
    assert plain.nbytes == rows * (128 + 128)
    assert small.nbytes == rows * (68 + 36)  # docs/quantisation.md: codes, and (scale, zero) of each row


def test_scales_of_float8_are_each_layers_own(rng, device):
    scales = torch.tensor([[0.02, 0.03], [0.5, 2.0]], device=torch_device(device))
    cache = new_cache(layers=2, k="float8_e4m3", v="float8_e4m3", k_scale=scales, v_scale=scales)
    states = new_states(rng, 1, 7)
    for layer_idx in range(2):
        step(cache, [to_torch(x, device) for x in states], layer_idx=layer_idx)
    for layer_idx in range(2):
        codec, scale = reference.codec_of("float8_e4m3"), scales[layer_idx].cpu().numpy()
        for got, rows in zip(contents(cache, layer_idx)[0], states[1:], strict=True):
            encoded = codec.encode(rows[0], np.broadcast_to(scale, (7, KV_HEADS)))
            np.testing.assert_array_equal(got, codec.decode(*encoded, BFLOAT16))


def test_crop_forgets_the_last_tokens(rng, device):
    cache = new_cache()
    mask = np.ones((2, 27), bool)
    mask[0, :20] = mask[1, 22] = False
    whole = new_states(rng, 2, 27)
    device_mask = torch.from_numpy(mask).to(torch_device(device))
    step(cache, [to_torch(x[:, :25].copy(), device) for x in whole], device_mask[:, :25])
    cache.crop(0)
    cache.crop(-6)  # into the padding of the first, over that of the second: 0 and 19 tokens stay
    paged = cache.layers[0].paged
    assert [len(sequence) for sequence in cache.layers[0].sequences] == [0, 19]
    assert (cache.get_seq_length(), paged.num_pages - paged.num_free_pages) == (19, 2)
    out = to_numpy(step(cache, [to_torch(x[:, 19:].copy(), device) for x in whole], device_mask))
    for i in range(2):
        assert_attention(out[i, mask[i, 19:]], whole[0][i, 19:][mask[i, 19:]], *(x[i, mask[i]] for x in whole[1:]))


def test_reordered_sequences_share_pages_until_they_grow(rng, device):
    cache = new_cache(pages=9)
    mask = torch.ones(3, 21, dtype=torch.bool, device=torch_device(device))
    mask[2, :2] = False
    step(cache, [to_torch(x, device) for x in new_states(rng, 3, 20)], mask[:, :20])
    before, paged = contents(cache), cache.layers[0].paged
    cache.reorder_cache(torch.tensor([2, 2, 0], device=torch_device(device)))
    assert paged.num_pages - paged.num_free_pages == 4  # two of each that is left, and none of sequence 1
    q, k, v = new_states(rng, 3, 1)
    out = to_numpy(step(cache, [to_torch(x, device) for x in (q, k, v)], mask[[2, 2, 0]]))
    assert paged.num_pages - paged.num_free_pages == 5  # one of the two copied the page that it wrote to
    for i, parent in enumerate([2, 2, 0]):
        keys, values = (np.concatenate([old, new[i]]) for old, new in zip(before[parent], (k, v), strict=True))
        np.testing.assert_array_equal(contents(cache)[i][0], keys)
        assert_attention(out[i], q[i], keys, values)


def test_a_batch_is_repeated_and_selected_as_transformers_does(rng):
    cache = new_cache()
    step(cache, [to_torch(x) for x in new_states(rng, 3, 5)])
    before = contents(cache)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 6
    for got, want in zip(contents(cache), [before[i] for i in (0, 0, 1, 1, 2, 2)], strict=True):
        np.testing.assert_array_equal(got, want)
    cache.batch_select_indices(torch.tensor([5, 0]))
    cache.batch_select_indices(torch.tensor([True, False]))
    np.testing.assert_array_equal(contents(cache), [before[2]])


@pytest.mark.parametrize("twin_of", [KvitCache.fork, copy.deepcopy], ids=["fork", "deepcopy"])
def test_a_fork_goes_its_own_way(rng, device, twin_of):
    cache = new_cache(layers=2)
    prefix, ours, theirs = (new_states(rng, 1, n) for n in (20, 3, 2))
    for layer_idx in range(2):
        step(cache, [to_torch(x, device) for x in prefix], layer_idx=layer_idx)
    twin = twin_of(cache)
    for layer_idx in range(2):
        step(cache, [to_torch(x, device) for x in ours], layer_idx=layer_idx)
        step(twin, [to_torch(x, device) for x in theirs], layer_idx=layer_idx)
    for layer_idx in range(2):
        for found, more in ((contents(cache, layer_idx), ours), (contents(twin, layer_idx), theirs)):
            want = [np.concatenate([a[0], b[0]]) for a, b in zip(prefix[1:], more[1:], strict=True)]
            np.testing.assert_array_equal(found[0], want)
    del twin
    paged = cache.layers[1].paged
    assert paged.num_pages - paged.num_free_pages == 2  # the twin's went back


def test_a_cache_without_tokens_forks_too(rng):
    twin = new_cache().fork()
    step(twin, [to_torch(x) for x in new_states(rng, 1, 2)])
    assert twin.get_seq_length() == 2


def test_reset_keeps_the_pages_for_another_batch(rng, device):
    cache = new_cache()
    assert (cache.batch_size, cache.nbytes, cache.is_initialized) == (-1, 0, False)
    step(cache, [to_torch(x, device) for x in new_states(rng, 3, 5)])
    pages, nbytes = cache.layers[0].paged, cache.nbytes
    cache.reset()
    assert (cache.batch_size, cache.get_seq_length(), pages.num_free_pages) == (-1, 0, pages.num_pages)
    states = new_states(rng, 1, 5)
    out = to_numpy(step(cache, [to_torch(x, device) for x in states]))
    assert_attention(out[0], *(x[0] for x in states))
    assert cache.layers[0].paged is pages and cache.nbytes == nbytes


def test_a_full_cache_refuses_and_goes_on(rng):
    cache = new_cache(pages=3)
    states = new_states(rng, 2, 16)
    step(cache, [to_torch(x) for x in states])
    with pytest.raises(kvit.CacheFull, match="needs 2 more pages and has 1 free"):
        step(cache, [to_torch(x) for x in new_states(rng, 2, 1)])
    assert cache.get_seq_length() == 16
    cache.batch_select_indices(torch.tensor([1]))
    q, k, v = new_states(rng, 1, 1)
    out = to_numpy(step(cache, [to_torch(x) for x in (q, k, v)]))
    assert_attention(out[0], q[0], *(np.concatenate([a[1], b[0]]) for a, b in zip(states[1:], (k, v), strict=True)))


def test_a_cache_says_what_it_is(rng):
    cache = new_cache(layers=2, k="int8", v="int4")
    assert repr(cache) == "KvitCache(2 layers of KvitLayer(no pages yet))"
    step(cache, [to_torch(x) for x in new_states(rng, 3, 5)])
    step(cache, [to_torch(x) for x in new_states(rng, 3, 5)], layer_idx=1)
    assert repr(cache.layers[0]) == f"KvitLayer(3 sequences of 5 tokens in {cache.layers[0].stored!r})"
    assert cache.get_max_length() == 24 * 16
