"""How fast a model of transformers generates: K and V in kvit's pages, with graphs and without, beside eager and sdpa.

python benchmarks/generation.py [--batches 1 16] [--contexts 1024 8192] [--new-tokens 128] [--contenders kvit sdpa]
                              [--k int8 --v int4] [--json FILE] [--plot FILE]

The model is a Llama with random weights in bfloat16; all contenders have the same weights in the same memory. In each
cell they take turns at the same prompts: a generation of one token is the prompt's time, one of --new-tokens more is
the time of the steps. Before that, the logits of each are held against those of eager. Without a GPU a tiny model
runs on the host, to show that the program works: its figures say nothing about speed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import measure
from generation_report import Result, plot, table

import kvit
from kvit._cli import display, info
from kvit._cli.compare import Mismatch, expect

SEED = 20
WARM_UP = 2  # turns that are not counted: memory is taken, libraries choose their kernels, graphs are captured
PAGE_SIZE = 64
_PROVEN = 512  # tokens of each prompt that contenders are held against eager for
CONTENDERS = {"kvit": "kvit", "kvit, no graphs": "kvit", "sdpa": "sdpa", "eager": "eager"}
"""Name -> the attention implementation of transformers."""


class Size(NamedTuple):
    """Of a Llama."""

    layers: int
    width: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


ON_GPU = Size(layers=16, width=2048, query_heads=32, kv_heads=8, head_dim=64, vocabulary=32000)  # 1.1e9 weights
ON_HOST = Size(layers=2, width=128, query_heads=4, kv_heads=2, head_dim=64, vocabulary=64)


class Contender:
    """A model with its attention, ready to generate; its weights are those of `model`.

    pages  of the cache that kvit's contenders have
    """

    def __init__(self, name: str, model: Any, pages: int, k: str | None, v: str | None, stack: ExitStack):
        from kvit.transformers import DecodeGraphs, KvitCache

        self.name, self.cache = name, None
        self.model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        self.model.set_attn_implementation(CONTENDERS[name])
        if CONTENDERS[name] == "kvit":
            self.cache = KvitCache(self.model.config, pages, PAGE_SIZE, k=k, v=v)
            if name == "kvit":
                stack.enter_context(DecodeGraphs(self.model, self.cache))

    def generate(self, prompts: Any, new_tokens: int) -> Any:
        """Greedy tokens behind prompts [batch, tokens], as generate() returns them, with the logits of each step."""
        options = {}
        if self.cache is not None:
            self.cache.reset()
            options["past_key_values"] = self.cache
        return self.model.generate(
            prompts, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, output_logits=True,
            return_dict_in_generate=True, **options,
        )  # fmt: skip

    def seconds(self, prompts: Any, new_tokens: int) -> float:
        """What a generation takes."""
        synchronise(prompts)
        start = time.perf_counter()
        self.generate(prompts, new_tokens)
        synchronise(prompts)
        return time.perf_counter() - start


def synchronise(tensor: Any) -> None:
    """Wait until a GPU has done what it was given."""
    if tensor.is_cuda:
        import torch

        torch.cuda.synchronize(tensor.device)


def new_model(size: Size, longest: int, device: str) -> Any:
    """A Llama with random weights. All but norms vary by 0.02, as transformers begins a training."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=4 * size.width,
        num_hidden_layers=size.layers, num_attention_heads=size.query_heads, num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim, max_position_embeddings=longest, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def prove(model: Any, contenders: Sequence[Contender], prompts: Any, has_codecs: bool) -> None:
    """Hold the logits behind the prompts against those of eager in bfloat16, and so all kinds of step. Raises Mismatch.

    Models in bfloat16 lose a part of what logits say in every layer, whatever computes attention, and codecs more:
    what is looked for is an error that makes other logits of them.
    """
    eager = Contender("eager", model, 0, None, None, ExitStack())
    want = eager.generate(prompts, 3)
    for contender in contenders:
        found = contender.generate(prompts, 3)
        # The first token is the prompt's alone; a later one counts where the tokens before it are the same.
        steps = 1 + int((found.sequences == want.sequences).all(0)[-3:-1].cumprod(0).sum())
        for step in range(steps):
            ours, theirs = found.logits[step].float(), want.logits[step].float()
            off = ((ours - theirs).square().mean().sqrt() / theirs.std()).item()
            bound = 0.5 if has_codecs and contender.cache is not None else 0.1
            what = f"{contender.name}: logits of token {step} are {off:.2f} of their deviation away from those of eager"
            expect(off <= bound, f"{what}, where roundings leave {bound}")


