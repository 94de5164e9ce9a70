"""The families of models that people run: kvit's attention gives their logits, and the text of "eager".

Each asks something else of attention: groups of many sizes, windows, chunks, caps, sinks, latent rows, K wider than V,
layers that keep a state. docs/models.md says which test stands for which model.
"""

import copy

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

import kvit
from kvit.transformers import KvitCache
from support.language_models import in_float32, left_padded, make_prompt
from support.model_families import FAMILIES

pytestmark = pytest.mark.interop


@pytest.fixture(autouse=True)
def _device_of_pytorch(device):
    if device != "host" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use: this PyTorch sees none")


def new_cache(model):
    return KvitCache(model.config, 24, 16)


@torch.no_grad()
def logits(model, tokens, pieces, cache):
    """Of every token, given to the model in pieces."""
    return torch.cat([model(part, past_key_values=cache).logits for part in tokens.split(pieces, 1)], 1).float()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_family_gives_the_logits_and_the_text_of_eager(name, device):
    family = FAMILIES[name]
    model = family.make(name, device)
    eager = family.make(name, device, "eager")
    exact = in_float32(eager)
    prompt = make_prompt(33, family.seed, device)
    whole = prompt
    for _ in range(family.tokens):
        whole = torch.cat([whole, exact(whole).logits[:, -1:].argmax(-1)], 1)
    want = exact(whole).logits
    # Half as much again as what "eager" loses to rounding: see tolerance() in test_models.py.
    bound = 1.5 * (eager(whole).logits.float() - want).abs().max().item()
    for pieces in ([33], list(family.pieces)):
        error = (logits(model, prompt, pieces, new_cache(model)) - want[:, :33]).abs().max().item()
        assert error <= bound, f"{error} > {bound} in pieces of {pieces}"
    # Of two logits one may fall and one rise by the bound: the text is certain, and it is that of "eager".
    best = want[:, 32:-1].topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 2 * bound
    found = model.generate(
        prompt, past_key_values=new_cache(model), max_new_tokens=family.tokens, do_sample=False
    )  # fmt: skip
    assert torch.equal(found, whole)


@pytest.mark.parametrize("name", ["deepseek_v3", "mimo_v2_flash", "nemotron_h", "falcon_h1"])
@torch.no_grad()
def test_padded_batches_forks_and_beams_of_rows_that_are_not_usual(name, device):
    """Latent rows, V of fewer channels than K, layers with a state beside them, and within them."""
    model = FAMILIES[name].make(name, device)
    rows = [make_prompt(length, length, device) for length in (25, 14)]
    tokens, mask = left_padded(rows)
    cache = new_cache(model)
    model(tokens[:, :20], past_key_values=cache, attention_mask=mask[:, :20])
    twin = cache.fork()
    for each in (cache, twin):
        together = model(tokens[:, 20:], past_key_values=each, attention_mask=mask).logits
        for row, found in zip(rows, together, strict=True):
            alone = logits(model, row, [row.shape[1] - 5, 5], new_cache(model))[0, -5:]
            torch.testing.assert_close(found.float(), alone, rtol=0, atol=0.1)
    prompt = make_prompt(33, FAMILIES[name].seed, device)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    beams = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(
        model.generate(prompt, past_key_values=new_cache(model), **beams), eager.generate(prompt, **beams)
    )


@torch.no_grad()
def test_latent_rows_are_stored_once_and_never_expanded(device):
    model = FAMILIES["deepseek_v3"].make("deepseek_v3", device)
    cache = new_cache(model)
    model(make_prompt(33, 1, device), past_key_values=cache)
    for layer in cache.layers:
        view = layer.stored.view
        assert view.shares_kv and (view.kv_heads, view.k_dim, view.v_dim) == (1, 512 + 64, 512)
    # K 192 and V 128 of 4 heads would be 2.2 times that.
    assert cache.nbytes == cache.paged.nbytes == 2 * 24 * 16 * (512 + 64) * 2


@torch.no_grad()
def test_a_weight_that_cannot_take_queries_to_latent_rows_is_refused_by_name(device):
    model = FAMILIES["deepseek_v3"].make("deepseek_v3", device)

    class Adapter(torch.nn.Linear):
        pass

    layer = model.model.layers[0].self_attn
    adapter = Adapter(layer.kv_b_proj.in_features, layer.kv_b_proj.out_features, bias=False)
    layer.kv_b_proj = adapter.to(layer.kv_b_proj.weight)
    with pytest.raises(kvit.KernelMissing, match=r"layer 0 \(DeepseekV3Attention\) .* its kv_b_proj is a Adapter"):
        model(make_prompt(5, 1, device), past_key_values=new_cache(model))
    with pytest.raises(kvit.DtypeError, match="stored as bfloat16 alone"):
        FAMILIES["deepseek_v3"].make("deepseek_v3", device)(
            make_prompt(5, 1, device), past_key_values=KvitCache(model.config, 8, k="int8", v="int8")
        )
