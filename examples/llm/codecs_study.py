"""Which ways to store K and V in few bits keep SmolLM2: bits per byte against 16 bits, by simulation in PyTorch.

python codecs_study.py                                          short windows, a few settings
python codecs_study.py --length 2048 --windows 6 --settings int4+hadamard:int4 int4:int2+hadamard+clip/256,4
python codecs_study.py --text essay.txt                         windows of two texts, in turn

A setting is K:V in the words of simulated_codecs.py. /256,4 behind it keeps in 16 bits the newest 256 tokens that a
query sees, and the first 4 of the text. No kernel of kvit runs: what decoding gives takes the place of K (rotated by
its position) and V, in a model in float32. evaluate.py measures the codecs that kvit has.
Needs pip install '.[llm]' and PyTorch.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "tinylm"))

import chat
import numpy as np
import text
from model import Config
from scoring import spread
from tqdm import tqdm
from weights import WeightsError

try:
    import torch
    import torch.nn.functional as F
    from simulated_codecs import Setting, Statistics
    from torch import Tensor
    from torch_model import rotate
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed; codecs_study.py needs pip install torch")

QUERIES = 256  # attended at once where keys are of two kinds
CALIBRATION = ("kvit/**/*.py", 4, 1024)  # text that is not scored, windows, tokens
BASE = "16:16"
SETTINGS = [
    f"{k}:{v}" for k in ("int8", "int4", "int4+hadamard", "int4+mean+normq+hadamard") for v in ("int4", "int4+hadamard")
]

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, q, k, v) -> out: q, out [query_heads, tokens, head_dim], k, v [kv_heads, tokens, head_dim], float32."""


