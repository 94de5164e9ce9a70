"""A Llama of Hugging Face transformers, with K and V in kvit's pages and the weights of examples/tinylm.

python tinylm_llama.py "def read_" "class Parser" --kv int8:int4

Needs pip install 'kvit[transformers]'. For a model of your own, the lines that matter are those of `generate`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

import kvit
from kvit.transformers import KvitCache

WEIGHTS = Path(__file__).parents[1] / "tinylm" / "model.safetensors"
PADDING, START = 0, b"\n"  # of tinylm: 0 also ends a file, and every text begins with a line


def load(device: str) -> LlamaForCausalLM:
    """tinylm as a Llama: the same function under other names."""
    with safe_open(WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        sizes = json.loads(file.metadata()["config"])
    heads, kv_heads, head_dim = (sizes[name] for name in ("query_heads", "kv_heads", "head_dim"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes["vocab"],
            hidden_size=sizes["width"],
            intermediate_size=sizes["ffn_width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=sizes["context"],
            rms_norm_eps=sizes["norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": sizes["rope_base"]},
            tie_word_embeddings=True,
            pad_token_id=PADDING,
            eos_token_id=PADDING,
            bos_token_id=START[0],
            attn_implementation="kvit",
        )
    )
    parts = {"model.embed_tokens": tensors["embedding.weight"], "model.norm": tensors["norm.weight"]}
    for i in range(sizes["layers"]):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        q, k, v = tensors[f"{ours}.qkv.weight"].split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
        gate, up = tensors[f"{ours}.gate_up.weight"].chunk(2)
        parts |= {
            f"{theirs}.input_layernorm": tensors[f"{ours}.attention_norm.weight"],
            f"{theirs}.self_attn.q_proj": q,
            f"{theirs}.self_attn.k_proj": k,
            f"{theirs}.self_attn.v_proj": v,
            f"{theirs}.self_attn.o_proj": tensors[f"{ours}.attention_out.weight"],
            f"{theirs}.post_attention_layernorm": tensors[f"{ours}.ffn_norm.weight"],
            f"{theirs}.mlp.gate_proj": gate,
            f"{theirs}.mlp.up_proj": up,
            f"{theirs}.mlp.down_proj": tensors[f"{ours}.down.weight"],
        }
    parts["lm_head"] = parts["model.embed_tokens"]
    model.load_state_dict({f"{name}.weight": tensor for name, tensor in parts.items()})
    return model.to(device, torch.float16).eval()


def generate(model: LlamaForCausalLM, prompts: list[bytes], count: int, k: str | None, v: str | None) -> list[bytes]:
    """What the model adds to each prompt, greedily: at most count bytes."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[PADDING] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    tokens = tokens.to(model.device)
    pages = len(prompts) * -(-(longest + count) // 16)
    cache = KvitCache(model.config, pages, 16, k=k, v=v)
    mask = (tokens != PADDING).long()
    out = model.generate(tokens, attention_mask=mask, past_key_values=cache, max_new_tokens=count, do_sample=False)
    print(f"K and V take {cache.nbytes:,} bytes: {cache.layers[0].stored.view.holds}", file=sys.stderr)
    return [bytes(row).rstrip(bytes([PADDING])) for row in out[:, longest:].tolist()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+", help="beginnings of Python files, continued side by side")
    parser.add_argument("--tokens", type=int, default=100, help="bytes to generate for each (default: %(default)s)")
    parser.add_argument(
        "--kv", default="", help="K[:V], each int8, int4, float8_e4m3 or float8_e5m2 (default: float16)"
    )
    parser.add_argument("--device", default="cpu", help="of PyTorch: cpu or cuda:0 (default: %(default)s)")
    args = parser.parse_args(argv)
    k, _, v = args.kv.partition(":")
    prompts = [START + prompt.encode() for prompt in args.prompts]
    try:
        texts = generate(load(args.device), prompts, args.tokens, k or None, v or k or None)
    except kvit.KvitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for prompt, text in zip(args.prompts, texts, strict=True):
        print(prompt + text.decode(errors="replace"), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
