"""AssistantCache: assisted generation gives the model's own text, whoever drafts, and drafts lie in kvit's pages."""

import copy

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

import kvit
from kvit.transformers import AssistantCache, DecodeGraphs, KvitCache
from support.language_models import NEW_TOKENS, make_model, prompts

pytestmark = pytest.mark.interop


@pytest.fixture(autouse=True)
def _device_of_pytorch(request):
    is_on_gpu = "device" in request.fixturenames and request.getfixturevalue("device") != "host"
    if is_on_gpu and not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use: this PyTorch sees none")


def new_cache(config):
    return KvitCache(config, 24, 16)


def continued(model, tokens, cache, **options):
    return model.generate(tokens, past_key_values=cache, max_new_tokens=NEW_TOKENS, do_sample=False, **options)


# An assistant whose every draft is right, and one whose drafts are those of another model: most are rejected.
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_text_is_that_of_the_model_alone(family, device):
    model, assistant = make_model("llama", device), make_model(family, device)
    cache, drafts = new_cache(model.config), new_cache(assistant.config)
    with AssistantCache(assistant, drafts):
        for prompt in prompts("llama", device)[:2]:  # the second begins with empty caches
            cache.reset()
            want = continued(model, prompt, new_cache(model.config))
            assert torch.equal(continued(model, prompt, cache, assistant_model=assistant), want)
            for each in (cache, drafts):  # what was rejected is gone
                length = each.get_seq_length()
                assert prompt.shape[1] < length == len(each.layers[0].sequences[0]) <= prompt.shape[1] + NEW_TOKENS


def test_an_assistant_with_another_attention_needs_no_cache_of_ours(device):
    model, assistant = make_model("llama", device), make_model("qwen2", device, "eager")
    prompt = prompts("llama", device)[0]
    want = continued(model, prompt, new_cache(model.config))
    assert torch.equal(continued(model, prompt, new_cache(model.config), assistant_model=assistant), want)


def test_a_model_that_leaves_early_drafts_for_itself(device):
    model = make_model("llama", device)
    prompt = prompts("llama", device)[0]
    want = continued(model, prompt, new_cache(model.config))
    early = copy.deepcopy(model.config)
    early.num_hidden_layers = 1
    drafts = new_cache(early)
    with AssistantCache(model, drafts):
        assert torch.equal(continued(model, prompt, new_cache(model.config), assistant_early_exit=1), want)
    assert drafts.get_seq_length() > prompt.shape[1]


def test_drafts_may_come_through_graphs():
    model, assistant = make_model("llama"), make_model("qwen2")
    prompt = prompts("llama")[0]
    want = continued(model, prompt, new_cache(model.config))
    drafts = new_cache(assistant.config)
    with AssistantCache(assistant, drafts), DecodeGraphs(assistant, drafts) as graphs:
        assert torch.equal(continued(model, prompt, new_cache(model.config), assistant_model=assistant), want)
    assert graphs.num_steps > NEW_TOKENS  # more drafts than tokens: most were rejected


def test_a_call_that_names_a_cache_keeps_it():
    assistant = make_model("qwen2")
    prompt = prompts("qwen2")[0]
    drafts, own = new_cache(assistant.config), new_cache(assistant.config)
    with AssistantCache(assistant, drafts):
        continued(assistant, prompt, own)
    assert (drafts.get_seq_length(), own.get_seq_length()) == (0, 33 + NEW_TOKENS - 1)


def test_a_block_ends_with_the_generate_that_there_was():
    assistant = make_model("qwen2")
    giver = AssistantCache(assistant, new_cache(assistant.config))
    with giver:
        assert "generate" in vars(assistant)
        with pytest.raises(kvit.KvitError, match="the block is open already"), giver:
            pass
    assert "generate" not in vars(assistant)
    assistant.generate = own = assistant.generate
    with pytest.raises(ZeroDivisionError), giver:
        raise ZeroDivisionError
    assert vars(assistant)["generate"] is own
    with pytest.raises(TypeError, match="cache is a NoneType; give the kvit.transformers.KvitCache of the assistant"):
        AssistantCache(assistant, None)
