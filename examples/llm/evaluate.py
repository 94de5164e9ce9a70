"""What quantised K and V cost SmolLM2: bits per byte of text it has not seen, for each pair of codecs.

python evaluate.py [--windows 64] [--length 256] [--pairs int8:int4 16:int8] [--smoothing 4096] [--needles 20]
                   [--json FILE]

K and V go through kvit.reference's codecs, row by row as a cache stores them, or with --device through kvit's cache and
kernels; all else is the model in float32. The text is the prose of this project's own pages (text.py), or --text.
Smoothings of keys are measured on another text, kvit's own Python source.
Needs pip install '.[llm]'.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.append(
    str(Path(__file__).parents[1] / "tinylm")
)  # the model in numpy, and what its own evaluate.py is made of

import chat
import needles
import smoothing
import text
from model import Attend, Config, Decoder
from scoring import DTYPE, Score, bits_of, cached_attention, coded_attention, margin, spread, token_bytes
from tokens import Tokenizer
from tqdm import tqdm
from weights import WeightsError

import kvit
from kvit.reference import PAIRS, Pair

BASE = PAIRS[0]  # 16 bits, which the others are compared with
CALIBRATION_WINDOW, CALIBRATION_LEAST = 256, 32  # tokens of a window, and of all


class Result(NamedTuple):
    """What one treatment did."""

    score: Score
    is_smoothed: bool
    choices: np.ndarray  # [windows, length - 1] the most likely tokens
    found: np.ndarray  # [needles] whether the answer was the needle


class Treatment(NamedTuple):
    """What K and V go through on their way. A new one is a field here, and words in the table."""

    pair: Pair
    smoothings: Sequence[kvit.KeySmoothing] = ()  # of the keys of each layer

    def attention(self, config: Config, capacity: int, device: str | None) -> Attend:
        """In texts of up to `capacity` tokens. Raises kvit.KvitError."""
        if device is None:
            return coded_attention(self.pair, self.smoothings)
        return cached_attention(self.pair, config, device, capacity, self.smoothings)

    def __str__(self) -> str:
        return f"{self.pair}, smoothed" if self.smoothings else str(self.pair)


class Evaluation:
    """The texts, and what each pair makes of them.

    windows   [windows, length] tokens; the first of each is only context
    device    of kvit's cache; kvit.reference's codecs if absent
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        windows: np.ndarray,
        haystacks: Sequence[needles.Haystack] = (),
        device: str | None = None,
    ):
        self._model, self._windows, self._haystacks, self._device = model, windows, haystacks, device
        sizes = [sum(len(tokenizer.bytes_of(token)) for token in window[1:]) for window in windows.tolist()]
        self.num_bytes = sum(sizes)
        self._bytes_of_window = self.num_bytes / len(windows)
        self._capacity = max(windows.shape[1], *(len(haystack.tokens) for haystack in haystacks), 0)

    @property
    def steps(self) -> int:
        """Forward passes that a pair takes."""
        return len(self._windows) + len(self._haystacks)

    def of(self, treatment: Treatment, bar: tqdm) -> Result:
        """Score every window in one pass each, in which every token sees the true ones before."""
        attend = treatment.attention(self._model.config, self._capacity, self._device)
        bits, choices, found = [], [], []
        for window in self._windows:
            logits = self._model.forward(window[:-1], 0, attend)
            # Bits over the mean size of a window: so their mean is all bits over all bytes.
            bits.append(bits_of(logits, window[1:]).sum() / self._bytes_of_window)
            choices.append(logits.argmax(axis=1))
            bar.update()
        for haystack in self._haystacks:
            found.append(haystack.is_found(self._model, attend))
            bar.update()
        score, is_smoothed = Score(treatment.pair, np.array(bits)), bool(treatment.smoothings)
        return Result(score, is_smoothed, np.array(choices), np.array(found, bool))


def row_of(result: Result, base: Result, config: Config) -> dict[str, Any]:
    """A line of the table, as --json writes it; all of `more` is relative to 16-bit, over the same windows."""
    score = result.score
    more, error = score.over(base.score)
    taken = token_bytes(score.pair, config)
    found = {"needles_found": int(result.found.sum()), "needles": len(result.found)} if len(result.found) else {}
    return {
        "k": score.pair.k,
        "v": score.pair.v,
        "is_smoothed": result.is_smoothed,
        "token_bytes": taken,
        "tokens_in_same_memory": token_bytes(BASE, config) / taken,
        "bits_per_byte": float(score.bits.mean()),
        "more": more,
        "standard_error": error,
        "margin_95": margin(error, len(score.bits)),
        "more_percent": 100 * more / float(base.score.bits.mean()),
        "same_choice_percent": 100 * float((result.choices == base.choices).mean()),
        **found,
    }


def line(row: dict[str, Any]) -> str:
    """The same as the table shows it."""
    needle = f"  {row['needles_found']}/{row['needles']}" if "needles" in row else "  -"
    k = f"{row['k']}, smoothed" if row["is_smoothed"] else row["k"]
    return (
        f"{k:<23} {row['v']:<13} {row['token_bytes']:>11,}  {row['tokens_in_same_memory']:>6.2f}  "
        f"{row['bits_per_byte']:>9.4f}  {row['more']:>+8.4f} +- {row['margin_95']:.4f}  "
        f"{row['more_percent']:>+6.2f} %  {row['same_choice_percent']:>6.2f} %{needle}"
    )


