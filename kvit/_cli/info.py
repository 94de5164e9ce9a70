"""`kvit info`: versions, what is built and what it weighs, the devices of this machine; or how many tokens fit."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

from kvit._cli import capacity, devices, display, sizes
from kvit.errors import KernelMissing, KvitError
from kvit.selection import registry, tuning
from kvit.selection.cards import card_of

_PACKAGES = ("cuda-bindings", "numpy", "ml_dtypes", "rich", "matplotlib")
_HOST_LIBRARY = "libkvit_host.so"


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser("info", help="versions, what is built, devices", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--packed", action="store_true", help="tell what each part takes in a wheel too")
    capacity.add_to(parser)
    parser.set_defaults(run=run)


class Version(argparse.Action):
    """--version, looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"kvit {version() or '(not installed)'}")
        parser.exit()


def run(options: argparse.Namespace) -> int:
    """Print what `collect` finds, or with --budget what fits."""
    if capacity.is_asked(options):
        fits = capacity.collect(options)
        print(json.dumps(fits, indent=2) if options.json else capacity.text(fits))
        return 0
    found = collect(pack=options.packed)
    print(json.dumps(found, indent=2) if options.json else _text(found))
    return 0


def collect(*, pack: bool = False) -> dict[str, Any]:
    """Everything that `kvit info` tells, as JSON has it. Needs neither a driver nor kernels.

    pack  as sizes.collect takes it
    """
    gpus, why_no_gpu = devices.gpus()
    built, why_not_built = _built()
    return {
        "kvit": version(),
        "path": str(Path(__file__).resolve().parents[1]),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "built": built,
        "why_not_built": why_not_built,
        "package": sizes.collect(tuple(built["archs"]) if built else (), pack=pack),
        "driver": {
            "release": devices.driver_release(),
            "cuda": devices.cuda_version(),
            "missing_functions": devices.missing_functions(),
        },
        "why_no_gpu": why_no_gpu,
        "devices": [_device(device, built) for device in [devices.all_devices()[0], *gpus]],
    }


def version() -> str | None:
    """Of this package: as it was built, or as it was installed; None where it was neither."""
    built, _ = _built()
    return built["kvit"] if built else _version("kvit")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _built() -> tuple[dict[str, Any] | None, str | None]:
    """What is in kvit/_kernels, or why there is nothing."""
    try:
        installed = registry.installed()
    except KernelMissing as error:
        return None, " ".join(str(error).split())
    parts = [_part("host", len(installed.all()), {installed.folder / _HOST_LIBRARY})]
    for arch in installed.archs:
        entries = [entry for entry in installed.all() if arch in entry.archs]
        parts.append(_part(arch, len(entries), {entry.file(arch) for entry in entries}))
    return {
        "kvit": installed.kvit,
        "cuda": installed.cuda,
        "ptxas": installed.ptxas,
        "archs": list(installed.archs),
        "drivers": {arch: devices.words(version) for arch, version in installed.drivers.items()},
        "families": list(dict.fromkeys(entry.family for entry in installed.all())),
        "kernels": len(installed.all()),
        "bytes": sum(part["bytes"] for part in parts),
        "parts": parts,
    }, None


def _part(name: str, num_kernels: int, files: set[Path]) -> dict[str, Any]:
    present = [path for path in files if path.is_file()]
    return {
        "part": name,
        "kernels": num_kernels,
        "files": len(present),
        "missing_files": sorted(str(path) for path in files - set(present)),
        "bytes": sum(path.stat().st_size for path in present),
    }


def _device(device: devices.Device, built: dict[str, Any] | None) -> dict[str, Any]:
    targets = devices.targets_on(device) if built else {}
    return {
        "device": str(device),
        "name": device.name,
        "compute_capability": None if device.compute_capability is None else list(device.compute_capability),
        "num_sms": device.num_sms,
        "memory_bytes": device.memory_bytes,
        "targets": targets,
        "too_new_for_driver": devices.refused_targets(targets) if built else {},
        "tuning": _tuning(device) if built else None,
    }


