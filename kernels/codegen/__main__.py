"""`python -m codegen`, run with kernels/ on the path: builds kvit/_kernels in place, for developers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from codegen.build import build_kernels, project_version
from codegen.errors import BuildError

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Build as the command line says. Returns 0, or 1 after printing why not."""
    parser = argparse.ArgumentParser(prog="codegen", description="Compile the kernels of kernels/manifest.toml.")
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "kvit" / "_kernels", help="default: kvit/_kernels")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "kernels", help="kept between runs")
    parser.add_argument("--archs", help='such as "sm_80;sm_90a"; default: KVIT_ARCHS, else all of the manifest')
    parser.add_argument("--host-only", action="store_true", help="the same as --archs none")
    parser.add_argument("-j", "--jobs", type=int, help="default: KVIT_JOBS, else as many as cores")
    options = parser.parse_args(arguments)
    try:
        index = build_kernels(
            ROOT / "kernels",
            options.build,
            options.out,
            version=project_version(ROOT),
            archs="none" if options.host_only else options.archs,
            jobs=options.jobs,
        )
    except BuildError as error:
        print(f"codegen: {error}", file=sys.stderr)
        return 1
    print(f"wrote {index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
