"""The sequences that all layers of a KvitCache share: one page table for a pass, which is whole or has not been."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch
from transformers import LlamaConfig

import kvit
from kvit.transformers import KvitCache
from kvit.transformers.attention import attend
from support.language_models import make_model, make_prompt
from support.model_families import FAMILIES

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def model():
    return make_model("llama", num_hidden_layers=3)


@pytest.fixture
def cache(model):
    return KvitCache(model.config, 8, 16)


def fail(*_, **__):
    raise InterruptedError


def lengths(cache):
    return [len(sequence) for layer in cache.layers for sequence in layer.sequences]


@torch.no_grad()
def test_all_layers_have_one_page_table(model, cache, monkeypatch):
    begun = []
    plain = kvit.PagedCache.step
    monkeypatch.setattr(kvit.PagedCache, "step", lambda *a, **k: (begun.append(a[2]), plain(*a, **k))[1])
    model(make_prompt(20, 1).repeat(2, 1), past_key_values=cache)
    model(make_prompt(2, 2).T, past_key_values=cache)
    assert begun == [[20, 20], [1, 1]]
    assert {id(layer.paged) for layer in cache.layers} == {id(cache.paged)} and cache.paged.num_layers == 3
    assert cache.paged.num_pages - cache.paged.num_free_pages == 2 * 2  # for all layers together
    # Layers are alike: what attention keeps for its calls is there once.
    assert len({id(layer.stored.operations) for layer in cache.layers}) == 1


@torch.no_grad()
def test_a_pass_that_was_interrupted_has_not_been(model, cache, monkeypatch):
    prompt = make_prompt(20, 1)
    want = [model(part, past_key_values=KvitCache(model.config, 8, 16)).logits for part in (prompt[:, :9], prompt)]
    free = 8
    for layer_idx, part, expected in ((1, prompt[:, :9], want[0]), (2, prompt[:, 9:], want[1][:, 9:])):
        before = cache.get_seq_length()
        with monkeypatch.context() as patch:
            patch.setattr(model.model.layers[layer_idx], "forward", fail)
            with pytest.raises(InterruptedError):
                model(part, past_key_values=cache)
        missing = "layers 1, 2" if layer_idx == 1 else "layer 2"
        with pytest.raises(kvit.KvitError, match=f"ended before {missing} attended.*interrupted, or the model leaves"):
            model(part, past_key_values=cache)
        assert cache.get_seq_length() == before and set(lengths(cache)) <= {before}
        assert cache.paged.num_free_pages == free
        found = model(part, past_key_values=cache).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)  # other sums where the prompt came in pieces
        free = cache.paged.num_free_pages
    assert lengths(cache) == [20] * 3


@pytest.mark.parametrize("forget", ["crop", "reset", "reorder_cache"])
@torch.no_grad()
def test_calls_between_passes_forget_an_interrupted_one(model, cache, monkeypatch, forget):
    prompt = make_prompt(9, 1)
    model(prompt, past_key_values=cache)
    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1], "forward", fail)
        with pytest.raises(InterruptedError):
            model(prompt, past_key_values=cache)
    {
        "crop": lambda: cache.crop(0),
        "reset": cache.reset,
        "reorder_cache": lambda: cache.reorder_cache(torch.tensor([0])),
    }[forget]()
    model(prompt[:, :2], past_key_values=cache)
    assert lengths(cache) == [2 if forget == "reset" else 11] * 3


@torch.no_grad()
def test_an_error_of_attention_ends_the_pass(model, cache, monkeypatch):
    prompt = make_prompt(9, 1)
    with monkeypatch.context() as patch:
        plain = kvit.transformers.layer.attention
        patch.setattr(
            kvit.transformers.layer,
            "attention",
            lambda q, layer, *a, **k: (fail if layer.index else plain)(q, layer, *a, **k),
        )
        with pytest.raises(InterruptedError):
            model(prompt, past_key_values=cache)
    assert cache.paged.num_free_pages == 8  # at once, since kvit knows of it
    model(prompt, past_key_values=cache)
    assert lengths(cache) == [9] * 3


@torch.no_grad()
def test_a_model_that_leaves_out_layers_of_its_config_is_told_so(cache):
    model = make_model("llama", num_hidden_layers=3)
    del model.model.layers[2]
    prompt = make_prompt(9, 1)
    model(prompt, past_key_values=cache)
    with pytest.raises(kvit.KvitError, match=r"before layer 2 attended.*leaves out layers of its config.*reset\(\)"):
        model(prompt, past_key_values=cache)


@torch.no_grad()
def test_layers_of_one_pass_have_the_same_tokens(cache):
    states = torch.zeros(2, 2, 5, 64, dtype=torch.bfloat16)
    module = SimpleNamespace(is_causal=True, layer_idx=0)
    attend(module, states, *cache.update(states.clone(), states.clone(), 0), None)
    with pytest.raises(kvit.ShapeError, match=r"4 new tokens of 2 sequences, \[4, 4\] of them real, and the layers"):
        fewer = states[:, :, :4]
        attend(module, fewer, *cache.update(fewer.clone(), fewer.clone(), 1), None)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 0] = False
    attend(module, states, *cache.update(states.clone(), states.clone(), 0), None)
    with pytest.raises(kvit.ShapeError, match=r"\[5, 4\] of them real, and the layers before it 5 of 2, \[5, 5\]"):
        attend(module, states, *cache.update(states.clone(), states.clone(), 1), mask)
    assert cache.get_seq_length() == 0 and cache.paged.num_free_pages == 8


@torch.no_grad()
def test_layers_in_other_places_have_pages_there():
    """Two dtypes stand for two devices: a page table serves the layers of one of either."""
    cache = KvitCache(LlamaConfig(num_hidden_layers=3, attn_implementation="kvit"), 8, 16)
    drawn = torch.randn(3, 1, 2, 20, 64, generator=torch.Generator().manual_seed(3))
    for end in (17, 20):
        for layer_idx, dtype in enumerate((torch.bfloat16, torch.float16, torch.bfloat16)):
            q, k, v = drawn[:, :, :, cache.get_seq_length() : end].to(dtype)
            out, _ = attend(SimpleNamespace(is_causal=True), q, *cache.update(k, v, layer_idx), None)
        want = torch.nn.functional.scaled_dot_product_attention(*drawn[:, :, :, :end], is_causal=True).transpose(1, 2)
        torch.testing.assert_close(out.float(), want[:, -out.shape[1] :], rtol=0, atol=0.03)
    assert cache.layers[0].paged is cache.layers[2].paged is not cache.layers[1].paged
    assert lengths(cache) == [20] * 3 and cache.nbytes == 3 * 8 * 16 * 2 * 64 * 2 * 2
    with pytest.raises(kvit.KvitError, match=r"the model is on 2 devices.*cache.layers\[i\].paged"):
        cache.paged  # noqa: B018 (a property that raises)
    cache.crop(-4)
    cache.reorder_cache(torch.tensor([0]))
    assert lengths(cache) == [16] * 3


@torch.no_grad()
def test_states_are_chosen_with_their_sequences_and_stay_where_they_are():
    model = FAMILIES["qwen3_next"].make("qwen3_next", "host")
    prompts = torch.cat([make_prompt(9, seed) for seed in (1, 2, 3)])
    cache = KvitCache(model.config, 8, 16)
    model(prompts, past_key_values=cache)
    [state_layer] = cache.state_layers
    place = state_layer.recurrent_states[0].data_ptr()
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert state_layer.recurrent_states[0].data_ptr() == place  # graphs read them there
    cache.batch_select_indices(torch.tensor([0, 2]))
    cache.batch_repeat_interleave(2)
    found = model(make_prompt(4, 7).T, past_key_values=cache).logits
    for i, prompt in enumerate(prompts[[2, 2, 0, 0]]):
        alone = KvitCache(model.config, 8, 16)
        model(prompt[None], past_key_values=alone)
        want = model(make_prompt(4, 7).T[i : i + 1], past_key_values=alone).logits
        torch.testing.assert_close(found[i : i + 1], want, rtol=0, atol=0.1)


@torch.no_grad()
def test_layers_leave_the_batch_to_the_cache(model, cache):
    model(make_prompt(9, 1), past_key_values=cache)
    layer = cache.layers[0]
    calls = [(layer.crop, 0), (layer.reset,), (layer.reorder_cache, None), (layer.batch_repeat_interleave, 2)]
    for call, *arguments in calls:
        with pytest.raises(kvit.KvitError, match="one batch of sequences; call the method of the cache itself"):
            call(*arguments)
    assert lengths(cache) == [9] * 3
