"""`kvit tune`: times the kernels that serve the same call on this machine's GPU, and writes the fastest as rules."""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvit._cli import arguments, devices, display
from kvit._cli.tune_calls import Store, Work, stores, work_on
from kvit._cli.tune_rules import Figure, Group, groups_of, promotion_rule
from kvit._native.context import Device
from kvit.errors import KvitError
from kvit.selection import registry, tuning
from kvit.selection.cards import Card, card_of
from kvit.selection.rules import L2_PROMOTION, SETTINGS, Rule

_SEED = 20261130
_PROMOTED = ("b16", "i8")  # codecs of the caches that say what L2 is to fetch


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser("tune", help="measure which kernels are fastest here", description=__doc__)
    parser.add_argument("--device", default="cuda:0", help='"cuda:0" (default), ..., or "host" to try the command')
    parser.add_argument("--seconds", type=arguments.seconds, default=60.0, help="stop after so long (default: 60)")
    parser.add_argument("--output", type=Path, help="the file to write (default: the one that is read)")
    parser.add_argument("--seed", type=arguments.natural, default=_SEED, help="of the random inputs")
    parser.set_defaults(run=run)


class Measured(NamedTuple):
    """What was measured before the time was over."""

    figures: list[Figure]
    promotion: Rule | None  # None where no kernel copies by tensor maps
    stores: int  # ways to keep K and V that were measured to the end
    seconds: float


def run(options: argparse.Namespace) -> int:
    """Measure, write the file, and print what is faster than the choice of kvit's own rules."""
    device = Device.of(options.device)
    card = card_of(device)
    path = _path(options.output, card)
    ways, work = stores(), work_on(device.is_host)
    if device.is_host:
        print("The host computes to try this command: its times mean nothing.", flush=True)
    with display.progress(str(device)) as step:
        measured = _measure(device, ways, work, options.seconds, options.seed, step)
    groups = groups_of(measured.figures)
    rules = [rule for group in groups for rule in group.rules()]
    rules += [measured.promotion] if measured.promotion is not None else []
    today = datetime.date.today().isoformat()
    text = tuning.text_of(registry.installed().kvit, card, devices.driver_release() or "unknown", today, rules)
    if path is not None:
        _write(path, text)
    print(_words(measured, len(ways), card, groups))
    print(_where(path, card, len(rules)), flush=True)
    return 0


def _measure(
    device: Device, ways: Sequence[Store], work: Work, seconds: float, seed: int, step: display.Step
) -> Measured:
    """Measure call after call until the time is over, at least one."""
    import numpy as np

    import kvit
    from kvit._cli.tune_inputs import Inputs

    started, stream, rng = time.monotonic(), kvit.Stream(device), np.random.default_rng(seed)
    figures: list[Figure] = []
    promoted: dict[str, dict[int, float]] = {}
    calls, done, complete = len(ways) * len(work.rungs), 0, 0
    for store in ways:
        inputs = None  # the memory of the cache before is free again before this one takes its own
        for rung in work.rungs:
            elapsed = time.monotonic() - started
            if figures and elapsed >= seconds:
                break
            step(max(done / calls, min(1.0, elapsed / seconds)), f"{store}: {rung.loads[0]}")
            inputs = inputs or Inputs(store, work, stream, rng)
            if rung is work.rungs[0] and store.kv in _PROMOTED and store[1:] == ways[0][1:]:
                promoted |= _promotions(inputs, store, work, stream)
            for load in rung.loads:
                contenders = inputs.contenders(load)
                us = _times(stream, inputs.calls(load, contenders), work)
                by_kernel = {each.op.kernel: time for each, time in zip(contenders, us, strict=True)}
                figures.append(Figure(store, rung, load, contenders[0].op.plan.choice.call, by_kernel))
            done += 1
        else:
            complete += 1
            continue
        break
    promotion = promotion_rule(promoted) if promoted else None
    return Measured(figures, promotion, complete, time.monotonic() - started)


