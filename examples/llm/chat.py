"""Ask a language model, SmolLM2-135M-Instruct, with K and V in kvit's pages. Needs pip install '.[llm]'.

python chat.py "Why is the sky blue?"     one answer
python chat.py --kv int8:int4             a conversation; an empty line ends it
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tinylm"))  # the model in numpy, and how the next token is chosen

import model_file
from paged import HostEngine
from sampling import Sampler, greedy
from weights import WeightsError

import kvit

try:
    from conversation import Conversation
    from gguf_model import Model, Step, read
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed; run pip install '.[llm]' in kvit's folder")


@contextmanager
def progress() -> Iterator[Step]:
    """A bar on stderr while the model is read; none where stderr is no terminal."""
    form = "{desc:<32.32} {bar} {percentage:3.0f} %"
    with tqdm(total=1.0, bar_format=form, disable=None, leave=False) as bar:

        def step(fraction: float, label: str) -> None:
            bar.set_description_str(label, refresh=False)
            bar.update(fraction - bar.n)

        yield step


def load(path: Path | None) -> Model:
    """The model of a file; SmolLM2-135M-Instruct, fetched if it is not there yet, if absent. Raises WeightsError."""
    path = path or model_file.locate() or model_file.fetch()
    with progress() as step:
        return read(path, step)


def open_engine(model: Model, capacity: int, device: str, k: str | None, v: str | None) -> HostEngine:
    """The model on a device; auto is the first GPU, or the host.

    Raises kvit.KvitError: the device cannot be used, or k and v do not go together. ImportError: a GPU needs CuPy.
    """
    if device == "auto":
        try:
            kvit.Device.of("cuda:0")
        except kvit.KvitError:
            device = "host"
        else:
            device = "cuda:0"
    if device == "host":
        return HostEngine(model.config, model.tensors, capacity, k, v)
    try:
        from gpu import GpuEngine
    except ModuleNotFoundError as error:
        raise ImportError(
            f"on a GPU the model computes with CuPy ({error}); run pip install cupy-cuda13x, or say --device host"
        ) from error
    return GpuEngine(model.config, model.tensors, capacity, k, v, device)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", help="asked once; without one, a conversation begins")
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), host, or cuda:0 (default: auto)"
    )
    parser.add_argument("--kv", metavar="K[:V]", help="how K and V are stored, as --k and --v")
    codecs = "int8, int4, either with _hadamard, float8_e4m3 or float8_e5m2 (default: float16)"
    parser.add_argument("--k", metavar="CODEC", help=f"how K is stored: {codecs}")
    parser.add_argument("--v", metavar="CODEC", help="how V is stored, as --k")
    parser.add_argument("--tokens", type=int, default=256, help="the longest answer (default: %(default)s)")
    parser.add_argument(
        "--context", type=int, default=2048, help="tokens that the pages hold, of all turns (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.2, help="0 takes the most likely token (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told to be")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file (default: SmolLM2-135M-Instruct)")
    args = parser.parse_args(argv)
    if args.question is not None and not args.question.strip():
        parser.error("the question is empty; leave it out for a conversation")
    if not re.fullmatch(r"auto|host|cuda:\d+", args.device):
        parser.error(f"--device {args.device} is unknown; say auto, host or cuda:0")
    if args.kv and (args.k or args.v):
        parser.error("--kv says what --k and --v say; give one or the other")
    for name in ("tokens", "context"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} leaves no room; give at least 1")
    if not 0 <= args.temperature < float("inf"):
        parser.error(f"--temperature {args.temperature} is no temperature; give 0 or more")
    if args.seed < 0:
        parser.error(f"--seed {args.seed} is negative; give 0 or more")
    if args.kv:
        args.k, _, args.v = args.kv.partition(":")
        args.v = args.v or args.k
    return args


def questions(question: str | None) -> Iterator[str]:
    """The one question, or what is typed (or piped), up to an empty line."""
    if question is not None:
        yield question
        return
    try:
        while asked := input("> " if sys.stdin.isatty() else "").strip():
            yield asked
    except (EOFError, KeyboardInterrupt):
        print()


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        model = load(args.model)
        if args.context > model.config.context:
            raise WeightsError(
                f"--context {args.context} is more than {model.name} was made for: {model.config.context}"
            )
        engine = open_engine(model, args.context, args.device, args.k, args.v)
        choose = Sampler(args.temperature, args.seed) if args.temperature else greedy
        conversation = Conversation(model.tokenizer, engine, args.tokens, choose, args.system)
        print(f"{model.name} on {engine.device}, {engine.layers.memory()}", file=sys.stderr, flush=True)
        for question in questions(args.question):
            conversation.ask(question, lambda piece: print(piece, end="", flush=True))
            print(flush=True)
        if conversation.said_tokens:
            print(conversation.summary(), file=sys.stderr)
    except (kvit.KvitError, WeightsError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
