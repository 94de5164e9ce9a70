"""BLOOM and MPT, whose attention transformers computes by itself: prepare() has them ask for kvit's."""

import copy

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

import kvit
from kvit.transformers import KvitCache, prepare
from kvit.transformers.prepare import slopes_of
from support.language_models import PREPARED, SHAPE, left_padded, make_model, make_prompt
from support.model_families import FAMILIES

pytestmark = pytest.mark.interop


def made(name, attention="kvit"):
    return FAMILIES[name].make(name, "host", attention)


def new_cache(model):
    return KvitCache(model.config, 24, 16)


def assert_unused(cache):
    assert cache.get_seq_length() == 0
    assert cache.paged is None or cache.paged.num_free_pages == 24


def of_power(heads):
    """Slopes of Press et al., for as many heads as a power of two."""
    return [2.0 ** (-8 * i / heads) for i in range(1, heads + 1)]


@pytest.mark.parametrize("heads", [1, 6, 8, 24, 64, 112])
def test_slopes_are_those_of_both_models(heads):
    """112 heads, as BLOOM has, and other numbers between powers of two: slopes of twice as many heads fill up."""
    narrow = of_power(2 ** (heads.bit_length() - 1))
    wide = of_power(2 * len(narrow))
    torch.testing.assert_close(slopes_of(heads), torch.tensor((narrow + wide[::2])[:heads]))
    of_mpt = build_mpt_alibi_tensor(heads, 9)  # biases of the last 9 keys for the last query
    torch.testing.assert_close(-slopes_of(heads)[:, None] * torch.arange(8, -1, -1), of_mpt[:, 0])


@pytest.mark.parametrize("name", PREPARED)
@torch.no_grad()
def test_a_padded_batch_and_its_fork_have_the_distances_of_each_sequence_alone(name):
    model = made(name)
    rows = [make_prompt(length, length) for length in (25, 14)]
    tokens, mask = left_padded(rows)
    cache = new_cache(model)
    model(tokens[:, :20], past_key_values=cache, attention_mask=mask[:, :20])
    twin = cache.fork()
    for each in (cache, twin):
        together = model(tokens[:, 20:], past_key_values=each, attention_mask=mask).logits
        for row, found in zip(rows, together, strict=True):
            alone = model(row, past_key_values=new_cache(model)).logits[0, -5:]
            torch.testing.assert_close(found, alone, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", PREPARED)
@torch.no_grad()
def test_beams_and_prompt_lookup_give_the_text_of_eager(name):
    model, eager = made(name), made(name, "eager")
    prompt = make_prompt(33, FAMILIES[name].seed)
    for how in ({"num_beams": 2}, {"prompt_lookup_num_tokens": 3}):
        options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, **how}
        want = eager.generate(prompt, **options)
        assert torch.equal(model.generate(prompt, past_key_values=new_cache(model), **options), want)


