"""What attn_implementation="kvit" does not do is refused, by name and before anything is stored."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig, Qwen2Config, StaticCache

import kvit
from kvit.transformers import KvitCache
from kvit.transformers.attention import attend
from support.language_models import make_model, prompts

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def model():
    return make_model("llama")


@pytest.fixture
def prompt():
    return prompts("llama")[1]


@pytest.fixture
def cache(model):
    return KvitCache(model.config, 8, 16)


def assert_unused(cache):
    assert cache.get_seq_length() == 0
    assert all(layer.paged is None or layer.paged.num_free_pages == 8 for layer in cache.layers)


def test_models_with_layers_of_another_kind_get_no_cache():
    config = LlamaConfig(num_hidden_layers=2)
    config.layer_types = ["full_attention", "attention_of_tomorrow"]
    with pytest.raises(kvit.KernelMissing, match="the model has layers of attention_of_tomorrow"):
        KvitCache(config, 65)


def test_windows_that_are_switched_off_are_none():
    assert len(KvitCache(Qwen2Config(use_sliding_window=False, num_hidden_layers=3), 8)) == 3
    assert len(KvitCache(MistralConfig(sliding_window=None, num_hidden_layers=3), 8)) == 3


def test_scales_are_given_for_every_layer(model):
    with pytest.raises(kvit.ShapeError, match="k_scale is for 3 layers and the model has 2"):
        KvitCache(model.config, 8, k="float8_e4m3", k_scale=np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pages": 0}, kvit.ShapeError, "pages is 0; it must be 1 to"),
        ({"page_size": -16}, kvit.ShapeError, "page_size is -16"),
        ({"layout": "HDN"}, kvit.LayoutError, "layout is 'HDN'"),
        ({"k": "int3"}, kvit.DtypeError, "int3"),
        ({"v": "float32"}, kvit.DtypeError, "float32"),
    ],
)
def test_what_no_cache_can_be_is_refused_when_it_is_made(model, options, error, message):
    with pytest.raises(error, match=message):
        KvitCache(model.config, **{"pages": 8, **options})


@pytest.mark.parametrize("make_cache", [lambda: None, DynamicCache], ids=["default", "DynamicCache"])
def test_another_cache_is_not_read_instead(model, prompt, make_cache):
    with pytest.raises(TypeError, match=r"layer 0 \(LlamaAttention\).*past_key_values=kvit.transformers.KvitCache"):
        model.generate(prompt, past_key_values=make_cache(), max_new_tokens=2)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_static_cache_is_called_by_its_name(model, prompt, padded):
    static = StaticCache(config=model.config, max_cache_len=64)
    mask = torch.ones_like(prompt)
    mask[0, 0] = 0
    with pytest.raises(TypeError, match=r"room for 64 tokens where there are 5: it is a static one.*needs a KvitCache"):
        model(prompt, past_key_values=static, **({"attention_mask": mask} if padded else {}))
    with pytest.raises(TypeError, match="a static one.*no cache_implementation"):
        model.generate(prompt, cache_implementation="static", max_new_tokens=3)


def test_an_assistant_with_kvit_is_told_apart_from_a_missing_cache(model, prompt, cache):
    with pytest.raises(
        TypeError,
        match="this is the layer of an assistant_model, give that one its own by kvit.transformers.AssistantCache",
    ):
        model.generate(prompt, past_key_values=cache, assistant_model=make_model("llama"), max_new_tokens=3)


def test_another_attention_does_not_read_the_pages(prompt):
    eager = make_model("llama", attention="eager")
    cache = KvitCache(eager.config, 8)
    with pytest.raises(TypeError, match="serves attn_implementation='kvit' and its config says 'eager'"):
        eager.generate(prompt, past_key_values=cache, max_new_tokens=2)
    assert_unused(cache)


def test_a_model_in_float32_is_not_rounded_quietly(prompt):
    model = make_model("llama").float()
    cache = KvitCache(model.config, 8)
    with pytest.raises(kvit.DtypeError, match=r"torch.float32 and kvit in bfloat16 or float16.*dtype=torch.bfloat16"):
        model.generate(prompt, past_key_values=cache, max_new_tokens=2)
    assert_unused(cache)


def test_a_head_dim_that_is_not_built_is_refused_by_name(prompt):
    model = make_model("llama", head_dim=520)
    with pytest.raises(kvit.KernelMissing, match="head_dim=520"):
        model.generate(prompt, past_key_values=KvitCache(model.config, 8), max_new_tokens=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_gate": torch.ones(4)}, r"head_gate=a tensor of shape \[4\], which kvit's attention does not do"),
        ({"output_attentions": True}, "output_attentions=True"),
        ({"a_new_way": 3}, "a_new_way=3"),
    ],
)
@torch.no_grad()
def test_what_attention_does_not_do_is_refused(model, prompt, cache, arguments, message):
    with pytest.raises(kvit.KernelMissing, match=rf"layer 0 \(LlamaAttention\) asks for {message}"):
        model(prompt, past_key_values=cache, **arguments)
    assert_unused(cache)


@torch.no_grad()
def test_dropout_is_refused(prompt):
    model = make_model("llama", attention_dropout=0.1).train()
    with pytest.raises(kvit.KernelMissing, match=r"dropout=0.1.*model.eval\(\)"):
        model(prompt, past_key_values=KvitCache(model.config, 8))


def test_gradients_are_refused(model, prompt, cache):
    with pytest.raises(kvit.KernelMissing, match=r"wants gradients.*torch.no_grad\(\)"):
        model(prompt, past_key_values=cache)
    assert_unused(cache)


@torch.no_grad()
def test_masks_that_are_not_of_padding_are_refused(model, prompt, cache):
    length = prompt.shape[1]
    with pytest.raises(kvit.ShapeError, match=rf"attention_mask has shape \[1, 1, {length}, {length}\]"):
        model(prompt, past_key_values=cache, attention_mask=torch.zeros(1, 1, length, length, dtype=torch.bfloat16))
    with pytest.raises(kvit.ShapeError, match=f"attention_mask is for 3 tokens, and there are {length}"):
        model(prompt, past_key_values=cache, attention_mask=torch.ones(1, 3))
    assert_unused(cache)


@torch.no_grad()
def test_attention_to_later_tokens_is_refused(model, prompt, cache):
    with pytest.raises(kvit.KernelMissing, match="mask by bidirectional_mask_function"):
        model(prompt, past_key_values=cache, is_causal=False)
    k = torch.zeros(1, 2, 5, 64, dtype=torch.bfloat16)
    with pytest.raises(kvit.KernelMissing, match="asks for is_causal=False"):  # a module that makes no mask
        attend(SimpleNamespace(is_causal=False), k, *cache.update(k, k, 0), None)
    assert_unused(cache)


@torch.no_grad()
def test_a_mask_may_not_change_its_mind(model, prompt, cache):
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0
    model(prompt, past_key_values=cache, attention_mask=mask)
    longer = torch.nn.functional.pad(mask, (0, 1), value=1)
    other = longer.flip(1).contiguous()
    for changed in (other, torch.ones_like(longer), None):
        with pytest.raises(kvit.ShapeError, match=f"does not hide the same of the {prompt.shape[1]} tokens"):
            model(prompt[:, :1], past_key_values=cache, attention_mask=changed)
    model(prompt[:, :1], past_key_values=cache, attention_mask=longer)
    assert [len(layer.sequences[0]) for layer in cache.layers] == [prompt.shape[1] - 1] * 2


@torch.no_grad()
def test_another_batch_needs_a_reset(model, prompt, cache):
    model(prompt, past_key_values=cache)
    with pytest.raises(kvit.ShapeError, match=r"a batch of 2 for a cache of 1 sequences; reset\(\)"):
        model(prompt.expand(2, -1), past_key_values=cache)


@torch.no_grad()
def test_crop_takes_what_there_is(model, prompt, cache):
    model(prompt, past_key_values=cache)
    for tokens in (1, -prompt.shape[1] - 1):
        with pytest.raises(kvit.ShapeError, match=re.escape(f"crop({tokens}) of {prompt.shape[1]} tokens")):
            cache.crop(tokens)
    assert cache.get_seq_length() == prompt.shape[1]


def test_pages_do_not_leave_their_device(cache):
    for move in (cache.layers[0].offload, cache.layers[0].prefetch):
        with pytest.raises(kvit.KernelMissing, match="stays on its device"):
            move()


@torch.no_grad()
def test_k_of_another_layer_is_not_stored_again(cache):
    states = torch.zeros(1, 2, 5, 64, dtype=torch.bfloat16)
    for layer_idx in (1, 0):
        key, value = cache.update(states.clone(), states.clone(), layer_idx)
        attend(SimpleNamespace(is_causal=True, layer_idx=layer_idx), states, key, value, None)
    with pytest.raises(kvit.KernelMissing, match="to K and V of another one, and the config says nothing of it"):
        attend(SimpleNamespace(is_causal=True, layer_idx=1), states, key, value, None)
    assert cache.get_seq_length() == len(cache.layers[0].sequences[0]) == 5


@torch.no_grad()
def test_rows_that_are_not_evenly_spaced_are_copied(cache):
    # Head after head: the tokens of the second sequence do not follow those of the first at the same distance.
    rng = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(2, 2, 5, 64, generator=rng).to(torch.bfloat16) for _ in range(3))
    with pytest.raises(RuntimeError, match="view"):
        q.transpose(1, 2).view(-1, 2, 64)
    module = SimpleNamespace(is_causal=True, layer_idx=0)
    found, _ = attend(module, q, *cache.update(k, v, 0), None)
    want = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    torch.testing.assert_close(found.float(), want.transpose(1, 2), rtol=0, atol=0.03)
