"""Whole models of transformers with attn_implementation="kvit": logits and text are those of their own attention."""

import copy

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

from kvit.transformers import KvitCache
from support.language_models import FAMILIES, NEW_TOKENS, in_float32, left_padded, make_model, prompts, torch_device

pytestmark = [pytest.mark.interop, pytest.mark.parametrize("family", FAMILIES)]


@pytest.fixture(autouse=True)
def _device_of_pytorch(device):
    if device != "host" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use: this PyTorch sees none")


def new_cache(model, **options):
    return KvitCache(model.config, 24, 16, **options)  # pages of 16: the prompts end inside a page and cross several


def continued(model, tokens, **options):
    """What greedy generation, or what options ask for, adds to tokens."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    return model.generate(tokens, **options)[:, tokens.shape[1] :]


@torch.no_grad()
def logits(model, tokens, pieces, cache=None, **options):
    """Of every token, given to the model in pieces: the first is prefill, later ones find K and V in the cache."""
    cache = new_cache(model) if cache is None else cache
    parts = tokens.split(pieces, dim=1)
    return torch.cat([model(part, past_key_values=cache, **options).logits for part in parts], dim=1).float()


@torch.no_grad()
def tolerance(model, exact, tokens):
    """How far logits in bfloat16 may lie from those of float32.

    Every product of the model is rounded to bfloat16, whatever computes attention; "eager" shows what that comes to.
    kvit rounds less inside attention (scores stay in float32), not more, but elsewhere: other roundings of the same
    sizes, whose largest sum over all logits may be half as large again.
    """
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    return 1.5 * (eager(tokens).logits.float() - exact(tokens).logits).abs().max().item()


def test_logits_are_those_of_float32_but_for_rounding(family, device):
    model = make_model(family, device)
    exact = in_float32(model)
    tokens = prompts(family, device)[0]
    bound = tolerance(model, exact, tokens)
    with torch.no_grad():
        want = exact(tokens).logits
    for pieces in ([33], [20, 1, 1, 11]):  # at once; prefill, two steps, several tokens at once
        error = (logits(model, tokens, pieces) - want).abs().max().item()
        assert error <= bound, f"{error} > {bound} in pieces of {pieces}"
    assert bound < want.std() / 8  # the bound means something


def test_greedy_text_is_that_of_eager(family, device):
    model = make_model(family, device)
    exact, eager = in_float32(model), copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    for prompt in prompts(family, device):
        want = continued(exact, prompt)
        whole = torch.cat([prompt, want], dim=1)
        with torch.no_grad():
            best = exact(whole).logits[:, prompt.shape[1] - 1 : -1].topk(2).values
        # Of two logits one may fall and one rise by the tolerance: beyond that no token can change.
        assert (best[..., 0] - best[..., 1]).min() > 2 * tolerance(model, exact, whole)
        assert torch.equal(continued(eager, prompt), want)
        assert torch.equal(continued(model, prompt, past_key_values=new_cache(model)), want)


def test_a_batch_of_prompts_of_any_lengths_is_each_alone(family, device):
    model = make_model(family, device)
    alone = [continued(model, prompt, past_key_values=new_cache(model)) for prompt in prompts(family, device)]
    tokens, mask = left_padded(prompts(family, device))
    cache = new_cache(model)
    assert torch.equal(continued(model, tokens, attention_mask=mask, past_key_values=cache), torch.cat(alone))
    # Padding takes no room: only real tokens are stored, all but the last of each sequence.
    assert [len(sequence) for sequence in cache.layers[0].sequences] == [n + NEW_TOKENS - 1 for n in (33, 5, 18)]


@pytest.mark.parametrize("pair", [("int8", "int8"), ("int8", "int4"), ("int4", "int4"), ("float8_e4m3",) * 2], ids=str)
def test_quantised_caches_move_logits_as_their_codecs_say(family, device, pair):
    model = make_model(family, device)
    exact = in_float32(model)
    tokens = prompts(family, device)[0]
    with torch.no_grad():
        want = exact(tokens).logits
    k, v = pair
    got = logits(model, tokens, [20, 1, 12], new_cache(model, k=k, v=v))
    # docs/quantisation.md, Gaussian rows of 64: relative RMS errors of attention's output. Two layers add theirs, and
    # logits are as far off as the hidden states that they are products of.
    of_attention = {"int8int8": 0.0079, "int8int4": 0.09, "int4int4": 0.129, "float8_e4m3float8_e4m3": 0.04}[k + v]
    rounding = tolerance(model, exact, tokens)
    error = (got - want).square().mean().sqrt().item()
    assert error <= 2 * of_attention * want.std().item() + rounding
    assert k == "int8" == v or error > rounding / 3  # it is the quantised cache that was read


def test_beams_share_pages_and_give_the_text_of_eager(family, device):
    model = make_model(family, device)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    prompt = prompts(family, device)[0]
    cache = new_cache(model)
    found = continued(model, prompt, num_beams=3, past_key_values=cache)
    assert torch.equal(found, continued(eager, prompt, num_beams=3))
    paged = cache.layers[0].paged
    assert paged.num_pages - paged.num_free_pages < 3 * 3  # three beams of 44 tokens would fill 3 pages each


def test_rejected_guesses_are_forgotten(family, device):
    model = make_model(family, device)
    prompt = prompts(family, device)[0]
    want = continued(model, prompt, past_key_values=new_cache(model))
    cache = new_cache(model)
    assert torch.equal(continued(model, prompt, prompt_lookup_num_tokens=3, past_key_values=cache), want)
    assert len(cache.layers[0].sequences[0]) == cache.get_seq_length() <= 33 + NEW_TOKENS


def test_a_prompt_in_chunks_is_the_prompt(family, device):
    model = make_model(family, device)
    prompt = prompts(family, device)[0]
    want = continued(model, prompt, past_key_values=new_cache(model))
    assert torch.equal(continued(model, prompt, prefill_chunk_size=7, past_key_values=new_cache(model)), want)


def test_a_prefix_is_computed_once_for_many_requests(family, device):
    model = make_model(family, device)
    prompt = prompts(family, device)[0]
    want = continued(model, prompt, past_key_values=new_cache(model))
    prefix = new_cache(model)
    with torch.no_grad():
        model(prompt[:, :20], past_key_values=prefix)
    free = prefix.layers[0].paged.num_free_pages
    twins = [prefix.fork(), copy.deepcopy(prefix)]
    assert prefix.layers[0].paged.num_free_pages == free
    for cache in twins:
        assert torch.equal(continued(model, prompt, past_key_values=cache), want)
    assert prefix.get_seq_length() == len(prefix.layers[0].sequences[0]) == 20


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_work_goes_to_the_current_stream_of_pytorch(family, device):
    model = make_model(family, device)
    prompt = prompts(family, device)[0]
    want = continued(model, prompt, past_key_values=new_cache(model))
    stream = torch.cuda.Stream(torch_device(device))
    stream.wait_stream(torch.cuda.current_stream(torch_device(device)))
    with torch.cuda.stream(stream):
        found = continued(model, prompt, past_key_values=new_cache(model))
    stream.synchronize()
    assert torch.equal(found, want)
