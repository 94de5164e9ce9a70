"""Train the model on the source text of CPython's standard library: a few minutes on one GPU. Needs PyTorch.

python train.py --out model.safetensors
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import corpus
import numpy as np
import torch
import torch.nn.functional as F
from model import Config, load, save
from torch import Tensor
from torch_model import TorchTinyLM

REPORTS = 40  # progress lines, each with a pass over the validation files
WARMUP = 0.02  # share of the training in which the learning rate rises
FINAL_RATE = 0.02  # share of the peak at which the learning rate ends
AGREEMENT = 2e-3  # nats, numpy model against this one: both compute in float32, so only the order of the sums differs


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=1.3, help="length of the training, compilation apart (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="length of the training in steps; overrides --minutes")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("model.safetensors"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=96, help="windows of 512 bytes per step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.15, help="(default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="(default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of initial weights, crops and dropout (default: %(default)s)"
    )
    parser.add_argument(
        "--eval-bytes", type=int, help="measure on only so many held-out bytes (for trying out on a CPU)"
    )
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    args = parser.parse_args(argv)
    if args.batch < 1 or (args.steps is not None and args.steps < 1) or args.minutes <= 0:
        parser.error("--batch, --steps and --minutes must be positive")
    if args.eval_bytes is not None and args.eval_bytes < 2:
        parser.error("--eval-bytes must be at least 2: a byte, and one to predict from it")
    return args


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up, then a cosine down to FINAL_RATE; progress is the share of the training that is done, 0..1."""
    if progress < WARMUP:
        return peak * (0.01 + 0.99 * progress / WARMUP)
    cosine = 0.5 + 0.5 * math.cos(math.pi * min((progress - WARMUP) / (1 - WARMUP), 1.0))
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def crops(text: Tensor, batch: int, length: int) -> Tensor:
    """Cut windows [batch, length + 1] at random places of text, on its device: no byte passes through the host."""
    starts = torch.randint(len(text) - length, (batch, 1), device=text.device)
    return text[starts + torch.arange(length + 1, device=text.device)].long()


def window_loss(model: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Mean nats per byte of each window's bytes but the first."""
    with torch.autocast(windows.device.type, torch.bfloat16, enabled=windows.device.type == "cuda"):
        logits = model(windows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: TorchTinyLM, text: Tensor, context: int, batch: int = 128) -> float:
    """Measure text in consecutive windows: a little pessimistic, since each starts with no history."""
    length = min(context, len(text) - 1)
    windows = text[: (len(text) - 1) // length * length + 1].unfold(0, length + 1, length)
    model.eval()
    losses = [window_loss(model, part.long()) * len(part) for part in windows.split(batch)]
    model.train()
    return torch.stack(losses).sum().item() / len(windows) / math.log(2)


def compiled(model: TorchTinyLM, windows: Tensor) -> Callable[[Tensor], Tensor]:
    """torch.compile the model and try it, forward and backward; the model itself where that cannot be done."""
    try:
        fast = torch.compile(model)
        window_loss(fast, windows).backward()
    # It needs Triton and a C compiler, and each that is missing raises its own type. Training works without, slower.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"torch.compile failed ({type(error).__name__}: {reason}); training uncompiled", flush=True)
        fast = model
    model.zero_grad(set_to_none=True)
    return fast


def optimizer_of(model: TorchTinyLM, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW that decays matrices only: norms are scales around 1, not directions to shrink."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95), fused=args.device.startswith("cuda"))


def train(model: TorchTinyLM, texts: dict[str, Tensor], config: Config, args: argparse.Namespace) -> dict[str, str]:
    """Train in place and leave the weights of the best validation loss in model.

    Returns facts for the weights file. The test files are measured once, at the end: they choose nothing.
    """

    def draw() -> Tensor:
        return crops(texts["train"], args.batch, config.context)

    fast = model if args.no_compile else compiled(model, draw())
    optimizer = optimizer_of(model, args)
    best, best_weights, best_step = math.inf, model.state_dict(), 0
    step, progress, reported = 0, 0.0, 0
    begin = time.perf_counter()
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.rate)
        loss = window_loss(fast, draw())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        seconds = time.perf_counter() - begin
        progress = step / args.steps if args.steps else seconds / (60 * args.minutes)
        if progress * REPORTS >= reported + 1 or progress >= 1:
            reported = int(progress * REPORTS)
            training = loss.item() / math.log(2)
            held_out = bits_per_byte(model, texts["validation"], config.context)
            if held_out < best:
                best, best_step = held_out, step
                best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            seconds = time.perf_counter() - begin
            speed = step * args.batch * config.context / seconds / 1e6
            print(
                f"{min(progress, 1):4.0%}  step {step:6}  {seconds:5.0f} s  {speed:6.2f} MB/s"
                f"  training {training:.3f}  held out {held_out:.3f} bits/byte{' *' if best_step == step else ''}",
                flush=True,
            )
    if not math.isfinite(best):
        raise FloatingPointError(f"the loss was never finite in {step} steps; try a lower --rate than {args.rate}")
    model.load_state_dict(best_weights)
    test = bits_per_byte(model, texts["test"], config.context)
    return {
        "steps": str(step),
        "best_step": str(best_step),
        "batch_bytes": str(args.batch * config.context),
        "train_bytes": str(len(texts["train"])),
        "validation_bits_per_byte": f"{best:.4f}",
        "test_bits_per_byte": f"{test:.4f}",
        "python": platform.python_version(),
    }


def check_agreement(path: Path, config: Config, text: Tensor) -> float:
    """Run the saved file through the numpy model and this one, on the same window.

    Returns the largest difference of a logit; raises RuntimeError above AGREEMENT.
    """
    numpy_model, _ = load(path)
    torch_model = TorchTinyLM(config).eval()
    torch_model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in numpy_model.weights.items()})

    def attend(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        group = config.query_heads // config.kv_heads
        heads = [torch.from_numpy(part).transpose(0, 1) for part in (q, k.repeat(group, 1), v.repeat(group, 1))]
        return F.scaled_dot_product_attention(*heads, is_causal=True).transpose(0, 1).numpy()

    tokens = text[: config.context].cpu()
    with torch.no_grad():
        want = torch_model(tokens.long()[None])[0].numpy()
    worst = float(np.abs(numpy_model.forward(tokens.numpy(), 0, attend) - want).max())
    if not worst <= AGREEMENT:
        raise RuntimeError(
            f"{path}: the numpy model's logits differ from PyTorch's by {worst:.2g}; at most {AGREEMENT} is rounding"
        )
    return worst


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    config = Config()
    texts = {
        split: torch.frombuffer(bytearray(text), dtype=torch.uint8).to(args.device)
        for split, text in corpus.read().items()
    }
    print("bytes:", ", ".join(f"{split} {len(text):,}" for split, text in texts.items()))
    for split in ("validation", "test"):
        texts[split] = texts[split][: args.eval_bytes]
    model = TorchTinyLM(config, args.dropout).to(args.device)
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters on {name}, torch {torch.__version__}", flush=True)

    facts = train(model, texts, config, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save(args.out, config, model.export(), facts)
    worst = check_agreement(args.out, config, texts["test"])
    print("  ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"saved {args.out}: {args.out.stat().st_size:,} bytes; numpy and PyTorch logits agree to {worst:.1e}")


if __name__ == "__main__":
    main()
