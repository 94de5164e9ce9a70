"""What quantised K and V cost the model: bits per byte of text it was not trained on, for each pair of codecs.

python evaluate.py [--bytes 65536] [--pairs int8:int4 16:int8] [--device cuda:0] [--json FILE]

K and V go through kvit.reference's codecs, row by row as a cache stores them, or with --device through kvit's cache and
kernels; all else is the model in float32. The text is the test split of the running interpreter's standard library
(corpus.py). Needs numpy and kvit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import corpus
import numpy as np
from model import Config, Decoder, load
from scoring import Score, bits_of, cached_attention, coded_attention, spread, token_bytes
from weights import WeightsError

import kvit
from kvit.reference import PAIRS, Pair

WINDOW = 256  # bytes that are scored together; each window begins without a history


def windows(text: bytes, count: int) -> np.ndarray:
    """[count, WINDOW + 1] bytes from places spread evenly over the text; the first byte of each is only context."""
    return spread(np.frombuffer(text, np.uint8), count, WINDOW + 1)


def evaluate(model: Decoder, pair: Pair, texts: np.ndarray, device: str | None = None) -> Score:
    """Score every window [windows, WINDOW + 1] in one forward pass each, in which every byte sees the true ones before.

    device  of kvit's cache; kvit.reference's codecs if absent
    """
    attend = coded_attention(pair) if device is None else cached_attention(pair, model.config, device, WINDOW)
    bits = [bits_of(model.forward(text[:-1], 0, attend), text[1:]).mean() for text in texts]
    return Score(pair, np.array(bits))


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
