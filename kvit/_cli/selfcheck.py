"""`kvit selfcheck`: up to a minute of random checks against kvit.reference, on one device or on all of this machine."""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from kvit._cli import arguments, devices, display
from kvit._native.context import Device
from kvit.errors import DriverError, KernelMissing, KvitError
from kvit.selection import registry

if TYPE_CHECKING:
    from kvit._cli.trial import Shape

_PAGE_SIZES = (1, 16, 64, 100)  # one token; powers of two; one that no tile fits
_LAYOUTS = ("NHD", "HND")
_MAX_FAILURES = 5  # of one device: what is broken is clear by then


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser("selfcheck", help="check this machine against the reference", description=__doc__)
    parser.add_argument("--device", default="all", help='"host", "cuda:0", ... or "all" (default)')
    parser.add_argument("--seconds", type=arguments.seconds, default=60.0, help="in all (default: 60)")
    parser.add_argument("--seed", type=arguments.natural, help="of the random inputs (default: another one every time)")
    parser.add_argument("--case", type=arguments.natural, help="run this case of the seed alone, as a failure names it")
    parser.add_argument("--bits", metavar="FILE", help="write a digest of each case's results, to compare machines")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Case:
    """One check of one shape. Its number and the seed give its random inputs."""

    number: int
    check: str
    shape: Shape


def run(options: argparse.Namespace) -> int:
    """Run the cases on each device in turn. Returns 1 if one failed."""
    chosen = devices.all_devices() if options.device == "all" else [Device.of(options.device)]
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    cases = plan(seed)
    if options.case is not None:
        if options.case >= len(cases):
            raise KvitError(f"there is no case {options.case}; what is built makes cases 0 to {len(cases) - 1}")
        cases = [cases[options.case]]
    print(f"seed {seed}", flush=True)
    if options.device == "all" and len(chosen) == 1:
        print(f"no GPU is checked: {devices.gpus()[1]}", flush=True)
    seconds = options.seconds / len(chosen)
    with _opened(options.bits) as bits:
        return int(any([_check_device(str(device), cases, seed, seconds, bits) for device in chosen]))


def plan(seed: int) -> list[Case]:
    """Every check on every shape that is built, in an order that has each check among the first few, each axis soon.

    Raises KernelMissing where nothing is built.
    """
    from kvit._cli.checks import CHECKS
    from kvit._cli.trial import Shape

    built = dict.fromkeys((entry.axes["dtype"], entry.axes["head_dim"]) for entry in registry.candidates("append"))
    if not built:
        raise KernelMissing("no append kernel is built, so there is no cache to check; reinstall kvit")
    shapes = [Shape(*key, *rest) for key in built for rest in itertools.product(_PAGE_SIZES, _LAYOUTS)]
    shuffled = {}
    for check in CHECKS:
        shuffled[check] = shapes.copy()
        random.Random(f"{seed} {check}").shuffle(shuffled[check])
    pairs = ((check, shuffled[check][i]) for i in range(len(shapes)) for check in CHECKS)
    return [Case(number, *pair) for number, pair in enumerate(pairs)]


@contextmanager
def _opened(path: str | None) -> Iterator[TextIO | None]:
    """The file that --bits names, written anew; None where there is no such option. Raises KvitError."""
    if path is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w", encoding="utf-8"))
        except OSError as error:
            raise KvitError(
                f"--bits cannot write to {path}: {error.strerror}; name a file in a folder that exists"
            ) from None
        yield file


def _check_device(device: str, cases: list[Case], seed: int, seconds: float, bits: TextIO | None) -> bool:
    """Run cases until the time is up, each kind of check at least once. Prints failures; returns whether any were.

    bits  gets a line for each case: its device, its number, a SHA-256 of its results, its check and shape
    """
    from kvit._cli.checks import CHECKS
    from kvit._cli.compare import digest_of_results

    started, failures, done = time.monotonic(), 0, 0
    with display.progress(device) as step:
        for case in cases:
            elapsed = time.monotonic() - started
            if done >= len(CHECKS) and elapsed >= seconds:
                break
            step(max(done / len(cases), min(1.0, elapsed / seconds)), f"{case.check}: {case.shape}")
            with digest_of_results() as digest:
                report = _failure(case, seed, device)
            done += 1
            if bits is not None:
                print(f"{device} {case.number} {digest} {case.check}: {case.shape}", file=bits)
            if report is not None:
                failures += 1
                print(report[0], flush=True)
                if report[1] or failures == _MAX_FAILURES:
                    break
    elapsed = time.monotonic() - started
    verdict = "all right" if failures == 0 else f"{failures} FAILED"
    print(f"{device}: {done} of {len(cases)} cases in {elapsed:.1f} s, {verdict}", flush=True)
    return failures > 0


def _failure(case: Case, seed: int, device: str) -> tuple[str, bool] | None:
    """What went wrong in a case, and whether the device is lost with it; None if nothing did."""
    import numpy as np

    from kvit._cli.checks import CHECKS
    from kvit._cli.compare import Mismatch
    from kvit._cli.trial import Trial

    trial = Trial(device, case.shape, np.random.default_rng([seed, case.number]))
    try:
        CHECKS[case.check](trial)
        return None
    except Mismatch as mismatch:
        words, is_lost = str(mismatch), False
    except Exception as error:  # whatever it is, the report must say where it came from
        words, is_lost = f"{type(error).__name__}: {error}", isinstance(error, DriverError)
    chosen = "".join(f"\n  {name}: {value}" for name, value in trial.chosen.items())
    again = f"kvit selfcheck --device {device} --seed {seed} --case {case.number}"
    return f"FAILED {case.check} on {device}: {words}\n  cache: {case.shape}{chosen}\n  again: {again}", is_lost