HEADER = (
    f"{'K':<23} {'V':<13} {'bytes/token':>11}  {'tokens':>6}  {'bits/byte':>9}  {'more than 16-bit':>18}  {'':>8}  "
    f"{'same':>8}  needles"
)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        found = chat.load(args.model)
        content = text.read(args.text or text.pages())
        model, tokenizer = Decoder(found.config, found.tensors), found.tokenizer
        tokens = tokenizer.encode(content)
        longest = max(args.length, args.needle_length if args.needles else 0)
        if longest > found.config.context:
            raise WeightsError(f"{found.name} was made for texts of {found.config.context} tokens; give shorter ones")
        if len(tokens) < longest:
            raise WeightsError(f"the text has {len(tokens)} tokens, and a window or haystack {longest}; give more text")
        haystacks = needles.hide(tokenizer, content, args.needles, args.needle_length)
        evaluation = Evaluation(model, tokenizer, spread(tokens, args.windows, args.length), haystacks, args.device)
        about = {
            "model": found.name,
            "text_sha256": hashlib.sha256(content.encode()).hexdigest(),
            "windows": args.windows,
            "length": args.length,
            "scored_tokens": args.windows * (args.length - 1),
            "scored_bytes": evaluation.num_bytes,
            "device": args.device or "kvit.reference",
            "dtype": DTYPE,
            "smoothing_tokens": args.smoothing,
        }
        rows: list[dict] = []
        treatments = [Treatment(pair) for pair in args.pairs if pair != BASE]
        if args.smoothing:
            smoothings = smoothing.measured(model, calibration(tokenizer, args.smoothing))
            treatments += [Treatment(pair, smoothings) for pair in args.pairs if pair.k != "16"]
        for row in table(evaluation, treatments, found.config, about):
            rows.append(row)
            if args.json:  # each time: an evaluation that is ended early leaves what it has found
                args.json.write_text(json.dumps({**about, "pairs": rows}, indent=2) + "\n", encoding="utf-8")
    except (kvit.KvitError, WeightsError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def calibration(tokenizer: Tokenizer, count: int) -> np.ndarray:
    """[windows, tokens] `count` tokens of a text of another kind than the one that is scored: kvit's Python source."""
    tokens = tokenizer.encode(text.read(sorted((text.ROOT / "kvit").rglob("*.py"))))
    length = min(CALIBRATION_WINDOW, count)
    return spread(tokens, count // length, length)


def table(
    evaluation: Evaluation, treatments: Sequence[Treatment], config: Config, about: dict[str, Any]
) -> Iterator[dict]:
    """Print a line for each treatment as soon as it is known, below a bar, and yield it as --json writes it."""
    print(
        f"{about['scored_tokens']:,} tokens, {about['scored_bytes']:,} bytes, in {about['windows']} windows of "
        f"{about['length']} tokens; +- is a 95 % confidence interval\n{HEADER}",
        flush=True,
    )
    with tqdm(total=evaluation.steps * (1 + len(treatments)), unit="pass", disable=None, leave=False) as bar:
        base = evaluation.of(Treatment(BASE), bar)
        for treatment in (None, *treatments):
            bar.set_description(str(treatment or BASE))
            found = row_of(base if treatment is None else evaluation.of(treatment, bar), base, config)
            bar.clear()
            print(line(found), flush=True)
            yield found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=16, help="of text to score (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="of a window, in tokens (default: %(default)s)")
    parser.add_argument(
        "--pairs",
        nargs="+",
        type=Pair.argument,
        default=PAIRS,
        metavar="K:V",
        help="codecs; 16 is float16 (default: all)",
    )
    parser.add_argument(
        "--smoothing",
        type=int,
        default=0,
        metavar="TOKENS",
        help="try keys through a kvit.KeySmoothing too, measured on so many tokens (default: none)",
    )
    parser.add_argument("--needles", type=int, default=0, help="numbers to find in long texts (default: none)")
    parser.add_argument(
        "--needle-length", type=int, default=512, help="of the texts around them, in tokens (default: %(default)s)"
    )
    parser.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="(default: this project's pages)")
    parser.add_argument("--device", help="of kvit's cache: host or cuda:0 (default: kvit.reference, in numpy)")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    args = parser.parse_args(argv)
    if args.windows < 2:
        parser.error(f"--windows {args.windows} has no standard error; give at least 2")
    if args.length < 2:
        parser.error(f"--length {args.length} leaves no token to score; give at least 2")
    if args.smoothing and args.smoothing < CALIBRATION_LEAST:
        parser.error(f"--smoothing {args.smoothing} measures too little; give at least {CALIBRATION_LEAST} tokens")
    if args.needles < 0 or args.needle_length < needles.SHORTEST:
        parser.error(f"--needles is 0 or more, and --needle-length at least {needles.SHORTEST}")
    return args


if __name__ == "__main__":
    sys.exit(main())
