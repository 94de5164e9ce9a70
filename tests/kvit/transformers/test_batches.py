"""Batches of models whose q, k and v have gaps between one sequence and the next: they are computed, not refused."""

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", reason="needs pip install '.[test-interop]'")

import torch

import kvit
from kvit.transformers import KvitCache
from support.language_models import WITH_GAPS, in_float32, left_padded, make_model, make_prompt

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("padded", [False, True], ids=["of one length", "padded"])
@pytest.mark.parametrize("family", WITH_GAPS)
@torch.no_grad()
def test_a_batch_is_each_of_its_prompts(family, padded):
    model = make_model(family)
    rows = [make_prompt(length, seed) for seed, length in enumerate((9, 5, 7) if padded else (9, 9, 9))]
    tokens, mask = left_padded(rows)
    options = {"attention_mask": mask} if padded else {}
    found = model(tokens, past_key_values=KvitCache(model.config, 8, 16), **options).logits.float()
    exact = in_float32(model)
    model.set_attn_implementation("eager")
    for row, logits in zip(rows, found, strict=True):
        want = exact(row).logits[0]
        # As in test_models.py: half as far again as "eager" in bfloat16, of each prompt alone.
        bound = 1.5 * (model(row).logits[0].float() - want).abs().max().item()
        assert (logits[-row.shape[1] :] - want).abs().max().item() <= bound


def windowed(size, **options):
    return make_model("mistral", sliding_window=size, **options)


@torch.no_grad()
def test_a_window_that_no_sequence_can_outgrow_changes_nothing():
    prompt = make_prompt(18, 1)
    free, model = make_model("mistral", sliding_window=None), windowed(64)
    want = free(prompt, past_key_values=KvitCache(free.config, 4, 16)).logits
    cache = KvitCache(model.config, 4, 16)  # 64 tokens
    found = [model(part, past_key_values=cache).logits for part in prompt.split([9, 1, 8], dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), want, rtol=0, atol=0.05)
    with pytest.raises(kvit.KernelMissing, match="64 at most in these pages.*a cache of 3 pages, which none outgrows"):
        KvitCache(windowed(63).config, 4, 16)


@torch.no_grad()
def test_padding_counts_in_a_window():
    # transformers measures windows in places, padding included: 20 places of 18 tokens do not fit into 18.
    model = windowed(18)
    tokens, mask = left_padded([make_prompt(18, 1), make_prompt(3, 2)])
    cache = KvitCache(model.config, 1, 18)
    tokens = torch.nn.functional.pad(tokens, (2, 0))
    mask = torch.nn.functional.pad(mask, (2, 0))
    with pytest.raises(kvit.KernelMissing, match="a window of 18 tokens and the sequences have 20, padding included"):
        model(tokens, past_key_values=cache, attention_mask=mask)
    assert cache.get_seq_length() == 0


@torch.no_grad()
def test_chunks_that_no_sequence_can_outgrow_change_nothing():
    model = make_model("llama4_text", attention_chunk_size=64, num_local_experts=1, num_experts_per_tok=1)
    prompt = make_prompt(18, 1)
    found = model(prompt, past_key_values=KvitCache(model.config, 4, 16)).logits.float()
    want = in_float32(model)(prompt).logits
    model.set_attn_implementation("eager")
    bound = 1.5 * (model(prompt).logits.float() - want).abs().max().item()
    assert (found - want).abs().max().item() <= bound
    with pytest.raises(kvit.KernelMissing, match="chunked_attention"):
        KvitCache(model.config, 5, 16)
