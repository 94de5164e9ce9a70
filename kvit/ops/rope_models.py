"""What the code of models does where their configuration is silent: by model_type, as transformers 5.24 has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")

SHARES = {
    "gpt_neox qwen3_5_moe_text qwen3_5_text qwen3_next stablelm": 0.25,
    "bamba glm glm4 glm4_moe glm4v_moe_text nemotron persimmon phi recurrent_gemma": 0.5,
    "moonshine": 0.9,
}
"""Share of the channels that turn."""

BASES = {
    "nomic_bert": 1e3,
    "jina_embeddings_v3": 2e4,
    "helium": 1e5,
    "gpt_oss": 1.5e5,
    "gte": 1.6e5,
    "bitnet cohere csm ernie4_5 ernie4_5_moe exaone flex_olmo llama4_text mllama_text_model olmo3": 5e5,
    "qwen3_vl_moe_text qwen3_vl_text": 5e5,
    "cwm emu3_text_model lfm2 lfm2_moe minimax ministral3 mixtral phimoe": 1e6,
    "qwen2_5_omni_text qwen2_5_vl_text qwen2_vl_text qwen3_omni_moe_text solar_open": 1e6,
    "smollm3": 2e6,
    "minimax_m2 minimax_m3_vl_text": 5e6,
    "bailing_hybrid": 6e6,
    "sarvam_moe": 8e6,
    "longcat_flash": 1e7,
    "hy_v3": 11158840.0,
    "apertus": 1.2e7,
}

INTERLEAVED = (
    "codegen cohere cohere2 cohere2_moe deepseek_v2 ernie4_5 ernie4_5_moe glm glm4 glm4v_text glm_image_text "
    "glm_ocr_text gptj helium llama4_text moonshine moonshine_streaming"
)
"""Models whose code pairs channels (2 i, 2 i + 1). Others may say so by rope_interleave."""

SECTIONS = {
    "paddleocr_vl_text qwen2_5_omni_talker qwen2_5_omni_text qwen2_5_vl qwen2_5_vl_text qwen2_vl qwen2_vl_text": (
        [16, 24, 24]
    ),
    "glm4v_moe_text glm4v_text glm_image_text glm_ocr_text": [8, 12, 12],
    "cohere_compass_text cosmos3_edge_text hy_v4_vl_text qwen3_omni_moe_talker_text qwen3_omni_moe_text": [24, 20, 20],
    "qwen3_vl_moe_text qwen3_vl_text": [24, 20, 20],
    "qwen3_5_moe_text qwen3_5_text qwen4_exp_text": [11, 11, 10],
}
"""Pairs that time, height and width turn, in models with positions on three axes."""

TAKE_TURNS = (
    "cohere_compass_text cosmos3_edge_text hy_v4_vl_text qwen3_5_moe_text qwen3_5_text qwen3_omni_moe_talker_text "
    "qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text qwen4_exp_text"
)
"""Those of them whose axes take turns, whatever mrope_interleaved says."""

ODD = {
    "ernie4_5_vl_moe ernie4_5_vl_moe_text": "its model gives height and width turns of their own",
    "hunyuan_vl hunyuan_vl_text": "its model deals sections out to whole rows",
}
"""Models whose positions on several axes are none of these."""


STILL = "afmoe cohere2 exaone4 exaone4_5_text exaone_moe flint kolibri1"
"""Models with windows whose layers of full attention do not turn."""


def of_model(table: Mapping[str, Value], model_type: Any, otherwise: Value) -> Value:
    """What a table says of a model."""
    return next((value for names, value in table.items() if model_type in names.split()), otherwise)
