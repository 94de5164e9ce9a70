"""kvit.Rope.from_config beside the models of transformers: the frequencies that each model's own code computes."""

import importlib
import inspect
import json
import pkgutil

import numpy as np
import pytest

import kvit
from kvit import reference
from support.libraries import need

pytestmark = pytest.mark.interop

LENGTH = {"original_max_position_embeddings": 4096}
YARN = {"rope_type": "yarn", "factor": 16.0, **LENGTH}
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LENGTH},
    YARN,
    {**YARN, "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0},
    {**YARN, "truncate": False, "beta_fast": 16.0},
    {**YARN, "factor": 0.5, "attention_factor": 1.25},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0},
]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1 + i / 48 for i in range(48)],
    "long_factor": [1.0 + i for i in range(48)],
    **LENGTH,
}
MODELS = ("glm", "phi", "gpt_neox", "stablelm", "nemotron", "qwen3_next", "mixtral", "cohere")


@pytest.fixture(scope="module")
def transformers():
    need("torch", "PyTorch")
    return need("transformers", "transformers")


def modules(package, prefix):
    """The modules of a model's package whose names begin like this; those that need what is missing are left out."""
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith(prefix):
            try:
                yield importlib.import_module(f"{package.__name__}.{found.name}")
            except (ImportError, RuntimeError, OSError):  # of an optional dependency, or of one that is broken
                continue


def own_classes(module, base):
    return [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__
    ]


def rotary_modules(package, config):
    """Rotary modules of the model, made for `config`: those whose __init__ says that it takes such a configuration."""
    import torch

    for module in modules(package, "modeling_"):
        for kind in own_classes(module, torch.nn.Module):
            asked = inspect.signature(kind.__init__).parameters.get("config")
            if "Rotary" in kind.__name__ and asked is not None and type(config).__name__ in str(asked.annotation):
                try:
                    yield kind(config)
                except (AttributeError, KeyError, TypeError):  # the model itself cannot be made of its default
                    continue


def packages(transformers):
    for found in pkgutil.iter_modules(transformers.models.__path__):
        if found.ispkg:
            yield importlib.import_module(f"transformers.models.{found.name}")


def default_configurations(transformers):
    """(package, configuration) of every class that can be made without arguments."""
    for package in packages(transformers):
        for module in modules(package, "configuration_"):
            for kind in own_classes(module, transformers.PreTrainedConfig):
                try:
                    yield package, kind()
                except Exception:  # whatever it is: a class that needs arguments has no default to look at
                    continue


def of_layer_type(config, name):
    """The layer type of a buffer such as "full_attention_inv_freq", or None."""
    prefix = name.removesuffix("inv_freq").removesuffix("_")
    return prefix or None


def read(config, layer_type):
    try:
        return kvit.Rope.from_config(config, layer_type=layer_type)
    except ValueError:
        return None


def test_every_configuration_is_read_as_its_model_reads_it_or_refused(transformers):
    right, wrong = set(), []
    for package, config in default_configurations(transformers):
        name = type(config).__name__
        as_stored = json.loads(config.to_json_string(use_diff=False))
        for module in rotary_modules(package, config):
            for buffer, values in module.named_buffers():
                if not buffer.endswith("inv_freq") or "original" in buffer:
                    continue
                layer_type = of_layer_type(config, buffer)
                for form in (config, as_stored):
                    # A single rope is asked for without a type of layer, and so is one of several: that must not pass.
                    for asked in {layer_type, None}:
                        found = read(form, asked)
                        if found is None:
                            continue
                        if np.shape(found.inverse_frequencies) == tuple(values.shape) and np.allclose(
                            found.inverse_frequencies, values.double(), rtol=1e-4
                        ):
                            right.add(name)
                        else:
                            wrong.append(f"{name}.{buffer}: {found}")
    assert wrong == []
    assert len(right) > 110, f"only {len(right)} classes were looked at"


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_scalings_are_those_of_a_model(transformers, scaling):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {**scaling, "rope_theta": 5e5}
    config = transformers.LlamaConfig(head_dim=128, max_position_embeddings=65536, rope_parameters=parameters)
    module = LlamaRotaryEmbedding(config)
    found = kvit.Rope.from_config(config)
    np.testing.assert_allclose(found.inverse_frequencies, module.inv_freq.double(), rtol=1e-5)
    assert found.attention_factor == pytest.approx(module.attention_scaling, rel=1e-6)


