"""Queries that read entries of many tokens beside a window: one softmax, and states that follow the sequences."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

import kvit
from kvit.transformers import KvitCache
from kvit.transformers.attention import attend
from kvit.transformers.padding import ENTRIES_MASK
from support.language_models import left_padded, make_prompt
from support.model_families import FAMILIES

pytestmark = pytest.mark.interop

NAME = "deepseek_v4"  # layer 0 has a window of 9, layer 1 entries of 2 tokens beside it, layer 2 all entries of 8


@pytest.fixture(scope="module")
def model():
    return FAMILIES[NAME]._replace(changes={**FAMILIES[NAME].changes, "head_dim": 64}).make(NAME, "host")


def new_cache(model):
    return KvitCache(model.config, 24, 16)


def states(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def sums_of(q, rows, seen, sinks):
    """Attention in float32 to the rows, K and V in one, that `seen` [batch, queries, rows] shows, and to sinks."""
    scores = (q.float() @ rows.float().transpose(2, 3) * 0.125).masked_fill(~seen[:, None], float("-inf"))
    sunk = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], 3).softmax(3)[..., :-1]
    return (sunk @ rows.float()).transpose(1, 2)


@pytest.mark.parametrize("layer, entries", [(0, 0), (1, 25), (2, 5), (1, 0)])
@torch.no_grad()
def test_tokens_and_entries_are_in_one_softmax(model, layer, entries):
    """Two sequences of 30 tokens, of which queries see the last 9, and entries hidden from them at random: of all 25
    those that see most see 14, which is what index_topk says. One query sees no entry at all.
    """
    cache = new_cache(model)
    q, rows, made = states(1, 2, 4, 30, 64), states(2, 2, 1, 30, 64), states(3, 2, 1, entries, 64)
    order = torch.rand(2, 30, entries, generator=torch.Generator().manual_seed(4)).argsort(2)
    shown = order < torch.randint(0, 15, (2, 30, 1), generator=torch.Generator().manual_seed(5))
    shown[0, 3] = False
    mask = torch.zeros(2, 1, 30, 30)  # of a layer without entries
    if entries:
        mask = torch.zeros(2, 1, 30, entries).masked_fill(~shown[:, None], float("-inf"))
    at = torch.arange(30)
    seen = ((at <= at[:, None]) & (at > at[:, None] - 9)).expand(2, 30, 30)
    sinks = states(6, 4).float()
    for now in range(layer + 1):  # the ones before it store their tokens in the same pages
        said = {}
        key = torch.cat([cache.update(rows, rows, now, kwargs=said)[0], made], 2) if now == layer else rows
        if now < layer:
            cache.update(rows, rows, now, kwargs=said)
        hides = mask if now == layer else torch.zeros(2, 1, 30, 30)
        module = SimpleNamespace(is_causal=True, layer_idx=now)
        found, _ = attend(
            module, q, key, key, hides.to(ENTRIES_MASK), sliding_window=9, s_aux=sinks, scaling=0.125, **said
        )  # fmt: skip
    want = sums_of(q, torch.cat([rows, made], 2), torch.cat([seen, shown], 2), sinks)
    torch.testing.assert_close(found.float(), want, rtol=0, atol=0.02)


@torch.no_grad()
def test_rows_are_stored_once(model):
    cache = new_cache(model)
    model(make_prompt(20, 1), past_key_values=cache)
    assert cache.nbytes == 3 * 24 * 16 * 64 * 2
    assert all(layer.stored.shares_kv for layer in cache.layers)


@torch.no_grad()
def test_forks_beams_and_the_next_batch_take_the_states_along(model):
    """21 tokens leave one in the buffer of entries of 2, and 5 in that of entries of 8."""
    both = torch.cat([make_prompt(30, 1), make_prompt(30, 2)])
    same = {"rtol": 0, "atol": 0.05}
    plain, cache = new_cache(model), new_cache(model)
    for each in (plain, cache):
        model(both[:, :21], past_key_values=each)
    want = model(both[:, 21:], past_key_values=plain).logits
    twin = cache.fork()
    model(both[:, :5], past_key_values=twin)  # which the first does not notice
    second = cache.fork()
    cache.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(model(both.flip(0)[:, 21:], past_key_values=cache).logits, want.flip(0), **same)
    torch.testing.assert_close(model(both[:, 21:], past_key_values=second).logits, want, **same)
    cache.reset()
    model(both[:1, :21], past_key_values=cache)
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([2, 1]))
    found = model(both[:1, 21:].repeat(2, 1), past_key_values=cache).logits
    torch.testing.assert_close(found, want[:1].repeat(2, 1, 1), **same)


@pytest.mark.parametrize("then", ["again", "beams", "fork"])
@torch.no_grad()
def test_a_pass_that_ends_early_leaves_the_states_as_they_were(model, monkeypatch, then):
    """Behind 21 tokens 9 others end entries of either kind, before layer 2 attends, and fails. Those would be in front
    of the entries of the tokens that come then.
    """
    prompt = torch.cat([make_prompt(30, 1), make_prompt(30, 2)])
    plain, cache = new_cache(model), new_cache(model)
    for each in (plain, cache):
        model(prompt[:, :21], past_key_values=each)
    want = model(prompt[:, 21:], past_key_values=plain).logits
    monkeypatch.setattr(model.model.layers[2].self_attn, "scaling", "no number")
    with pytest.raises((TypeError, kvit.KvitError), match="scale"):
        model(make_prompt(9, 3).repeat(2, 1), past_key_values=cache)
    monkeypatch.undo()
    assert cache.get_seq_length() == len(cache.layers[0].sequences[0]) == 21
    if then == "beams":
        cache.reorder_cache(torch.tensor([1, 0]))
        prompt, want = prompt.flip(0), want.flip(0)
    cache = cache.fork() if then == "fork" else cache
    found = model(prompt[:, 21:], past_key_values=cache).logits
    torch.testing.assert_close(found, want, rtol=0, atol=0.05)


@torch.no_grad()
def test_what_entries_do_not_allow_is_refused_by_name(model):
    cache = new_cache(model)
    tokens, mask = left_padded([make_prompt(length, length) for length in (20, 14)])
    for padding in (mask, mask.flip(1)):
        with pytest.raises(kvit.KernelMissing, match="makes entries of so many tokens each, and counts padding"):
            model(tokens, past_key_values=cache, attention_mask=padding)
    own = torch.zeros(2, 1, 20, 20, dtype=torch.bfloat16)
    with pytest.raises(kvit.KernelMissing, match="layer 0 has a mask of its own"):
        model(tokens, past_key_values=cache, attention_mask=own)
    assert cache.get_seq_length() == 0 and cache.paged.num_free_pages == 24
    model(tokens, past_key_values=cache, attention_mask=torch.ones_like(mask))
    with pytest.raises(kvit.KernelMissing, match="keeps no older ones, so that none can be removed"):
        cache.crop(-1)
    assert not cache.is_croppable and cache.get_seq_length() == 20
    cache.crop(0)
