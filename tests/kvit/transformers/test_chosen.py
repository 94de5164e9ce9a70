"""Queries that choose: attention to what they chose alone, and the indexer's keys, which follow the sequences."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

import kvit
from kvit.cache.operations import CachedOperations
from kvit.transformers import DecodeGraphs, KvitCache
from kvit.transformers.attention import attend
from support.language_models import left_padded, make_prompt
from support.model_families import CHOOSING, FAMILIES

pytestmark = pytest.mark.interop

TOKENS, BLOCKS = "deepseek_v32", "minimax_m3_vl_text"


def small(name, **changes):
    """A model of a family. Its queries choose 8 tokens or 3 blocks of 4, so that those behind leave most of 25 out."""
    few = {"index_topk_blocks": 3, "index_block_size": 4} if name == BLOCKS else {"index_topk": 8}
    return FAMILIES[name]._replace(changes={**FAMILIES[name].changes, **few, **changes}).make(name, "host")


def new_cache(model, **options):
    return KvitCache(model.config, 24, 16, **options)


def states(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def module_of(**its):
    return SimpleNamespace(is_causal=True, layer_idx=its.pop("layer_idx", 0), **its)


def sums_of(q, k, v, seen):
    """Attention in float32 to the keys that `seen`, bool [batch, heads, queries, keys], shows; zeros where none is."""
    k, v = (x.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q.float() @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
    return (torch.nan_to_num(scores.softmax(-1)) @ v).transpose(1, 2)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_tokens_are_counted_with_the_padding(padding):
    """Two sequences of 30 and 21 tokens, in pieces. Choices are random: also of padding, and of tokens to come."""
    cache = new_cache(small(TOKENS))
    q, k, v = states(1, 2, 4, 30, 64), states(2, 2, 2, 30, 64), states(3, 2, 2, 30, 64)
    real = torch.ones(2, 30, dtype=torch.bool)
    if padding != "none":
        real[1, slice(0, 9) if padding == "left" else slice(21, 30)] = False
    rng = torch.Generator().manual_seed(4)
    for first, last in ((0, 17), (17, 18), (18, 30)):
        indices = torch.stack([torch.randperm(last, generator=rng)[:8] for _ in range(2 * (last - first))])
        indices = indices.view(2, last - first, 8).int()
        indices[:, :, 3] = -1
        new = slice(first, last)
        for layer in (0, 1):
            stored = cache.update(k[:, :, new], v[:, :, new], layer)
            mask = None if padding == "none" else real[:, :last]
            found, _ = attend(module_of(layer_idx=layer), q[:, :, new], *stored, mask, indices=indices)
        chosen = torch.zeros(2, last - first, last + 1, dtype=torch.bool)
        chosen.scatter_(2, torch.where(indices < 0, last, indices).long(), value=True)
        at = torch.arange(last)
        seen = chosen[:, :, :last] & (at <= at[new, None]) & real[:, None, :last]
        want = sums_of(q[:, :, new], k[:, :, :last], v[:, :, :last], seen[:, None]) * real[:, new, None, None]
        torch.testing.assert_close(found.float(), want, rtol=0, atol=0.02)


@pytest.mark.parametrize("options", [{}, {"k": "int8", "v": "int8"}], ids=["bf16", "int8"])
@torch.no_grad()
def test_every_kv_head_reads_its_own_blocks(options):
    """3 of 8 blocks of 4 tokens for each KV head, the query's own block among them, which it sees in part."""
    cache = new_cache(small(BLOCKS), **options)
    q, k, v = states(1, 2, 6, 30, 128), states(2, 2, 2, 30, 128), states(3, 2, 2, 30, 128)
    at = torch.arange(30)
    others = torch.rand(2, 2, 30, 8, generator=torch.Generator().manual_seed(4))
    others = others.masked_fill(torch.arange(8) >= at[:, None] // 4, -1.0)
    scores, indices = others.scatter(3, (at // 4).view(1, 1, 30, 1).expand(2, 2, 30, 1), 2.0).topk(3)
    indices = indices.masked_fill(scores < 0, -1)
    module = module_of(layer_idx=1, indexer=SimpleNamespace(block_size=4))
    stored = cache.update(k, v, 1)
    # What a model computes has its heads outside of its tokens, or inside of them.
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    found, _ = attend(module, q, *stored, None, block_indices=indices)
    blocks = torch.zeros(2, 2, 30, 9, dtype=torch.bool).scatter_(3, torch.where(indices < 0, 8, indices), value=True)
    seen = blocks[..., :8].repeat_interleave(4, 3)[..., :30] & (at <= at[:, None])
    want = sums_of(q, k, v, seen.repeat_interleave(3, 1))
    torch.testing.assert_close(found.float(), want, rtol=0, atol=0.02 if not options else 0.05)


@torch.no_grad()
def test_queries_that_have_chosen_all_read_as_if_they_had_not(monkeypatch):
    """As many entries as there are: the kernels of other models do it, bit for bit as they do."""
    monkeypatch.setattr(CachedOperations, "find_sparse", None)
    q, k, v = states(1, 1, 4, 7, 64), states(2, 1, 2, 7, 64), states(3, 1, 2, 7, 64)
    plain, choosing = KvitCache(FAMILIES["qwen3"].make("qwen3", "host").config, 4, 16), new_cache(small(TOKENS))
    want, _ = attend(module_of(), q, *plain.update(k, v, 0), None)
    indices = torch.arange(7, dtype=torch.int32).expand(1, 7, 7)
    found, _ = attend(module_of(), q, *choosing.update(k, v, 0), None, indices=indices)
    assert torch.equal(found, want)


@pytest.mark.parametrize("name", [TOKENS, BLOCKS])
@torch.no_grad()
def test_crop_forks_beams_and_the_next_batch_take_the_indexers_keys_along(name):
    model = small(name)
    prompt, other = make_prompt(25, 1), make_prompt(25, 2)
    both = torch.cat([prompt, other])
    plain = new_cache(model)
    model(both[:, :20], past_key_values=plain)
    want = model(both[:, 20:], past_key_values=plain).logits
    same = {"rtol": 0, "atol": 0.05}
    cache = new_cache(model)
    model(both[:, :20], past_key_values=cache)
    model(other[:, :3].repeat(2, 1), past_key_values=cache)  # that go again
    cache.crop(-3)
    twin = cache.fork()
    model(both[:, 20:22], past_key_values=cache)
    model(both[:, 4:6], past_key_values=twin)  # at the places where the others are now
    torch.testing.assert_close(model(both[:, 22:], past_key_values=cache).logits, want[:, 2:], **same)
    cache.crop(-5)
    twin.crop(-2)
    cache.reorder_cache(torch.tensor([1, 0]))
    found = model(both.flip(0)[:, 20:], past_key_values=cache).logits
    torch.testing.assert_close(found, want.flip(0), **same)
    torch.testing.assert_close(model(both[:, 20:], past_key_values=twin).logits, want, **same)
    cache.reset()
    model(prompt[:, :20], past_key_values=cache)
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([2, 1]))
    found = model(prompt[:, 20:].repeat(2, 1), past_key_values=cache).logits
    torch.testing.assert_close(found, want[:1].repeat(2, 1, 1), **same)


@torch.no_grad()
def test_memory_of_the_indexers_keys_is_taken_once_for_many_tokens():
    model = small(TOKENS)
    cache = new_cache(model)
    for part in make_prompt(30, 1).split([20, 1, 1, 8], 1):
        model(part, past_key_values=cache)
        kept = cache.layers[0].indexer_keys
        assert kept.shape == (1, 256, 64) and kept.data_ptr() == cache.layers[0].update_indexer(kept[:, :0]).data_ptr()
    layer = cache.layers[0]
    want = layer.indexer_keys[:, :30].clone()
    assert layer.update_indexer(layer.indexer_keys[:, :250]).shape == (1, 280, 64)
    assert torch.equal(layer.indexer_keys[:, :30], want)
    with pytest.raises(kvit.ShapeError, match=r"keys of 2 sequences and 64 channels, and keeps 64 channels of 1"):
        layer.update_indexer(torch.zeros(2, 1, 64, dtype=torch.bfloat16))


@torch.no_grad()
def test_a_padded_batch_chooses_what_its_sequences_choose_alone():
    model = small(TOKENS)
    rows = [make_prompt(length, length) for length in (25, 14)]
    tokens, mask = left_padded(rows)
    cache = new_cache(model)
    model(tokens[:, :20], past_key_values=cache, attention_mask=mask[:, :20])
    together = model(tokens[:, 20:], past_key_values=cache, attention_mask=mask).logits
    for row, found in zip(rows, together, strict=True):
        alone = model(row, past_key_values=new_cache(model)).logits[0, -5:]
        torch.testing.assert_close(found, alone, rtol=0, atol=0.05)


@torch.no_grad()
def test_blocks_of_a_sequence_with_padding_before_it_are_refused():
    model = small(BLOCKS)
    cache = new_cache(model)
    tokens, mask = left_padded([make_prompt(length, length) for length in (25, 14)])
    with pytest.raises(kvit.KernelMissing, match="choose blocks of tokens, which it counts from the padding"):
        model(tokens, past_key_values=cache, attention_mask=mask)
    assert cache.get_seq_length() == 0 and cache.paged.num_free_pages == 24
    found = model(tokens.roll(-11, 1)[1:], past_key_values=new_cache(model), attention_mask=mask.flip(1)[1:]).logits
    want = model(tokens[1:, 11:], past_key_values=new_cache(model)).logits
    torch.testing.assert_close(found[:, :14], want, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({}, kvit.KernelMissing, "layer 1 has an indexer, and tells attention nothing of what its queries have chosen"),
        ({"indices": torch.zeros(1, 29, 3)}, kvit.ShapeError, r"indices of shape \[1, 29, 3\]; give \[batch = 1"),
        ({"block_indices": torch.zeros(1, 30, 3)}, kvit.ShapeError, r"block_indices of shape \[1, 30, 3\]"),
        ({"block_indices": torch.zeros(1, 6, 30, 3)}, kvit.ShapeError, "makes 6 choices and the layer has 2 KV heads"),
        ({"block_indices": torch.zeros(1, 2, 30, 3), "block_size": None}, kvit.KernelMissing, "no indexer.block_size"),
        ({"block_indices": torch.zeros(1, 2, 30, 1), "block_size": 24}, kvit.ShapeError, "entry_tokens is 24"),
        ({"indices": torch.zeros(1, 30, 3), "sliding_window": 9}, kvit.KernelMissing, "and a window besides"),
    ],
)
@torch.no_grad()
def test_choices_that_say_nothing_are_refused_before_anything_is_stored(said, error, message):
    cache = new_cache(small(BLOCKS))
    q, k = states(1, 1, 6, 30, 128), states(2, 1, 2, 30, 128)
    said = dict(said)
    module = module_of(layer_idx=1, indexer=SimpleNamespace(block_size=said.pop("block_size", 4)))
    stored = cache.update(k.clone(), k.clone(), 1)
    with pytest.raises(error, match=message):
        attend(module, q, *stored, None, **said)
    cache.batch.drop_pass()  # of an error that came before the layer was asked, too
    assert cache.get_seq_length() == 0 and cache.paged.num_free_pages == 24
    assert torch.from_dlpack(cache.paged.layer(0).view.k).isnan().all()  # as the host backend makes memory


@pytest.mark.parametrize("name", sorted(CHOOSING))
def test_graphs_of_steps_are_refused_by_name(name):
    model = small(name)
    with pytest.raises(kvit.KernelMissing, match="among keys or entries that grow with every step"):
        DecodeGraphs(model, new_cache(model))


def test_positions_of_an_indexers_keys_are_refused_by_name():
    with pytest.raises(kvit.KernelMissing, match="the indexer of layer 1 keeps positions in its cache"):
        _ = new_cache(small(TOKENS)).layers[1].indexer_position_ids
