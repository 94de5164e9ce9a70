"""DecodeGraphs: steps through graphs give what the model gives without them, and what they cannot do they refuse.

On the host a graph is support.host_graphs' own, which repeats in the same memory what was captured: a number that
Python made while it was captured would stay as it was, as it would on a GPU.
"""

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")
pytest.importorskip("transformers", minversion="5.20", reason="needs pip install '.[test-interop]'")

import torch

import kvit
from kvit.transformers import DecodeGraphs, KvitCache
from support.host_graphs import HostGraphs
from support.language_models import NEW_TOKENS, left_padded, make_model, make_prompt, prompts, torch_device
from support.model_families import CHOOSING, FAMILIES

pytestmark = pytest.mark.interop


@pytest.fixture(autouse=True)
def _graphs(request, monkeypatch):
    """Graphs on the host, and the GPU's own there."""
    device = request.getfixturevalue("device") if "device" in request.fixturenames else "host"
    if device == "host":
        monkeypatch.setattr(DecodeGraphs, "_new_graph", HostGraphs(monkeypatch).new)
    elif not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use: this PyTorch sees none")


@pytest.fixture
def model():
    return make_model("llama")


def new_cache(model, pages=24):
    return KvitCache(model.config, pages, 16)


def continued(model, tokens, cache, **options):
    """All that generation gives, in a dictionary's values, or the tokens."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    return model.generate(tokens, past_key_values=cache, **options)


def counts(graphs):
    return graphs.num_steps, graphs.num_captures, graphs.num_replays


def test_a_padded_batch_goes_on_as_it_does_without_graphs(device):
    model = make_model("llama", device)
    tokens, mask = left_padded(prompts("llama", device))
    want = continued(model, tokens, new_cache(model), attention_mask=mask)
    cache = new_cache(model)
    with DecodeGraphs(model, cache) as graphs:
        found = continued(model, tokens, cache, attention_mask=mask)
    assert torch.equal(found, want)
    assert counts(graphs) == (
        NEW_TOKENS - 1,
        1,
        NEW_TOKENS - 2,
    )  # the prompt gives a token, and one step is run as it is
    assert [len(sequence) for sequence in cache.layers[0].sequences] == [n + NEW_TOKENS - 1 for n in (33, 5, 18)]


def test_the_next_batch_keeps_the_graph(device):
    model = make_model("llama", device)
    first, second = (make_prompt(9, seed, device).repeat(2, 1) for seed in (1, 2))
    want = [continued(model, tokens, new_cache(model)) for tokens in (first, second)]
    cache = new_cache(model)
    with DecodeGraphs(model, cache) as graphs:
        for tokens, expected in zip((first, second), want, strict=True):
            assert torch.equal(continued(model, tokens, cache), expected)
            cache.reset()
    assert counts(graphs) == (2 * (NEW_TOKENS - 1), 1, 2 * (NEW_TOKENS - 1) - 1)


def test_pages_of_the_last_batch_are_free_for_the_next_one(model):
    # 9 + 12 tokens in two pages of four, twice over: the table of the steps must not keep the first two.
    cache = new_cache(model, pages=4)
    tokens = make_prompt(9, 1).repeat(2, 1)
    with DecodeGraphs(model, cache):
        continued(model, tokens, cache)
        cache.reorder_cache(torch.tensor([1, 1]))
        assert cache.paged.num_free_pages == 2
        cache.reset()
        assert cache.paged.num_free_pages == 4
        continued(model, tokens, cache)


@pytest.mark.parametrize("name", ["qwen3", "falcon_h1"])  # K and V alone, and a state that moves with its beam
def test_beams_keep_the_graph(device, name):
    model = FAMILIES[name].make(name, device)
    prompt = make_prompt(33, FAMILIES[name].seed, device)
    want = continued(model, prompt, new_cache(model), num_beams=3)
    cache = new_cache(model)
    with DecodeGraphs(model, cache) as graphs:
        assert torch.equal(continued(model, prompt, cache, num_beams=3), want)
    assert counts(graphs) == (NEW_TOKENS - 1, 1, NEW_TOKENS - 2)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 9}),  # the layer tells attention of its window
        ("llama4_text", FAMILIES["llama4_text"].changes),  # the mask alone tells of chunks of 9
    ],
)
def test_a_window_that_is_outgrown_on_the_way_is_another_step(device, family, changes):
    model = make_model(family, device, **changes)
    prompt = make_prompt(5, 1, device)
    want = continued(model, prompt, new_cache(model))
    cache = new_cache(model)
    with DecodeGraphs(model, cache) as graphs:
        assert torch.equal(continued(model, prompt, cache), want)
    assert counts(graphs) == (NEW_TOKENS - 1, 2, NEW_TOKENS - 3)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in CHOOSING])
def test_every_family_has_steps_that_a_graph_repeats(device, name):
    model = FAMILIES[name].make(name, device)
    prompt = make_prompt(33, FAMILIES[name].seed, device)
    want = continued(model, prompt, new_cache(model), max_new_tokens=6)
    cache = new_cache(model)
    with DecodeGraphs(model, cache) as graphs:
        assert torch.equal(continued(model, prompt, cache, max_new_tokens=6), want)
    assert counts(graphs) == (5, 1, 4)


def test_what_a_step_returns_is_not_written_by_the_next_one(device):
    model = make_model("llama", device)
    prompt = prompts("llama", device)[1]
    options = {"return_dict_in_generate": True, "output_hidden_states": True, "output_logits": True}
    want = continued(model, prompt, new_cache(model), **options)
    cache = new_cache(model)
    with DecodeGraphs(model, cache):
        found = continued(model, prompt, cache, **options)
    for ours, theirs in zip(found.hidden_states[1:], want.hidden_states[1:], strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert torch.equal(x, y)
    assert all(torch.equal(x, y) for x, y in zip(found.logits, want.logits, strict=True))


def test_without_graphs_the_same_steps_run_in_the_same_memory(model, monkeypatch):
    monkeypatch.setattr(DecodeGraphs, "_new_graph", lambda *_: None)
    prompt = prompts("llama")[0]
    want = continued(model, prompt, new_cache(model))
    cache = new_cache(model)
    with DecodeGraphs(model, cache) as graphs:
        assert torch.equal(continued(model, prompt, cache), want)
    assert counts(graphs) == (NEW_TOKENS - 1, 0, 0)


@torch.no_grad()
def test_what_is_no_step_runs_as_it_does_without(model):
    prompt = prompts("llama")[0]
    cache, other, plain = new_cache(model), new_cache(model), new_cache(model)
    with DecodeGraphs(model, cache) as graphs:
        found = [model(part, past_key_values=cache).logits for part in prompt.split([20, 3, 10], dim=1)]
        model(prompt, past_key_values=other)
        model(prompt[:, :1], past_key_values=other)
    assert graphs.num_steps == 0
    want = [model(part, past_key_values=plain).logits for part in prompt.split([20, 3, 10], dim=1)]
    assert torch.equal(torch.cat(found, 1), torch.cat(want, 1))


@torch.no_grad()
def test_pages_that_moved_are_captured_anew(model):
    prompt = make_prompt(20, 1)
    logits = []
    for cache, is_static in ((new_cache(model), False), (new_cache(model), True)):
        graphs = DecodeGraphs(model, cache)
        model(prompt, past_key_values=cache)
        with graphs if is_static else torch.no_grad():
            for i in range(6):
                if i == 3:
                    cache.paged.requantise(k="int8", v="int8")
                at = torch.full((1, 1), cache.get_seq_length())
                logits.append(model(prompt[:, i : i + 1], position_ids=at, past_key_values=cache).logits)
    assert all(torch.equal(x, y) for x, y in zip(logits[:6], logits[6:], strict=True))
    assert counts(graphs) == (6, 2, 4)


@torch.no_grad()
def test_a_window_that_the_call_alone_names_is_outgrown_too(model):
    # No config knows of it: Llama hands an argument that it does not know to attention.
    prompt, logits = make_prompt(17, 1), []
    for is_static in (False, True):
        cache = new_cache(model)
        graphs = DecodeGraphs(model, cache)
        model(prompt[:, :5], past_key_values=cache)
        with graphs if is_static else torch.no_grad():
            for i in range(5, 17):
                at = torch.full((1, 1), i)
                step = {"position_ids": at, "past_key_values": cache, "sliding_window": 9}
                logits.append(model(prompt[:, i : i + 1], **step).logits)
    assert all(torch.equal(x, y) for x, y in zip(logits[:12], logits[12:], strict=True))
    assert counts(graphs) == (12, 2, 10)


@torch.no_grad()
def test_a_table_that_is_too_small_gives_way_to_another(model):
    # Eight forks of ten full pages: 88 pages in their table, where the first batch's has room for 8 and twice 24.
    cache, plain = new_cache(model), new_cache(model)
    tokens = make_prompt(8, 1).T
    found = []
    with DecodeGraphs(model, cache) as graphs:
        for each in (cache, plain):
            for prompt in (make_prompt(3, 2), make_prompt(160, 3)):
                each.reset()
                model(prompt, past_key_values=each)
                each.batch_repeat_interleave(8)
                for _ in range(3):
                    at = torch.full((8, 1), each.get_seq_length())
                    found.append(model(tokens, position_ids=at, past_key_values=each).logits)
    assert all(torch.equal(x, y) for x, y in zip(found[:6], found[6:], strict=True))
    assert counts(graphs) == (6, 2, 4)


@torch.no_grad()
def test_a_full_cache_refuses_the_step_and_goes_on(model):
    cache = KvitCache(model.config, 2, 16)
    model(make_prompt(16, 1).repeat(2, 1), past_key_values=cache)
    at = torch.full((2, 1), 16)
    with DecodeGraphs(model, cache) as graphs:
        with pytest.raises(kvit.CacheFull, match="needs 2 more pages and has 0 free"):
            model(make_prompt(2, 2).T, position_ids=at, past_key_values=cache)
        assert (cache.get_seq_length(), graphs.num_steps) == (16, 0)
        cache.crop(-1)
        model(make_prompt(2, 2).T, position_ids=at - 1, past_key_values=cache)
    assert (cache.get_seq_length(), graphs.num_steps) == (16, 1)


@torch.no_grad()
def test_a_model_that_waits_for_the_gpu_is_told_so(model, monkeypatch):
    cache = new_cache(model)
    tokens = make_prompt(5, 1)
    model(tokens, past_key_values=cache)
    module = model.model.layers[1].mlp
    plain = module.forward
    monkeypatch.setattr(module, "forward", lambda x: plain(x) if x.abs().max().item() > 0 else x)
    at = torch.full((1, 1), 5)
    with DecodeGraphs(model, cache) as graphs:
        model(tokens[:, :1], position_ids=at, past_key_values=cache)  # runs as it is
        with pytest.raises(
            kvit.KvitError, match=r"cannot be captured.*experts.*not permitted when stream is capturing"
        ):
            model(tokens[:, :1], position_ids=at + 1, past_key_values=cache)
    assert counts(graphs) == (1, 0, 0)
    assert cache.get_seq_length() == len(cache.layers[0].sequences[0]) == 6
    monkeypatch.undo()
    model(tokens[:, :1], position_ids=at + 1, past_key_values=cache)  # nothing is left of the failed step
    assert cache.get_seq_length() == 7


@torch.no_grad()
def test_steps_that_a_graph_could_not_repeat_are_refused(model):
    cache, tokens = new_cache(model), make_prompt(5, 1)
    model(tokens, past_key_values=cache)
    with DecodeGraphs(model, cache):
        with pytest.raises(kvit.KvitError, match=r"no position_ids.*torch.full\(\(batch, 1\), cache.get_seq_length"):
            model(tokens[:, :1], past_key_values=cache)
        at = torch.full((1, 1), 5)
        with pytest.raises(kvit.KvitError, match="has cache_kwargs, which are neither tensors nor hashable"):
            model(tokens[:, :1], position_ids=at, past_key_values=cache, cache_kwargs={})
        mask = torch.ones(1, 6, dtype=torch.long)
        mask[0, 0] = 0
        with pytest.raises(kvit.ShapeError, match="does not hide the same of the 5 tokens"):
            model(tokens[:, :1], position_ids=at, past_key_values=cache, attention_mask=mask)
    assert cache.get_seq_length() == 5


def test_a_block_ends_with_the_forward_that_there_was(model):
    cache = new_cache(model)
    graphs = DecodeGraphs(model, cache)
    with graphs:
        assert "forward" in vars(model)
        with pytest.raises(kvit.KvitError, match="the block is open already"), graphs:
            pass
    assert "forward" not in vars(model)
    model.forward = own = model.forward  # as accelerate replaces it
    with pytest.raises(ZeroDivisionError), graphs:
        raise ZeroDivisionError
    assert vars(model)["forward"] is own
    with pytest.raises(TypeError, match=r"cache is a list; give the kvit.transformers.KvitCache"):
        DecodeGraphs(model, [])


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_steps_wait_for_the_callers_stream_and_it_for_them(device):
    model = make_model("llama", device)
    tokens = prompts("llama", device)[0]
    want = continued(model, tokens, new_cache(model))
    stream = torch.cuda.Stream(torch_device(device))
    stream.wait_stream(torch.cuda.current_stream(torch_device(device)))
    cache = new_cache(model)
    with torch.cuda.stream(stream), DecodeGraphs(model, cache) as graphs:
        found = continued(model, tokens, cache)
    stream.synchronize()
    assert torch.equal(found, want) and graphs.num_replays == NEW_TOKENS - 2
