"""`kvit kernels`: the kernels that are built, and which of them this machine's devices can run."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kvit._cli import devices, display
from kvit.errors import KernelMissing
from kvit.selection import registry


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser("kernels", help="the kernels that are built", description=__doc__)
    parser.add_argument("--family", action="append", help="only this family, such as decode; may be given again")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the kernels. Raises KernelMissing: nothing is built, or not this family."""
    entries = _selected(options.family)
    present = devices.all_devices()
    if options.json:
        print(json.dumps([_row(entry, present) for entry in entries], indent=2))
    else:
        families: dict[str, list[registry.KernelInfo]] = {}
        for entry in entries:
            families.setdefault(entry.family, []).append(entry)
        print("\n\n".join(_text(family, present) for family in families.values()))
    return 0


def _selected(families: list[str] | None) -> list[registry.KernelInfo]:
    entries = registry.all()
    built = dict.fromkeys(entry.family for entry in entries)
    for family in families or ():
        if family not in built:
            raise KernelMissing(f"no kernel family {family!r} is built; built families are {', '.join(built)}")
    return [entry for entry in entries if not families or entry.family in families]


def _row(entry: registry.KernelInfo, present: list[devices.Device]) -> dict[str, Any]:
    return {
        "symbol": entry.symbol,
        "family": entry.family,
        "axes": dict(entry.axes),
        "params": entry.params,
        "threads": entry.threads,
        "shared_bytes": entry.shared_bytes,
        "facts": dict(entry.facts),
        "archs": list(entry.archs),
        "runs_on": {str(device): devices.target_on(entry, device) for device in present},
    }


def _text(family: list[registry.KernelInfo], present: list[devices.Device]) -> str:
    axes = list(family[0].axes)
    header = ("symbol", *axes, "threads", "shared bytes", "built for", *map(str, present))
    rows = [
        (
            entry.symbol,
            *(entry.axes[axis] for axis in axes),
            entry.threads,
            entry.shared_bytes,
            " ".join(entry.archs) or "the host alone",
            *("yes" if target == "host" else target or "no" for target in _targets(entry, present)),
        )
        for entry in family
    ]
    title = f"{family[0].family}: {len(family)} kernel{'s' * (len(family) > 1)}, {family[0].params}"
    return f"{title}\n{display.table(header, rows, '  ')}"


def _targets(entry: registry.KernelInfo, present: list[devices.Device]) -> list[str | None]:
    return [devices.target_on(entry, device) for device in present]