@pytest.mark.parametrize("model_type", MODELS)
def test_what_a_configuration_leaves_out_is_what_the_model_takes(transformers, model_type):
    full = transformers.AutoConfig.for_model(model_type, hidden_size=4096, num_attention_heads=32, head_dim=128)
    bare = {"model_type": model_type, "head_dim": 128, "rope_scaling": None}
    assert kvit.Rope.from_config(bare).steps == kvit.Rope.from_config(full).steps


@pytest.mark.parametrize("length", [4096, 4097])
def test_longrope_is_chosen_by_length_as_the_model_chooses(transformers, length):
    import torch
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    # Phi-4-mini: three quarters of the channels turn.
    config = transformers.Phi3Config(
        hidden_size=3072,
        num_attention_heads=24,
        pad_token_id=0,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters={**LONGROPE, "rope_theta": 1e4, "partial_rotary_factor": 0.75},
    )
    module = Phi3RotaryEmbedding(config)
    cosine, _ = module(torch.zeros(1, dtype=torch.float64), torch.tensor([[1, length - 1]]))
    found = kvit.Rope.from_config(config, length=length)
    np.testing.assert_allclose(found.inverse_frequencies, module.inv_freq.double(), rtol=1e-5)
    expected = np.cos(found.inverse_frequencies) * found.attention_factor  # at position 1
    np.testing.assert_allclose(cosine[0, 0, :48], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "model, kind, head_dim",
    [
        ("qwen2_vl", "Qwen2VLRotaryEmbedding", 128),
        ("qwen2_5_vl", "Qwen2_5_VLRotaryEmbedding", 128),
        ("qwen3_vl", "Qwen3VLTextRotaryEmbedding", 128),
        ("qwen3_5", "Qwen3_5TextRotaryEmbedding", 256),
    ],
)
def test_axes_are_those_that_the_model_turns_its_pairs_by(transformers, model, kind, head_dim):
    import torch

    config = transformers.AutoConfig.for_model(f"{model}_text", hidden_size=8 * head_dim, num_attention_heads=8)
    module = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), kind)(config)
    positions = torch.tensor([[0, 1, 7], [3, 5, 11], [2, 9, 4]])  # [axis, token]: no two alike
    cosine, _ = module(torch.zeros(1, dtype=torch.float64), positions[:, None])
    found = kvit.Rope.from_config(config)
    angles = positions.numpy()[list(found.axes)].T * np.array(found.inverse_frequencies)
    np.testing.assert_allclose(cosine[0, :, : angles.shape[1]], np.cos(angles), atol=1e-5)


def test_layers_that_differ_have_the_rope_of_their_own_model(transformers):
    for model_type in ("gemma3_text", "gemma4_text"):
        config = transformers.AutoConfig.for_model(model_type)
        package = importlib.import_module(type(config).__module__.rpartition(".")[0])
        buffers = dict(next(iter(rotary_modules(package, config))).named_buffers())
        for layer, layer_type in enumerate(config.layer_types):
            found = kvit.Rope.from_config(config, layer=layer)
            expected = buffers[f"{layer_type}_inv_freq"].double()
            np.testing.assert_allclose(found.inverse_frequencies, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("model, kind, offset", [("qwen3", "Qwen3RMSNorm", 0.0), ("gemma3", "Gemma3RMSNorm", 1.0)])
def test_rows_are_normalised_as_the_model_normalises_them(transformers, rng, model, kind, offset):
    import torch

    module = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), kind)(128, eps=1e-5)
    rows, weight = rng.standard_normal((7, 3, 128)).astype(np.float32), rng.standard_normal(128).astype(np.float32)
    module.weight.data = torch.from_numpy(weight)
    expected = module(torch.from_numpy(rows)).detach().numpy()
    found = reference.normalise(rows, reference.RowNorm(weight, 1e-5, offset))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