@torch.no_grad()
def test_padding_behind_tokens_is_no_distance_in_bloom_and_refused_in_mpt():
    """BLOOM counts the tokens of a mask. MPT counts places: a distance across padding would be another one."""
    rows = [make_prompt(25, 1), make_prompt(14, 2)]
    tokens = torch.cat([rows[0], torch.nn.functional.pad(rows[1], (0, 11))])
    mask = (tokens != 0).long()
    behind = make_prompt(3, 3).repeat(2, 1)
    for name in PREPARED:
        model = made(name)
        cache = new_cache(model)
        if name == "mpt":
            with pytest.raises(kvit.KernelMissing, match="MPT's ALiBi and a padded batch has padding behind tokens"):
                model(tokens, past_key_values=cache, attention_mask=mask)
            assert_unused(cache)
            continue
        model(tokens, past_key_values=cache, attention_mask=mask)
        whole = torch.nn.functional.pad(mask, (0, 3), value=1)
        found = model(behind, past_key_values=cache, attention_mask=whole).logits[1]
        alone = model(torch.cat([rows[1], behind[:1]], 1), past_key_values=new_cache(model)).logits[0, -3:]
        torch.testing.assert_close(found, alone, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", PREPARED)
def test_what_is_prepared_is_the_same_model_with_the_same_parameters(name):
    model = made(name, "eager")
    before = {key: parameter.data_ptr() for key, parameter in model.named_parameters()}
    assert prepare(model) is model and prepare(model) is model
    assert {key: parameter.data_ptr() for key, parameter in model.named_parameters()} == before
    assert model.config._attn_implementation == "kvit"
    assert model.config.use_cache and model.generation_config.use_cache  # MPT's configs say False
    twin, prompt = copy.deepcopy(model), make_prompt(9, 1)
    with torch.no_grad():
        want = model(prompt, past_key_values=new_cache(model)).logits
        assert torch.equal(twin(prompt, past_key_values=new_cache(twin)).logits, want)


@pytest.mark.parametrize("name", PREPARED)
@torch.no_grad()
def test_a_model_that_asks_nobody_is_refused_and_told_of_prepare(name):
    """transformers lets a config say "kvit" that no attention reads: of layer 1 on, K and V of layer 0 are unasked."""
    config = AutoConfig.for_model(name, **SHAPE)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="kvit", dtype=torch.bfloat16).eval()
    cache = new_cache(model)
    for _ in range(2):
        with pytest.raises(kvit.KernelMissing, match=r"layer 0 .* computes attention by itself.*prepare\(model\)"):
            model(make_prompt(5, 1), past_key_values=cache)
        assert_unused(cache)
    assert prepare(model)(make_prompt(5, 1), past_key_values=cache).logits.shape == (1, 5, 16)
    plain = made(name, "eager")
    with pytest.raises(TypeError, match=r"its config says 'eager'.*kvit\.transformers\.prepare\(model\)"):
        plain(make_prompt(5, 1), past_key_values=new_cache(plain))


@torch.no_grad()
def test_a_pass_that_ended_before_a_layer_attended_may_be_repeated():
    """An error between the K and V of a layer and its attention is no sign of a model that asks nobody."""
    model = make_model("llama")
    prompt = make_prompt(9, 1)
    want = model(prompt, past_key_values=new_cache(model)).logits
    for index in (0, 1):
        cache = new_cache(model)
        model.model.layers[index].self_attn.is_causal = False
        with pytest.raises(kvit.KernelMissing, match="is_causal"):
            model(prompt, past_key_values=cache)
        model.model.layers[index].self_attn.is_causal = True
        if index == 1:
            with pytest.raises(kvit.KvitError, match="ended before layer 1 attended"):
                model(prompt, past_key_values=cache)
        assert torch.equal(model(prompt, past_key_values=cache).logits, want)


def test_other_models_are_not_prepared():
    with pytest.raises(kvit.KernelMissing, match="no attention layers for a LlamaForCausalLM.*attn_implementation="):
        prepare(make_model("llama"))


def test_a_bloom_that_adds_up_in_parts_stays_as_it_is():
    config = AutoConfig.for_model("bloom", **SHAPE, pretraining_tp=2, slow_but_exact=True)
    model = AutoModelForCausalLM.from_config(config)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(kvit.KernelMissing, match="adds up its outputs in 2 parts.*slow_but_exact=False"):
        prepare(model)
    assert [type(module) for module in model.modules()] == classes
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", PREPARED)
def test_what_attention_does_not_do_is_refused_before_anything_is_stored(name):
    model = made(name)
    cache, prompt = new_cache(model), make_prompt(5, 1)
    with torch.no_grad():
        with pytest.raises(kvit.KernelMissing, match="output_attentions"):
            model(prompt, past_key_values=cache, output_attentions=True)
        assert_unused(cache)
        with pytest.raises(TypeError, match="no KvitCache holds"):
            model(prompt)
    with pytest.raises(kvit.KernelMissing, match="wants gradients"):
        model(prompt, past_key_values=cache)
    assert_unused(cache)
    for layer in model.modules():
        if hasattr(layer, "attention_dropout"):
            layer.attention_dropout.p = 0.5
        elif hasattr(layer, "attn_dropout_p"):
            layer.attn_dropout_p = 0.5
    with torch.no_grad(), pytest.raises(kvit.KernelMissing, match="asks for dropout=0.5"):
        model.train()(prompt, past_key_values=cache)
    assert_unused(cache)
