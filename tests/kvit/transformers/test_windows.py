"""Models with windows, chunks, capped scores and sinks: kvit's attention is their own."""

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

import kvit
from kvit.transformers import KvitCache
from support.language_models import in_float32, make_model, make_prompt, torch_device

pytestmark = pytest.mark.interop

# Windows and chunks of fewer tokens than the prompts have, and caps below many scores: all of them matter.
MODELS = {
    "mistral": {"sliding_window": 9},
    "gemma2": {"sliding_window": 9, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 16},
    "gpt_oss": {"sliding_window": 9, "num_local_experts": 2, "num_experts_per_tok": 2},
    "gemma3_text": {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.fixture(autouse=True)
def _device_of_pytorch(device):
    if device != "host" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use: this PyTorch sees none")


@torch.no_grad()
def logits(model, tokens, pieces, cache, masks=None):
    """Of every token, given to the model in pieces."""
    found, end = [], 0
    for part in tokens.split(pieces, dim=1):
        end += part.shape[1]
        mask = {} if masks is None else {"attention_mask": masks[:, :end]}
        found.append(model(part, past_key_values=cache, **mask).logits)
    return torch.cat(found, dim=1).float()


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_logits_are_those_of_float32_but_for_rounding(family, device):
    model = make_model(family, device, **MODELS[family])
    exact, tokens = in_float32(model), make_prompt(33, 3, device)
    want = exact(tokens).logits
    model.set_attn_implementation("eager")
    bound = 1.5 * (model(tokens).logits.float() - want).abs().max().item()
    model.set_attn_implementation("kvit")
    for pieces in ([33], [20, 1, 1, 11]):
        error = (logits(model, tokens, pieces, KvitCache(model.config, 24, 16)) - want).abs().max().item()
        assert error <= bound, f"{error} > {bound} in pieces of {pieces}"
    assert bound < want.std() / 4  # the bound means something


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
@torch.no_grad()
def test_a_window_without_its_word_would_be_seen(family, device, monkeypatch):
    # What the test above would show of an attention that forgot the window: more than rounding.
    model = make_model(family, device, **MODELS[family])
    tokens = make_prompt(33, 3, device)
    right = logits(model, tokens, [33], KvitCache(model.config, 24, 16))
    plain = kvit.transformers.layer.attention
    monkeypatch.setattr(kvit.transformers.layer, "attention", lambda *a, window=None, **k: plain(*a, **k))
    assert (logits(model, tokens, [33], KvitCache(model.config, 24, 16)) - right).abs().max() > 0.1


@torch.no_grad()
def test_padding_on_the_left_moves_no_window(device):
    model = make_model("mistral", device, **MODELS["mistral"])
    rows = [make_prompt(length, length, device) for length in (25, 14)]
    tokens = torch.cat([torch.nn.functional.pad(row, (25 - row.shape[1], 0)) for row in rows])
    together = logits(model, tokens, [20, 5], KvitCache(model.config, 24, 16), (tokens != 0).long())
    for row, found in zip(rows, together, strict=True):
        alone = logits(model, row, [row.shape[1]], KvitCache(model.config, 24, 16))[0]
        torch.testing.assert_close(found[25 - row.shape[1] :], alone, rtol=0, atol=0.1)


@torch.no_grad()
def test_padding_between_tokens_and_a_window_are_refused(device):
    model = make_model("mistral", device, **MODELS["mistral"])
    mask = torch.ones(1, 12, dtype=torch.long, device=torch_device(device))
    mask[0, 7:9] = 0
    with pytest.raises(kvit.KernelMissing, match="pad on the left"):
        model(make_prompt(12, 1, device), past_key_values=KvitCache(model.config, 24, 16), attention_mask=mask)


def test_sinks_are_read_again_when_they_change():
    layer = KvitCache(make_model("gpt_oss", **MODELS["gpt_oss"]).config, 8).layers[0]
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    first = layer.sinks(parameter)
    assert first.dtype == torch.float32 and layer.sinks(parameter) is first
    with torch.no_grad():
        parameter.mul_(2)
    assert layer.sinks(parameter).tolist() == [2.0] * 4
