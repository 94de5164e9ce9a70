"""What kvit costs on the host: to import, to the first result, and for each call, beside others that launch a kernel.

python benchmarks/host.py [--device cuda:0] [--rounds 5] [--busy] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import idle_driver
import measure

import kvit
from kvit._cli import display, info

_CALLS = Path(__file__).with_name("host_calls.py")
_BUSY = ([], ["--busy"])
_BARE_LAUNCH = "cuda.bindings cuLaunchKernel"

# The process prints both ends by CLOCK_MONOTONIC: the clock of all processes of a machine.
_BETWEEN_MARKS = "import time; begin = time.monotonic_ns()\n{program}\nprint(begin, time.monotonic_ns())"
_FIRST_RESULT = """
import numpy
import kvit
cache = kvit.PagedCache(8, 16, 8, 128, device={device!r})
sequence = cache.sequence()
rows = numpy.ones((3, 8, 128), numpy.uint16)
k, v, q = (kvit.Tensor.wrap(kvit.Buffer.from_numpy(rows[:n], {device!r}), "bfloat16") for n in (3, 3, 1))
cache.append([sequence], k, v)
assert numpy.isfinite(kvit.attention(q, cache, [sequence]).numpy().astype(numpy.float32)).all()
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    options = _parse(arguments)
    try:
        kvit.Device.of(options.device)
        idle_driver.compiler()
    except kvit.NoGpuError as error:
        reason = str(error).partition(". ")[0]
        hint = "give --device host, which measures all that needs no GPU"
        return measure.refuse("host", kvit.NoGpuError(f"{reason}; {hint}"))
    except (kvit.KvitError, FileNotFoundError) as error:
        return measure.refuse("host", error)
    starts = start_ms(options.device, options.rounds)
    calls: dict[str, dict[str, float | str]] = {}
    if options.device != "host":
        calls[options.device] = calls_us(options.device, options.busy)
    calls["idle driver"] = idle_calls_us(options.busy)
    print(f"kvit {info.version()}, Python {sys.version.split()[0]}, {processor()}\n")
    print(display.table(("of a new process", "ms"), [(name, value) for name, value in starts.items()]))
    print()
    print(calls_table(calls))
    if options.json:
        found = {"python": sys.version.split()[0], "processor": processor(), "start_ms": starts, "call_us": calls}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="host", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0", help="host: only what needs no GPU")
    parser.add_argument("--rounds", type=int, default=5, help="processes that are started for each time (5)")
    parser.add_argument(
        "--busy", action="store_true", help="other work has the cores too: the least times, not medians"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args(arguments)


def start_ms(device: str, rounds: int) -> dict[str, float]:
    """Milliseconds until a new process has done something, the best of `rounds`.

    Of an import: what an interpreter that runs already takes for it.
    """
    alone, _ = _best_ms("", rounds)
    imports = {f"import {name}": _best_ms(f"import {name}", rounds)[1] for name in ("numpy", "kvit")}
    first, _ = _best_ms(_FIRST_RESULT.format(device=device), rounds)
    return {"an empty Python": alone, **imports, f"the first result ({device}), all in all": first}


def _best_ms(program: str, rounds: int) -> tuple[float, float]:
    """From the start of the process, and for the program alone."""
    times = []
    for _ in range(1 + rounds):  # the first warms the disk's cache
        start = time.monotonic_ns()
        done = _run([sys.executable, "-c", _BETWEEN_MARKS.format(program=program)])
        begin, end = map(int, done.split())
        times.append(((end - start) / 1e6, (end - begin) / 1e6))
    whole, alone = (round(min(column), 1) for column in zip(*times[1:], strict=True))
    return whole, alone


def calls_us(device: str, is_busy: bool) -> dict[str, float | str]:
    """host_calls.py on the real driver, in a process of its own."""
    return json.loads(_run([sys.executable, str(_CALLS), "--device", device, *_BUSY[is_busy]]))


def idle_calls_us(is_busy: bool) -> dict[str, float | str]:
    """host_calls.py on the driver that returns at once: what of a call is not the driver's."""
    with tempfile.TemporaryDirectory() as folder:
        environment = idle_driver.build(Path(folder))
        return json.loads(_run([sys.executable, str(_CALLS), "--idle", folder, *_BUSY[is_busy]], environment))


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    environment = dict(os.environ if environment is None else environment)
    places = [str(Path(kvit.__file__).parents[1]), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    # Not in the current folder: `python -c` looks there first, and would find the source instead of what is installed.
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=_CALLS.parent)
    if done.returncode:
        sys.exit(f"host: {' '.join(command[:2])} failed:\n{done.stderr}")
    return done.stdout


def calls_table(calls: Mapping[str, Mapping[str, float | str]]) -> str:
    """Microseconds of a call in columns, one for each driver; below, why those without a time have none.

    The last column is how many bare launches a call is worth, on the last of the drivers.
    """
    names = list(dict.fromkeys(name for column in calls.values() for name in column))
    last = list(calls.values())[-1]
    launch = last.get(_BARE_LAUNCH)
    rows, reasons = [], []
    for name in names:
        values = [column.get(name, "-") for column in calls.values()]
        times = [f"{value:.2f}" if isinstance(value, float) else "-" for value in values]
        known = isinstance(values[-1], float) and isinstance(launch, float)
        rows.append((name, *times, f"{values[-1] / launch:.1f}" if known else "-"))
        reasons += [f"{name}: {value}" for value in values if isinstance(value, str) and value != "-"]
    header = ("a call", *(f"us, {driver}" for driver in calls), "bare launches")
    return "\n".join([display.table(header, rows), *reasons])


def processor() -> str:
    """The model of this machine's processor, and how many of its cores there are for us."""
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    sys.exit(main())
