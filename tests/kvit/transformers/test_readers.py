"""Layers that attend to K and V of another layer: they store nothing, and read in the pass that stores it."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

import kvit
from kvit.transformers import KvitCache
from kvit.transformers.attention import attend
from kvit.transformers.padding import HIDES
from support.language_models import left_padded, make_prompt
from support.model_families import FAMILIES

pytestmark = pytest.mark.interop

NAME = "gemma4_text"  # layers 2 and 3 read K and V of layers 0 and 1


def small(**changes):
    """Of the same shape, with fewer channels."""
    return (
        FAMILIES[NAME]
        ._replace(changes={**FAMILIES[NAME].changes, "head_dim": 64, "global_head_dim": 128, **changes})
        .make(NAME, "host")
    )


def new_cache(model):
    return KvitCache(model.config, 24, 16)


@torch.no_grad()
def test_they_take_no_pages():
    model = small()
    cache = new_cache(model)
    model(make_prompt(20, 1), past_key_values=cache)
    assert len(cache.paged_layers) == cache.paged.num_layers == 2
    # Heads of 64 in one layer and of 128 in the other, in 24 pages of 16 tokens, K and V of 2 bytes.
    assert cache.nbytes == 24 * 16 * 2 * 2 * (2 * 64 + 1 * 128)


@pytest.mark.parametrize("kept", [1, 3, 40])
@torch.no_grad()
def test_positions_that_nobody_asks_for_have_no_queries(kept):
    """The second sequence has outgrown its window of 9 and the first has padding: the model cuts both of its masks."""
    model = small()
    tokens, mask = left_padded([make_prompt(length, length) for length in (7, 25)])
    whole, cut = new_cache(model), new_cache(model)
    want = model(tokens, past_key_values=whole, attention_mask=mask).logits[:, -kept:]
    found = model(tokens, past_key_values=cut, attention_mask=mask, logits_to_keep=kept).logits
    real = mask[:, -kept:].bool()
    torch.testing.assert_close(found[real], want[real], rtol=0, atol=0.1)
    assert [len(sequence) for sequence in cut.layers[0].sequences] == [7, 25]


@torch.no_grad()
def test_padding_behind_tokens_leaves_a_sequence_without_queries():
    """Nothing of the first sequence is among the last 2 positions. No window is outgrown, which would refuse it."""
    model = small(sliding_window=64)
    rows = [make_prompt(length, length) for length in (6, 9)]
    tokens = torch.cat([torch.nn.functional.pad(row, (0, 9 - row.shape[1])) for row in rows])
    found = model(tokens, past_key_values=new_cache(model), attention_mask=tokens != 0, logits_to_keep=2).logits
    want = model(rows[1], past_key_values=new_cache(model)).logits[0, -2:]
    torch.testing.assert_close(found[1], want, rtol=0, atol=0.1)


@torch.no_grad()
def test_an_error_in_such_a_layer_leaves_the_sequences_as_they_were(monkeypatch):
    model = small()
    cache = new_cache(model)
    prompt = make_prompt(12, 1)
    model(prompt[:, :8], past_key_values=cache)
    last = model.model.layers[3].self_attn
    monkeypatch.setattr(last, "scaling", "no number")
    with pytest.raises((TypeError, kvit.KvitError), match="scale"):
        model(prompt[:, 8:], past_key_values=cache)
    monkeypatch.undo()
    assert [len(sequence) for sequence in cache.layers[0].sequences] == [8] and cache.get_seq_length() == 8
    want = model(prompt, past_key_values=new_cache(model)).logits[:, 8:]
    torch.testing.assert_close(model(prompt[:, 8:], past_key_values=cache).logits, want, rtol=0, atol=0.1)


@torch.no_grad()
def test_what_is_read_outside_of_its_pass_is_refused():
    model = small()
    cache = new_cache(model)
    kept = {}
    model.model.layers[0].self_attn.register_forward_hook(
        lambda module, args, kwargs, out: kept.update(kwargs["shared_kv_states"]), with_kwargs=True
    )
    model(make_prompt(12, 1), past_key_values=cache)
    key, value = kept["sliding_attention"]
    query = torch.zeros(1, 4, 12, 64, dtype=torch.bfloat16)
    with pytest.raises(kvit.KernelMissing, match="layer 2 attends .* outside of the forward pass that stored them"):
        attend(SimpleNamespace(is_causal=True, layer_idx=2), query, key, value, None)
    assert cache.get_seq_length() == 12


@torch.no_grad()
def test_more_queries_than_new_tokens_are_refused():
    model = small()
    cache = new_cache(model)
    states = torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16)
    key, value = cache.update(states.clone(), states.clone(), 0)
    query = torch.zeros(1, 4, 3, 64, dtype=torch.bfloat16)
    attend(SimpleNamespace(is_causal=True, layer_idx=0), query, key, value, None)
    with pytest.raises(kvit.ShapeError, match="layer 2 has queries of 4 tokens and the layers before it 3 new tokens"):
        attend(SimpleNamespace(is_causal=True, layer_idx=2), query.repeat(1, 1, 2, 1)[:, :, :4], key, value, None)
    assert cache.get_seq_length() == 0


@torch.no_grad()
def test_a_window_that_the_mask_alone_tells_holds_for_both():
    """Gemma tells attention its window besides. Chunks, for one, no model does."""
    cache = new_cache(small())
    rng = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, 2, 12, 64, generator=rng).to(torch.bfloat16) for _ in range(3))
    mask = torch.ones(1, 12, dtype=torch.bool)
    setattr(mask, HIDES, {"chunk": 5})
    key, value = cache.update(k, v, 0)
    own, _ = attend(SimpleNamespace(is_causal=True, layer_idx=0), q, key, value, mask)
    of_reader, _ = attend(SimpleNamespace(is_causal=True, layer_idx=2), q, key, value, None)
    assert torch.equal(own, of_reader)
    whole, _ = attend(SimpleNamespace(is_causal=True, layer_idx=0), q, *new_cache(small()).update(k, v, 0), None)
    assert not torch.equal(own, whole)