def _tuning(device: devices.Device) -> dict[str, Any] | None:
    """The file of measured rules that a device has, how many of its rules are used, or why not; None: there is none."""
    try:
        found = tuning.rules_for(card_of(device))
    except KvitError as error:
        return {"path": None, "rules": 0, "left_out": None, "error": str(error)}
    if found.path is None:
        return None
    used = sum(rule.source == str(found.path) for rule in found.rules)
    return {"path": str(found.path), "rules": used, "left_out": found.left_out, "error": None}


def _text(found: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    lines = [
        f"kvit {found['kvit'] or '(not installed)'} at {found['path']}",
        f"Python {found['python']} on {found['platform']}",
        f"with {packages}",
        "",
    ]
    built = found["built"]
    if built is None:
        lines += [f"kernels: {found['why_not_built']}", ""]
    else:
        compiler = f"by CUDA {built['cuda']} and ptxas {built['ptxas']}" if built["cuda"] else "for the host alone"
        counts = ", ".join(f"{part['kernels']} for {part['part']}" for part in built["parts"])
        lines += [f"kernels built {compiler}: {counts}"]
        by_cuda: dict[str, list[str]] = {}
        for arch, version in built["drivers"].items():
            by_cuda.setdefault(version, []).append(arch)
        lines += [f"  for drivers of CUDA {version} or newer: {', '.join(a)}" for version, a in sorted(by_cuda.items())]
        missing = [path for part in built["parts"] for path in part["missing_files"]]
        lines += [f"  missing, reinstall kvit: {', '.join(missing)}"] if missing else []
        lines += [""]
    lines += [_weights(found["package"]), ""]
    if found["why_no_gpu"] is None:
        driver = found["driver"]
        lacks = ", ".join(driver["missing_functions"])
        lines += [f"driver {driver['release'] or '(release unknown)'}, CUDA {driver['cuda']}"]
        lines += [f"  without what kvit calls: {lacks}; update the NVIDIA driver"] if lacks else []
    else:
        lines += [found["why_no_gpu"]]
    header = ("device", "name", "compute", "SMs", "memory", "runs")
    rows = [
        (
            device["device"],
            device["name"],
            "-" if device["compute_capability"] is None else "{}.{}".format(*device["compute_capability"]),
            device["num_sms"],
            display.size(device["memory_bytes"]),
            _runs(device, built["kernels"] if built else 0),
        )
        for device in found["devices"]
    ]
    measured = [line for device in found["devices"] if (line := _measured(device))]
    return "\n".join([*lines, display.table(header, rows, "  "), *measured])


def _measured(device: dict[str, Any]) -> str:
    """What is to be said of the measured rules of a device; nothing where it has none."""
    found = device["tuning"]
    if found is None:
        return ""
    if found["error"] is not None:
        return f"  {device['device']} chooses nothing: {found['error']}"
    if found["left_out"] is not None:
        return f"  {device['device']} leaves out the rules of {found['path']}: {found['left_out']}"
    return f"  {device['device']} chooses by {found['rules']} rules of {found['path']}"


def _runs(device: dict[str, Any], num_kernels: int) -> str:
    """What runs on a device, and of what is built, what does not, with the reason."""
    refused = device["too_new_for_driver"]
    runs = {target: count for target, count in device["targets"].items() if target not in refused}
    parts = [f"{count} kernels of {target}" if target != "host" else "all kernels" for target, count in runs.items()]
    parts += [f"not {target}, which needs a driver of CUDA {version}" for target, version in refused.items()]
    others = num_kernels - sum(device["targets"].values())
    return ", ".join([*(parts or ["nothing that is built"]), *([f"not {others} others"] if parts and others else [])])


def _weights(parts: list[dict[str, Any]]) -> str:
    total = {"part": "together", **{key: sum(part[key] or 0 for part in parts) for key in ("files", "bytes")}}
    is_packed = parts[0]["wheel_bytes"] is not None
    if is_packed:
        total["wheel_bytes"] = sum(part["wheel_bytes"] for part in parts)
    rows = [
        (
            part["part"],
            part["files"],
            display.size(part["bytes"]),
            *([display.size(part["wheel_bytes"])] if is_packed else []),
        )
        for part in [*parts, total]
    ]
    return display.table(("part", "files", "size", *(["in a wheel"] if is_packed else [])), rows)