def time_cell(contenders: Sequence[Contender], prompts: Any, new_tokens: int, rounds: int) -> list[Result]:
    """Every contender's times; who begins a round changes, so that clocks and heat are the same for all."""
    import torch

    taken: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in contenders}
    for turn in range(WARM_UP + rounds):
        for i in range(len(contenders)):
            contender = contenders[(i + turn) % len(contenders)]
            if contender.name not in taken:
                continue
            try:
                prompt_s = contender.seconds(prompts, 1)
                step_s = (contender.seconds(prompts, new_tokens + 1) - prompt_s) / new_tokens
            except torch.OutOfMemoryError:  # eager has all scores of a prompt at once
                del taken[contender.name]
                torch.cuda.empty_cache()
            else:
                taken[contender.name].append((prompt_s, step_s))
    batch, context = prompts.shape
    found = []
    for contender in contenders:
        times = taken.get(contender.name, [])[WARM_UP:]
        medians = [statistics.median(column) for column in zip(*times, strict=True)] or [None, None]
        found.append(Result(batch, context, contender.name, *medians))
    return found


def run(options: argparse.Namespace, step: Callable[[float, str], None]) -> Iterator[Result]:
    """The results of all cells, each as soon as it is there. Raises Mismatch, KvitError."""
    import torch

    longest = max(options.contexts) + options.new_tokens + 1
    model = new_model(options.size, longest, options.device)
    cells = [(batch, context) for batch in options.batches for context in options.contexts]
    for i, (batch, context) in enumerate(cells):
        step(i / len(cells), f"{batch} x {context}")
        draw = torch.Generator().manual_seed(SEED + i)
        prompts = torch.randint(1, options.size.vocabulary, (batch, context), generator=draw).to(options.device)
        pages = batch * -(-(context + options.new_tokens + 1) // PAGE_SIZE)
        with ExitStack() as stack:
            contenders = [Contender(name, model, pages, options.k, options.v, stack) for name in options.contenders]
            prove(model, contenders, prompts[:, :_PROVEN], (options.k, options.v) != (None, None))
            yield from time_cell(contenders, prompts, options.new_tokens, options.rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    options = _parse(arguments)
    try:
        import torch
        import transformers
    except ImportError as error:
        return measure.refuse("generation", f"{error}; run pip install 'kvit[transformers]'")
    try:
        place = _place(options)
        results = []
        with display.progress("generation") as step:
            for result in run(options, step):
                results.append(result)
    except (kvit.KvitError, Mismatch) as error:
        return measure.refuse("generation", error)
    about = {
        "device": place, "kvit": info.version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "model": options.size._asdict(), "new_tokens": options.new_tokens, "rounds": options.rounds,
        "k": options.k, "v": options.v,
    }  # fmt: skip
    versions = f"kvit {about['kvit']}, PyTorch {about['torch']}, transformers {about['transformers']}"
    print(f"{place}; {versions}; {options.size.layers} layers of width {options.size.width}\n")
    print(table(results))
    if options.json:
        cells = [{**vars(result), "tokens_per_s": result.tokens_per_s} for result in results]
        options.json.write_text(json.dumps({**about, "cells": cells}, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        plot(options.plot, results, f"{place.partition(' (')[0]}: generation")
    return 0


def _place(options: argparse.Namespace) -> str:
    """The device in words, which fills in what the command line left out. Raises NoGpuError, DeviceError."""
    if options.device is None:
        try:
            options.device = kvit.Device.of("cuda:0").spec
        except kvit.NoGpuError:
            options.device = "host"
    device = kvit.Device.of(options.device)
    is_host = options.device == "host"
    options.device = "cpu" if is_host else options.device
    options.size = ON_HOST if is_host else ON_GPU
    options.batches = options.batches or ([2] if is_host else [1, 16])
    options.contexts = options.contexts or ([40] if is_host else [1024, 8192])
    options.new_tokens = options.new_tokens or (4 if is_host else 128)
    options.rounds = options.rounds or (1 if is_host else 5)
    return "the host backend (no GPU: a tiny model, whose times say nothing about speed)" if is_host else device.name


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="generation", description=__doc__.split("\n")[0])
    parser.add_argument("--batches", nargs="+", type=_count, metavar="N", help="sequences side by side (1 16)")
    parser.add_argument("--contexts", nargs="+", type=_count, metavar="N", help="tokens of a prompt (1024 8192)")
    parser.add_argument("--new-tokens", type=_count, metavar="N", help="steps of a generation (128)")
    parser.add_argument("--rounds", type=_count, metavar="N", help="turns of each contender (5)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME",
                        help=f"{', '.join(CONTENDERS)} (all)")  # fmt: skip
    parser.add_argument("--k", help="how kvit stores K; bfloat16 if absent")
    parser.add_argument("--v", help="how kvit stores V; bfloat16 if absent")
    parser.add_argument("--device", help='"cuda:N" or "host"; a GPU if there is one')
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    return parser.parse_args(arguments)


def _count(given: str) -> int:
    number = int(given)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is no number of any; give at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