class Pair(NamedTuple):
    """How K and V are stored."""

    text: str
    k: Setting
    v: Setting
    window: int  # newest tokens that stay in 16 bits
    sinks: int  # first tokens that do

    @classmethod
    def of(cls, text: str) -> Pair:
        """Read K:V or K:V/window,sinks. Raises ValueError."""
        found = re.fullmatch(r"([^:/]+):([^:/]+)(?:/(\d+),(\d+))?", text)
        if found is None:
            raise ValueError(f"{text!r} is not K:V or K:V/window,sinks, such as int4+hadamard:int4/256,4")
        return cls(text, Setting.of(found[1]), Setting.of(found[2]), int(found[3] or 0), int(found[4] or 0))

    @classmethod
    def argument(cls, text: str) -> Pair:
        """of, for argparse."""
        try:
            return cls.of(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    def bits(self, head_dim: int, tokens: int = 0) -> float:
        """Bits of a value, of K and V together; with what stays in 16 bits, if `tokens` are in the cache."""
        found = [side.bits_per_value(head_dim) for side in (self.k, self.v)]
        if tokens:
            plain = [min(tokens, max(self.window + self.sinks, side.tail // 2)) for side in self[1:3]]
            found = [(16 * kept + bits * (tokens - kept)) / tokens for kept, bits in zip(plain, found, strict=True)]
        return sum(found) / 2

    def attention(self, statistics: Sequence[tuple[Statistics, Statistics]]) -> Attend:
        """Attention over what is stored; statistics of K and V of each layer."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            facts = statistics[layer] if statistics else (None, None)
            q, k, v = (x.half().float() for x in (q, k, v))
            group = len(q) // len(k)
            stored = [side.stored(x, fact) for side, x, fact in zip(self[1:3], (k, v), facts, strict=True)]
            k, v, k_few, v_few = (x.repeat_interleave(group, dim=0) for x in (k, v, *stored))
            if self.window == self.sinks == 0 and self.k.tail == self.v.tail == 1:
                return F.scaled_dot_product_attention(q[None], k_few[None], v_few[None], is_causal=True)[0]
            return self._mixed(q, k, v, k_few, v_few)

        return attend

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, k_few: Tensor, v_few: Tensor) -> Tensor:
        """Attention that takes some keys from k and v, and the others from k_few and v_few."""
        parts = []
        for begin in range(0, q.shape[1], QUERIES):
            end = min(begin + QUERIES, q.shape[1])
            i, j = torch.arange(begin, end)[:, None], torch.arange(end)[None]
            rows = q[:, begin:end] * q.shape[-1] ** -0.5
            plain = [self._is_plain(i, j, side.tail) for side in self[1:3]]
            scores = torch.where(plain[0], rows @ k[:, :end].mT, rows @ k_few[:, :end].mT)
            weights = scores.masked_fill_(j > i, -math.inf).softmax(-1)
            parts.append((weights * plain[1]) @ v[:, :end] + (weights * ~plain[1]) @ v_few[:, :end])
        return torch.cat(parts, dim=1)

    def _is_plain(self, i: Tensor, j: Tensor, tail: int) -> Tensor:
        """Whether query i sees key j in 16 bits."""
        plain = (j < self.sinks) | (j > i - self.window)
        return plain | (j // tail == i // tail) if tail > 1 else plain


class Decoder:
    """The model of tinylm's model.py for one text, in PyTorch."""

    def __init__(self, config: Config, tensors: dict[str, np.ndarray], dtype: torch.dtype = torch.float32):
        self.config = config
        kept = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        # Not the embedding, which makes the logits: float32 alone tells small differences of probabilities.
        self._weights = {
            name: x.to(dtype) if name.startswith("layers.") and x.ndim > 1 else x for name, x in kept.items()
        }
        half = config.head_dim // 2
        frequencies = config.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(config.context)[:, None] * frequencies
        self._cos, self._sin = angles.cos().float(), angles.sin().float()

    def logits(self, tokens: Tensor, attend: Attend) -> Tensor:
        """[tokens, vocab]: what follows each of tokens [tokens]."""
        x = self._weights["embedding.weight"][tokens]
        for layer in range(self.config.layers):
            name, turn = f"layers.{layer}.", (self._cos[: len(tokens)], self._sin[: len(tokens)])
            qkv = self._project(self._norm(x, name + "attention_norm"), name + "qkv")
            q, k, v = (
                part.unflatten(-1, (-1, self.config.head_dim)).transpose(0, 1)
                for part in qkv.split(self.config.qkv_sizes, dim=-1)
            )
            out = attend(layer, rotate(q, *turn), rotate(k, *turn), v)
            x = x + self._project(out.transpose(0, 1).flatten(1), name + "attention_out")
            gate, up = self._project(self._norm(x, name + "ffn_norm"), name + "gate_up").chunk(2, dim=-1)
            x = x + self._project(F.silu(gate) * up, name + "down")
        return self._project(self._norm(x, "norm"), "embedding")

    def _project(self, x: Tensor, name: str) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return (x.to(weight.dtype) @ weight.T).float()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self.config.norm_eps)


def calibrate(model: Decoder, windows: np.ndarray) -> list[tuple[Statistics, Statistics]]:
    """Statistics of K and V of each layer over windows [windows, tokens]."""
    kept: list[list[tuple[Tensor, ...]]] = [[] for _ in range(model.config.layers)]
    plain = Pair.of(BASE).attention(())

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept[layer].append((q, k, v))
        return plain(layer, q, k, v)

    for window in windows:
        model.logits(torch.from_numpy(window), attend)
    found = []
    for layer in kept:
        q, k, v = (torch.cat(parts, dim=1) for parts in zip(*layer, strict=True))
        found.append((Statistics.of(k, q.reshape(len(k), -1, q.shape[-1])), Statistics.of(v)))
    return found


class Score:
    """What a pair did, window by window."""

    def __init__(self, pair: Pair):
        self.pair = pair
        self.bits: list[float] = []  # of a window, over all its tokens
        self.divergence: list[float] = []  # Kullback and Leibler's, from what 16 bits say; bits a token
        self.same: list[float] = []  # share of tokens of which the most likely next one is the same

    def add(self, logs: Tensor, base: Tensor, targets: Tensor) -> None:
        """Of a window: logarithms of probabilities [tokens, vocab], of this pair and of 16 bits."""
        self.bits.append(-float(logs.gather(1, targets[:, None]).double().sum()) / math.log(2))
        divergence = sum(float((b.exp() * (b - a)).sum()) for a, b in zip(logs.split(64), base.split(64), strict=True))
        self.divergence.append(divergence / len(logs) / math.log(2))
        self.same.append(float((logs.argmax(1) == base.argmax(1)).float().mean()))


def row_of(score: Score, base: Score, sizes: Sequence[int], config: Config) -> dict[str, float | str]:
    """A line of the table. Differences are of the same windows; sizes are their bytes."""
    mean_size, count = float(np.mean(sizes[: len(score.bits)])), len(score.bits)
    bits, plain = (np.array(x.bits) / mean_size for x in (score, base))
    more = bits - plain
    return {
        "setting": score.pair.text,
        "bits_per_value": score.pair.bits(config.head_dim),
        "bits_per_value_at_context": score.pair.bits(config.head_dim, config.context),
        "bits_per_byte": float(bits.mean()),
        "more_percent": 100 * float(more.mean() / plain.mean()),
        "standard_error_percent": 100 * float(more.std(ddof=min(1, count - 1)) / plain.mean()) / math.sqrt(count),
        "divergence_millibits": 1000 * float(np.mean(score.divergence)),
        "same_choice_percent": 100 * float(np.mean(score.same)),
        "windows": count,
    }


HEADER = f"{'K:V':<52} {'bits':>6} {'inall':>6}  {'bits/b':>8}  {'more than 16-bit':>18}  {'KL mbit':>8}  {'same':>6}"


def line(row: dict) -> str:
    """The same as it is printed."""
    return (
        f"{row['setting']:<52} {row['bits_per_value']:>6.2f} {row['bits_per_value_at_context']:>6.2f}  "
        f"{row['bits_per_byte']:>8.4f}  {row['more_percent']:>+7.2f} +- {row['standard_error_percent']:>4.2f} %  "
        f"{row['divergence_millibits']:>8.2f}  {row['same_choice_percent']:>6.2f} %"
    )


def study(
    model: Decoder, windows: np.ndarray, sizes: Sequence[int], pairs: Sequence[Pair], calibration: np.ndarray
) -> Iterator[list[Score]]:
    """Score all pairs, the first of which is 16 bits, window by window; yields what is known after each window."""
    statistics = calibrate(model, calibration)
    scores = [Score(pair) for pair in pairs]
    with tqdm(total=len(windows) * len(pairs), unit="pass", disable=None, leave=False) as bar:
        for window in torch.from_numpy(windows):
            base = None
            for score in scores:
                logs = model.logits(window[:-1], score.pair.attention(statistics)).log_softmax(-1)
                base = logs if base is None else base
                score.add(logs, base, window[1:])
                bar.update()
            yield scores


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    try:
        found = chat.load(args.model)
        texts = [text.read(pages) for pages in (text.pages(), args.text) if pages]
        count = -(-args.windows // len(texts))
        parts = [spread(found.tokenizer.encode(content), count, args.length + 1) for content in texts]
        windows = np.stack(parts, axis=1).reshape(-1, args.length + 1)[: args.windows]  # of each text in turn
        sizes = [sum(len(found.tokenizer.bytes_of(token)) for token in window[1:]) for window in windows.tolist()]
        files = sorted(text.ROOT.glob(CALIBRATION[0]))
        calibration = spread(found.tokenizer.encode(text.read(files)), *CALIBRATION[1:])
    except (WeightsError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    pairs = [Pair.of(BASE), *(pair for pair in args.settings if pair.text != BASE)]
    with torch.inference_mode():
        model = Decoder(found.config, found.tensors, torch.bfloat16 if args.bfloat16 else torch.float32)
        for scores in study(model, windows, sizes, pairs, calibration):
            rows = [row_of(score, scores[0], sizes, found.config) for score in scores]
            if args.json:
                args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(HEADER, *map(line, rows), sep="\n")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=16, help="of text to score (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="scored tokens of a window (default: %(default)s)")
    parser.add_argument("--settings", nargs="+", type=Pair.argument, default=[*map(Pair.of, SETTINGS)], metavar="K:V")
    parser.add_argument(
        "--text", type=Path, nargs="+", metavar="FILE", help="a second text, beside the project's pages"
    )
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, after each window")
    parser.add_argument("--bfloat16", action="store_true", help="multiply by weights in bfloat16: twice as fast")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.windows < 2:
        parser.error(f"--windows {args.windows} has no standard error; give at least 2")
    if args.length < 1:
        parser.error(f"--length {args.length} leaves no token to score; give at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
