"""What quantised K and V cost the model: bits per byte of text it was not trained on, for each pair of codecs.

python evaluate.py [--bytes 65536] [--pairs int8:int4 16:int8] [--device cuda:0] [--json FILE]

K and V go through kvit.reference's codecs, row by row as a cache stores them, or with --device through kvit's cache and
kernels; all else is the model in float32. The text is the test split of the running interpreter's standard library
(corpus.py). Needs numpy and kvit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import corpus
import numpy as np
from model import Attend, Config, TinyLM, load
from weights import WeightsError

import kvit
from kvit.reference import PAIRS, Pair

PAGE_SIZE = 16  # tokens
WINDOW = 256  # bytes that are scored together; each window begins without a history
DTYPE = "float16"  # of rows of K and V before any codec: what "16" stands for


def token_bytes(pair: Pair, config: Config) -> int:
    """Bytes of K and V of a token in all layers, parameters included."""
    return config.layers * config.kv_heads * pair.row_bytes(DTYPE, config.head_dim)


class Score(NamedTuple):
    """How well the model predicts with one pair."""

    pair: Pair
    bits: np.ndarray  # [windows] bits per byte of each window

    def over(self, base: Score) -> tuple[float, float]:
        """Bits per byte more than `base`, over the same windows, and the standard error of that."""
        more = self.bits - base.bits
        return float(more.mean()), float(more.std() / math.sqrt(len(more)))


def coded_attention(pair: Pair) -> Attend:
    """Attention of one window to itself, over K and V as their codecs leave them.

    Everything is there at once, so nothing is stored between calls: encoding a token depends on no other.
    """
    codecs = pair.codecs(DTYPE)

    def attend(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        k, v = (
            codec.decode(*codec.encode(x.astype(np.float16)), np.float32)
            for codec, x in zip(codecs, (k, v), strict=True)
        )
        return causal_attention(q.astype(np.float16).astype(np.float32), k, v)

    return attend


def cached_attention(pair: Pair, config: Config, device: str) -> Attend:
    """The same through a kvit.PagedCache, which holds one layer of one window at a time.

    Raises KvitError: the device cannot be used, or no kernel covers the pair.
    """
    k_codec, v_codec = pair.codecs(DTYPE)
    cache = kvit.PagedCache(
        pages=-(-WINDOW // PAGE_SIZE),
        page_size=PAGE_SIZE,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=DTYPE,
        k=k_codec.name,
        v=v_codec.name,
        device=device,
    )

    def attend(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        q, k, v = (kvit.Buffer.from_numpy(x.astype(np.float16), device) for x in (q, k, v))
        sequence = cache.sequence()
        cache.append([sequence], k, v)
        out = kvit.attention(q, cache, [sequence]).numpy().astype(np.float32)
        sequence.free()
        return out

    return attend


def causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """kvit.reference.attention of equally many queries and keys, in float32 and without a loop over queries."""
    tokens, query_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(tokens, kv_heads, -1, head_dim).transpose(1, 2, 0, 3)  # [kv_head, group, token, channel]
    scores = grouped @ k.transpose(1, 2, 0)[:, None] * np.float32(head_dim**-0.5)
    scores[..., ~np.tri(tokens, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out = weights @ v.transpose(1, 0, 2)[:, None]
    return out.transpose(2, 0, 1, 3).reshape(tokens, query_heads, head_dim)


def windows(text: bytes, count: int) -> np.ndarray:
    """[count, WINDOW + 1] bytes from places spread evenly over the text; the first byte of each is only context."""
    starts = np.linspace(0, len(text) - WINDOW - 1, count).astype(int)
    return np.frombuffer(text, np.uint8)[starts[:, None] + np.arange(WINDOW + 1)]


def evaluate(model: TinyLM, pair: Pair, texts: np.ndarray, device: str | None = None) -> Score:
    """Score every window [windows, WINDOW + 1] in one forward pass each, in which every byte sees the true ones before.

    device  of kvit's cache; kvit.reference's codecs if absent
    """
    attend = coded_attention(pair) if device is None else cached_attention(pair, model.config, device)
    return Score(pair, np.array([bits_per_byte(model.forward(text[:-1], 0, attend), text[1:]) for text in texts]))


def bits_per_byte(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean of -log2 of the probability that logits [tokens, vocab] give to targets [tokens]."""
    logits = logits.astype(np.float64)
    highest = logits.max(axis=1)
    log_total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return float((log_total - logits[np.arange(len(targets)), targets]).mean() / math.log(2))


def line(score: Score, base: Score, config: Config) -> str:
    """A row of the table that main prints."""
    more, error = score.over(base)
    taken = token_bytes(score.pair, config)
    size = f"{taken:>11,}  {token_bytes(base.pair, config) / taken:>6.2f}"
    return f"{score.pair.k:<12} {score.pair.v:<12} {size}  {score.bits.mean():9.4f}  {more:+8.4f} +- {error:.4f}"


def as_json(score: Score, base: Score, config: Config) -> dict[str, str | float]:
    """The same as --json writes it."""
    more, error = score.over(base)
    return {
        **asdict(score.pair),
        "token_bytes": token_bytes(score.pair, config),
        "bits_per_byte": float(score.bits.mean()),
        "more": more,
        "standard_error": error,
    }


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        model, _ = load(args.weights)
        text = corpus.read()["test"]
    except (WeightsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    texts = windows(text, args.bytes // WINDOW)
    print(f"{texts[:, 1:].size:,} held-out bytes in windows of {WINDOW}, of {len(text):,} in the test split")
    print(f"{'K':<12} {'V':<12} {'bytes/token':>11}  {'tokens':>6}  {'bits/byte':>9}  {'more than 16-bit':>18}")
    try:
        scores = [evaluate(model, PAIRS[0], texts, args.device)]
        for pair in args.pairs:
            scores.append(scores[0] if pair == PAIRS[0] else evaluate(model, pair, texts, args.device))
            print(line(scores[-1], scores[0], model.config), flush=True)
    except kvit.KvitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        rows = [as_json(score, scores[0], model.config) for score in scores[1:]]
        args.json.write_text(json.dumps({"bytes": texts[:, 1:].size, "pairs": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=16384, help="of held-out text to score (default: %(default)s)")
    parser.add_argument(
        "--pairs",
        nargs="+",
        type=Pair.argument,
        default=PAIRS,
        metavar="K:V",
        help="codecs; 16 is float16 (default: all)",
    )
    parser.add_argument("--device", help="of kvit's cache: host or cuda:0 (default: kvit.reference, in numpy)")
    parser.add_argument(
        "--weights", type=Path, default=Path(__file__).with_name("model.safetensors"), help="(default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    args = parser.parse_args(argv)
    if args.bytes < WINDOW:
        parser.error(f"--bytes {args.bytes} is less than a window; give at least {WINDOW}")
    return args


if __name__ == "__main__":
    sys.exit(main())
