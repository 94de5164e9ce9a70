"""Batches of models whose q, k and v have gaps between one sequence and the next: they are computed, not refused."""

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

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


@pytest.mark.parametrize("chunk", [64, 7])  # of more tokens than the prompt has, and of fewer
@torch.no_grad()
def test_chunks_are_those_of_transformers(chunk):
    model = make_model("llama4_text", attention_chunk_size=chunk, num_local_experts=1, num_experts_per_tok=1)
    prompt = make_prompt(18, 1)
    cache = KvitCache(model.config, 4, 16)
    pieces = [model(part, past_key_values=cache).logits for part in prompt.split([9, 1, 8], dim=1)]
    found, want = torch.cat(pieces, dim=1).float(), in_float32(model)(prompt).logits
    model.set_attn_implementation("eager")
    bound = 1.5 * (model(prompt).logits.float() - want).abs().max().item()
    assert (found - want).abs().max().item() <= bound
    assert bound < want.std() / 4  # the bound means something