def _promotions(inputs: Any, store: Store, work: Work, stream: Any) -> dict[str, dict[int, float]]:
    """Times of the largest call of one new token, by what L2 fetches at once; empty where no tensor map is used."""
    load = max(work.rungs[0].loads, key=lambda load: load.batch * load.context)
    shipped = inputs.contenders(load)[0].op.plan
    if shipped.l2_promotion is None:
        return {}
    first = shipped.l2_promotion.order[0]
    sizes = sorted(SETTINGS[L2_PROMOTION], key=lambda size: size != first)
    contenders = inputs.contenders_under(load, [Rule(L2_PROMOTION, (size,), "to be measured") for size in sizes])
    us = _times(stream, inputs.calls(load, contenders), work)
    return {f"{store.kv}, {load}": {int(size): time for size, time in zip(sizes, us, strict=True)}}


def _times(stream: Any, calls: Sequence[Sequence[Callable[[], object]]], work: Work) -> list[float]:
    from kvit._cli.stopwatch import Replay, take_turns

    return take_turns([Replay(stream, of_one, work.replay_ms) for of_one in calls], work.replays)


def _path(output: Path | None, card: Card) -> Path | None:
    """Where to write, if it can be written; None: nowhere. Raises KvitError, before anything is measured."""
    is_host = card.compute_capability is None
    usual = None if is_host else tuning.usual_path(card)
    path = output or tuning.path_for(card) or usual
    if path is None:
        if is_host:
            return None
        raise KvitError("neither XDG_CONFIG_HOME nor HOME names a folder for the file; give --output FILE")
    if path.exists() and path != usual:
        try:
            tuning.read(path)
        except KvitError as error:
            raise KvitError(f"{path} is not replaced: kvit tune did not write it; give another --output") from error
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        why = f"{folder} takes no file: {error.strerror}"
        raise KvitError(f"{path} cannot be written: {why}; give --output FILE") from None
    return path


def _write(path: Path, text: str) -> None:
    """Put the file there as a whole: who reads at the same time finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _words(measured: Measured, num_stores: int, card: Card, groups: Sequence[Group]) -> str:
    """What is faster here than what kvit's own rules choose."""
    title = (
        f"{card.words}: {len(measured.figures)} kinds of calls in {measured.seconds:.0f} s, for {measured.stores} of "
        f"{num_stores} ways to keep K and V; of the others kvit's own rules decide"
    )
    header = ("stored as", "head_dim", "tokens of a page", "query rows", "kvit's own choice", "fastest here", "times")
    rows = [
        (
            group.when["kv"],
            group.when["head_dim"],
            _range(group.when["page_size"]),
            _range(group.when["rows"]),
            _short(group.shipped),
            _short(group.best),
            f"{group.scores[group.shipped] / group.scores[group.best]:.2f}",
        )
        for group in groups
        if group.best is not group.shipped
    ]
    if not rows:
        return f"{title}\nkvit's own choice is the fastest in all of {len(groups)} classes of calls, or within 2 %"
    return f"{title}\nin {len(rows)} of {len(groups)} classes of calls another kernel is faster:\n" + display.table(
        header, rows, "  "
    )


def _where(path: Path | None, card: Card, num_rules: int) -> str:
    """Which file was written, and who reads it."""
    if path is None:
        return "Nothing is written; --output FILE writes the rules"
    if path == tuning.path_for(card):
        return f"{num_rules} rules are in {path}, which processes that begin from now on read"
    return f"{num_rules} rules are in {path}; {tuning.VARIABLE}={path.absolute()} makes a process read them"


def _range(limits: dict[str, int]) -> str:
    if "max" not in limits:
        return f"{limits['min']} or more"
    return f"{limits.get('min', 1)} to {limits['max']}"


def _short(kernel: registry.KernelInfo) -> str:
    return f"{kernel.family} {kernel.axes['copies']} h{kernel.axes['rows']}"
