"""kvit.Rope.from_config beside the models of transformers: the frequencies that each model's own code computes."""

import importlib
import inspect
import json
import pkgutil

import numpy as np
import pytest

import kvit
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
]
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
    assert len(right) > 100, f"only {len(right)} classes were looked at"


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
