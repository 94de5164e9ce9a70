"""kvit.Rope.from_config: every way in which configurations describe a rope is right, or refused by name."""

from types import SimpleNamespace

import pytest

import kvit

PLAIN = {"head_dim": 128, "rope_theta": 1e6}
WIDE = {"hidden_size": 4096, "num_attention_heads": 32}
FACTORS = [1.0 + i for i in range(64)]
PHI_3 = {
    "rope_type": "longrope",
    "short_factor": FACTORS,
    "long_factor": FACTORS[::-1],
    "original_max_position_embeddings": 4096,
    "factor": 32.0,
}
BY_TYPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def same(found, *arguments, **options):
    expected = kvit.Rope(*arguments, **options)
    assert found.steps == expected.steps
    assert (found.head_dim, found.rotary_dim) == (expected.head_dim, expected.rotary_dim)
    assert (found.interleaved, found.attention_factor) == (expected.interleaved, expected.attention_factor)


@pytest.mark.parametrize("wrap", [dict, lambda config: SimpleNamespace(**config)], ids=["dictionary", "object"])
@pytest.mark.parametrize(
    "config, arguments",
    [
        (PLAIN, (128, 1e6)),
        ({**PLAIN, "partial_rotary_factor": 0.5}, (128, 1e6, 64)),
        ({**PLAIN, "rotary_pct": 0.25}, (128, 1e6, 32)),
        ({"head_dim": 128, "rotary_emb_base": 2e4, "rotary_pct": 0.25}, (128, 2e4, 32)),  # GPT-NeoX
        ({**PLAIN, "rotary_dim": 64}, (128, 1e6, 64)),  # MiniMax-M2
        ({**PLAIN, "rotary_dim": 64, "partial_rotary_factor": 0.5}, (128, 1e6, 64)),
        ({**WIDE, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}},)
        + ((128, 5e5, 64),),
        ({**PLAIN, "model_type": "glm"}, (128, 1e6, 64, True)),  # half of the channels, in pairs of neighbours
        ({**PLAIN, "model_type": "glm", "partial_rotary_factor": 1.0}, (128, 1e6, 128, True)),
        ({**PLAIN, "model_type": "qwen3_next"}, (128, 1e6, 32)),
        ({**WIDE, "model_type": "mixtral", "rope_scaling": None}, (128, 1e6)),
        ({**WIDE, "model_type": "llama", "rope_scaling": None}, (128, 1e4)),
        ({"n_embd": 4096, "n_head": 16, "rotary_dim": 64, "model_type": "gptj"}, (256, 1e4, 64, True)),
        ({**PLAIN, "rope_interleave": True}, (128, 1e6, None, True)),
        ({**WIDE, "kv_channels": 64, "rope_theta": 1e6}, (64, 1e6)),
        ({**WIDE, "qk_rope_head_dim": 64, "rope_theta": 1e6}, (64, 1e6)),  # of latent attention, what turns
        ({"head_dim": 64, "rope_parameters": {name: BY_TYPE["full_attention"] for name in BY_TYPE}},)
        + ((64, 1e6, None, False, {"rope_type": "linear", "factor": 8.0}),),
        ({"text_config": PLAIN, "vision_config": {"patch_size": 14}}, (128, 1e6)),
        (  # Gemma 4: a share of the pairs of whole rows
            {**PLAIN, "rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.25}},
            (128, 1e6, None, False, {"rope_type": "proportional", "partial_rotary_factor": 0.25}),
        ),
        ({**PLAIN, "property_of_nobody": 3, "use_rope_kernel": True}, (128, 1e6)),
    ],
)
def test_a_configuration_is_read(config, arguments, wrap):
    same(kvit.Rope.from_config(wrap(config)), *arguments)


def test_longrope_is_read_as_phi_3_has_it():
    # The factor follows from the lengths, the original one stands beside the scaling, and "su" is its first name.
    given = {name: value for name, value in PHI_3.items() if name.endswith("_factor")}
    config = {**PLAIN, "original_max_position_embeddings": 4096, "max_position_embeddings": 131072}
    for scaling in ({"type": "su", **given}, {"rope_type": "longrope", **given}, {"type": "longrope", **given}):
        for length in (4096, 4097):
            found = kvit.Rope.from_config({**config, "rope_scaling": scaling}, length=length)
            same(found, 128, 1e6, scaling={**PHI_3, "length": length})
    assert found.attention_factor > 1.1


@pytest.mark.parametrize(
    "config, section, takes_turns",
    [
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "model_type": "qwen2_vl"},)
        + ([16, 24, 24], False),
        ({"rope_parameters": {"rope_type": "default"}, "model_type": "qwen2_5_vl_text"}, [16, 24, 24], False),
        ({"rope_scaling": {"mrope_section": [20, 22, 22], "rope_type": "default"}}, [20, 22, 22], False),
        # Its code interleaves, whether the configuration says it or not.
        ({"rope_scaling": {"mrope_section": [24, 20, 20]}, "model_type": "qwen3_vl_text"}, [24, 20, 20], True),
        ({"model_type": "qwen3_vl_moe_text"}, [24, 20, 20], True),
        ({"rope_scaling": {"mrope_section": [24, 20, 20], "mrope_interleaved": True}}, [24, 20, 20], True),
    ],
)
def test_axes_of_positions_are_the_models(config, section, takes_turns):
    found = kvit.Rope.from_config({**PLAIN, **config})
    same(found, 128, 1e6)
    assert found.axes == kvit.Rope(128, scaling={"mrope_section": section, "mrope_interleaved": takes_turns}).axes


