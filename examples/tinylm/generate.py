"""Continue a piece of Python, byte by byte, with K and V in kvit's paged cache. Needs numpy and kvit.

python generate.py "def read_" --tokens 200
"""

from __future__ import annotations

import argparse
import codecs
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from backends import PagedAttention, ReferenceAttention
from model import END_OF_FILE, Attend, Config, Decoder, load
from sampling import Choose, Sampler, continued, greedy
from weights import WeightsError

import kvit

START = b"\n"  # stands before every prompt: the model then knows that a line begins


def generate(model: Decoder, attend: Attend, prompt: bytes, count: int, choose: Choose) -> Iterator[int]:
    """Yield up to count bytes that follow the prompt, each as soon as it is known; fewer where the model ends its file.

    attend   empty; holds the prompt and all that was yielded, but the last byte, afterwards
    choose   picks a byte from logits [vocab]
    """
    position = 0

    def score(tokens: np.ndarray) -> np.ndarray:
        nonlocal position
        logits = model.forward(tokens, position, attend)[-1]
        position += len(tokens)
        return logits

    return continued(score, np.frombuffer(prompt, np.uint8), count, choose, END_OF_FILE)


def open_attention(config: Config, capacity: int, device: str, kv: str | None) -> PagedAttention:
    """PagedAttention on the device, K and V stored as `kv` (one codec, or K:V); auto is the first GPU, or the host."""
    k, _, v = (kv or "").partition(":")
    stored = (k or None, v or k or None)
    if device != "auto":
        return PagedAttention(config, capacity, device, *stored)
    try:
        return PagedAttention(config, capacity, "cuda:0", *stored)
    except kvit.NoGpuError:
        return PagedAttention(config, capacity, "host", *stored)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", help="the beginning of the text")
    parser.add_argument("--tokens", type=int, default=200, help="bytes to generate (default: %(default)s)")
    parser.add_argument("--device", default=None, help="auto (a GPU if there is one), host, or cuda:0 (default: auto)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.6,
        help="below 1 keeps to likely bytes; 0 is --greedy (default: %(default)s)",
    )
    parser.add_argument(
        "--greedy", action="store_const", const=0.0, dest="temperature", help="always the most likely byte"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument(
        "--kv",
        metavar="K[:V]",
        help="store K and V as int8, int4, either with _hadamard, float8_e4m3 or float8_e5m2 (default: float16)",
    )
    parser.add_argument(
        "--reference", action="store_true", help="attention by kvit.reference, in numpy, instead of kvit's kernels"
    )
    parser.add_argument(
        "--weights", type=Path, default=Path(__file__).with_name("model.safetensors"), help="(default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if not args.prompt:
        parser.error("the prompt is empty; give at least one character to continue")
    if args.tokens < 1:
        parser.error(f"--tokens {args.tokens} generates nothing; ask for at least 1")
    if not 0 <= args.temperature < float("inf"):
        parser.error(f"--temperature {args.temperature} is no temperature; give 0 (greedy) or more")
    if args.seed < 0:
        parser.error(f"--seed {args.seed} is negative; give 0 or more")
    if args.reference and (args.device or args.kv):
        parser.error("--reference computes in numpy, in float16, and has no device; leave out --device and --kv")
    args.device = args.device or "auto"
    if not re.fullmatch(r"auto|host|cuda:\d+", args.device):
        parser.error(f"--device {args.device} is unknown; say auto, host or cuda:0")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        model, _ = load(args.weights)
        prompt = START + args.prompt.encode(errors="surrogateescape")
        capacity = len(prompt) + args.tokens - 1  # the last byte is not fed back
        if capacity > model.config.context:
            room = model.config.context + 1 - len(prompt)
            advice = f"ask for at most {room} tokens" if room > 0 else f"shorten the prompt by {1 - room} or more"
            print(
                f"error: the prompt's {len(prompt) - 1} bytes and --tokens {args.tokens} exceed the model's context "
                f"({model.config.context}); {advice}",
                file=sys.stderr,
            )
            return 2
        if args.reference:
            attend = ReferenceAttention(model.config)
        else:
            attend = open_attention(model.config, capacity, args.device, args.kv)
        stream(model, attend, prompt, args)
    except (kvit.KvitError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def stream(
    model: Decoder, attend: PagedAttention | ReferenceAttention, prompt: bytes, args: argparse.Namespace
) -> None:
    """Print the text to stdout as it is made, and then, to stderr, its speed and memory."""
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    print(f"attention on {attend.device}", file=sys.stderr, flush=True)
    print(args.prompt, end="", flush=True)
    choose = Sampler(args.temperature, args.seed) if args.temperature else greedy
    # A character may take several bytes, and an unlucky draw may break one off.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    begin, count = time.perf_counter(), 0
    for token in generate(model, attend, prompt, args.tokens, choose):
        print(decoder.decode(bytes([token])), end="", flush=True)
        count += 1
    seconds = time.perf_counter() - begin
    print(decoder.decode(b"", final=True), flush=True)
    ended = "" if count == args.tokens else " (the model ended its file)"
    print(
        f"{count} tokens{ended} in {seconds:.1f} s on {attend.device}: {count / seconds:.1f} tokens/s", file=sys.stderr
    )
    print(attend.memory(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