def test_the_pairs_that_the_caller_names_count_more_than_the_model_type():
    config = {**PLAIN, "model_type": "glm"}
    assert not kvit.Rope.from_config(config, interleaved=False).interleaved
    assert kvit.Rope.from_config(PLAIN, interleaved=True).interleaved


@pytest.mark.parametrize(
    "config",
    [
        {"head_dim": 64, "rope_parameters": BY_TYPE},
        {  # Gemma 3 before rope_parameters
            "head_dim": 64,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ],
    ids=["nested", "local base"],
)
def test_each_type_of_layer_has_the_rope_that_is_its_own(config):
    full = kvit.Rope.from_config(config, layer_type="full_attention")
    same(full, 64, 1e6, scaling={"rope_type": "linear", "factor": 8.0})
    same(kvit.Rope.from_config(config, layer_type="sliding_attention"), 64, 1e4)
    with pytest.raises(ValueError, match="full_attention, sliding_attention turn differently; .* by layer_type="):
        kvit.Rope.from_config(config)
    with pytest.raises(ValueError, match="layer_type is 'chunked'; the configuration has ropes for full_attention"):
        kvit.Rope.from_config(config, layer_type="chunked")


def test_a_layer_has_the_rope_of_its_type_and_its_own_head_dim():
    # Gemma 4 as config.json has it, with the wide heads named once or layer by layer.
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    config = {"head_dim": 64, "layer_types": types, "rope_parameters": BY_TYPE}
    for wide in ({"global_head_dim": 128}, {"per_layer_config": {"02": {"head_dim": 128}}}):
        full = kvit.Rope.from_config({**config, **wide}, layer=2)
        same(full, 128, 1e6, scaling={"rope_type": "linear", "factor": 8.0})
        same(kvit.Rope.from_config({**config, **wide}, layer=1), 64, 1e4)
        assert kvit.Rope.from_config({**config, **wide}, layer_type="full_attention").steps == full.steps
    with pytest.raises(ValueError, match="layer is 3; give one from 0 to 2"):
        kvit.Rope.from_config(config, layer=3)
    with pytest.raises(ValueError, match="layer 2 is of full_attention, and layer_type is 'sliding_attention'"):
        kvit.Rope.from_config(config, layer=2, layer_type="sliding_attention")


def test_gemma_3_before_layer_types_has_a_full_layer_after_every_five_sliding_ones():
    config = {"head_dim": 64, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
    bases = [kvit.Rope.from_config(config, layer=layer).base for layer in range(12)]
    assert bases == [1e4] * 5 + [1e6] + [1e4] * 5 + [1e6]


def test_layers_that_differ_one_by_one_are_asked_for_by_their_index():
    config = {"head_dim": 64, "rope_parameters": {"rope_theta": 5e5}, "layer_rope_theta": [1e4, 0, 1e6]}
    same(kvit.Rope.from_config(config, layer=0), 64, 1e4)
    same(kvit.Rope.from_config(config, layer=2), 64, 1e6)
    with pytest.raises(ValueError, match="layer 1 rotates nothing"):
        kvit.Rope.from_config(config, layer=1)
    same(kvit.Rope.from_config({**config, "layer_rope_theta": [1e4, 1e4]}), 64, 1e4)
    scaled = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
    config = {"head_dim": 64, "num_hidden_layers": 2, "rope_parameters": scaled, "rope_scaling_layers": [1]}
    same(kvit.Rope.from_config(config, layer=0), 64, 5e5)
    same(kvit.Rope.from_config(config, layer=1), 64, 5e5, scaling={"rope_type": "linear", "factor": 8.0})


@pytest.mark.parametrize(
    "config",
    [
        {"no_rope_layers": [1, 0]},  # SmolLM3, Llama 4
        {"model_type": "cohere2", "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]},
    ],
)
def test_a_layer_of_a_model_that_rotates_others_only_has_no_rope(config):
    kvit.Rope.from_config({**PLAIN, **config}, layer=0)
    with pytest.raises(ValueError, match="rotates? nothing"):
        kvit.Rope.from_config({**PLAIN, **config}, layer=1)


def test_modernbert_before_rope_parameters_has_two_bases():
    config = {"head_dim": 64, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    same(kvit.Rope.from_config(config, layer_type="full_attention"), 64, 160000.0)
    same(kvit.Rope.from_config(config, layer_type="sliding_attention"), 64, 10000.0)


def test_the_original_length_of_the_model_counts_more_than_that_of_the_scaling():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    config = {**PLAIN, "max_position_embeddings": 65536, "original_max_position_embeddings": 8192, "rope_scaling": yarn}
    same(kvit.Rope.from_config(config), 128, 1e6, scaling={**yarn, "original_max_position_embeddings": 8192})


@pytest.mark.parametrize(
    "config, message",
    [
        ({"head_dim": 64}, "names no rotary embedding"),
        ({"head_dim": 64, "rope_parameters": {}}, "names no rotary embedding"),
        ({**WIDE, "model_type": "bert"}, "names no rotary embedding"),
        ({**PLAIN, "rope_scaling": {"factor": 2.0}}, "scaling has factor and no rope_type; add one of default, linear"),
        ({**PLAIN, "rope_scaling": {"rope_type": "linear"}, "max_position_embeddings": 4096}, "linear needs factor"),
        (
            {**PLAIN, "rope_scaling": {"rope_type": "default", "factor": 2.0}},
            "factor, which rope_type default does not",
        ),
        ({**PLAIN, "rope_scaling": {"type": "dynamic", "alpha": 1e3, "factor": 1.0}}, "alpha, which rope_type dynamic"),
        ({**PLAIN, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}}, "together the 64 of rotary_dim"),
        ({**PLAIN, "rope_scaling": {"rope_type": "spiral"}}, "rope_type is 'spiral'; known are"),
        ({**PLAIN, "rope_scaling": PHI_3}, "longrope needs length"),
        ({**PLAIN, "rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be a dictionary"),
        (
            {**PLAIN, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e6}},
            "rope_parameters is .* and rope_scaling .*; give one of them",
        ),
        ({**PLAIN, "rotary_dim": 64, "partial_rotary_factor": 0.25}, "rotary_dim 64, and 0.25 of head_dim 128"),
        ({**PLAIN, "rotary_emb_base": 1e4}, "rope_theta 1000000.0 and rotary_emb_base 10000.0"),
        ({**PLAIN, "rope_theta": 0}, "base is 0; it must be greater than 1"),
        ({**PLAIN, "rope_theta": float("nan")}, "base is nan"),
        ({**PLAIN, "rope_ratio": 50}, "has rope_ratio, which kvit does not know"),  # ChatGLM multiplies the base by it
        ({**PLAIN, "layer_rope_theta": [1e4, 0]}, "turn differently .layer_rope_theta.; give layer="),
        ({**PLAIN, "position_embedding_type": "nope"}, "position_embedding_type is nope: .* rotates nothing"),
        ({**PLAIN, "rope_scaling_layers": [0]}, "only some layers scale positions"),
        ({**PLAIN, "partial_rotary_factors": [0.5, 1.0]}, "has partial_rotary_factors, which kvit does not know"),
        ({**PLAIN, "use_mem_rope": False}, "use_mem_rope=False: its model rotates nothing"),
        ({**PLAIN, "alibi": True}, "alibi: its model rotates nothing"),
        ({**PLAIN, "patch_size": 14}, "image encoder"),
        ({**PLAIN, "model_type": "ernie4_5_vl_moe_text"}, "gives height and width turns of their own"),
        ({**PLAIN, "global_head_dim": 512}, "layers of the configuration differ in head_dim; give layer="),
        ({**PLAIN, "per_layer_config": {"05": {"head_dim": 512}}}, "layers of the configuration differ in head_dim"),
        ({**PLAIN, "text_config": PLAIN}, "a rope beside its text_config"),
        ({"text_config": {"rope_theta": 1e6}}, "no hidden_size"),
        ({"head_dim": 64, "rope_parameters": {"full_attention": None}}, "layers of full_attention rotate nothing"),
        (7, "a configuration is a dictionary or an object"),
    ],
)
def test_what_is_not_known_or_contradicts_itself_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        kvit.Rope.from_config(config)


def test_a_layer_that_rotates_nothing_has_no_rope():
    config = {"head_dim": 64, "rope_parameters": {"full_attention": None, "sliding_attention": {"rope_theta": 1e4}}}
    with pytest.raises(ValueError, match="layers of full_attention rotate nothing"):
        kvit.Rope.from_config(config, layer_type="full_attention")
    same(kvit.Rope.from_config(config, layer_type="sliding_attention"), 64, 1e4)
    with pytest.raises(ValueError, match="one rope for all layers"):
        kvit.Rope.from_config(PLAIN, layer_type="full_attention")


@pytest.mark.parametrize(
    "scaling, message",
    [
        ({"factor": 2.0}, "no rope_type"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'; it must be a number"),
        ({"rope_type": "linear", "factor": True}, "factor is True"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor is nan"),
        ({"rope_type": "linear", "factor": float("inf")}, "factor is inf"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}, "beta_fast, which rope_type linear does not know"),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": -1.0},
            "attention_factor is -1.0",
        ),
    ],
)
def test_numbers_that_a_scaling_does_not_know_or_that_are_none_are_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        kvit.Rope(128, scaling=scaling)
