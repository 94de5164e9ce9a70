"""`python -m codegen`, run with kernels/ on the path: builds kvit/_kernels in place, or the tables of the pages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from codegen.build import build_host_library, build_kernels, project_version
from codegen.errors import BuildError
from codegen.manifest import load_manifest
from codegen.table import BEGIN, BEGIN_PAIRS, pairs_table, replace_table, support_table

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Do as the command line says. Returns 0, or 1 after printing why not."""
    parser = argparse.ArgumentParser(prog="codegen", description=__doc__)
    commands = parser.add_subparsers(required=True)

    build = commands.add_parser("build", help="compile the kernels of kernels/manifest.toml")
    build.add_argument("out", nargs="?", type=Path, default=ROOT / "kvit" / "_kernels", help="default: kvit/_kernels")
    build.add_argument("--build", type=Path, default=ROOT / "build" / "kernels", help="kept between runs")
    build.add_argument("--archs", help='such as "sm_80;sm_90"; default: KVIT_ARCHS, else the default of the manifest')
    build.add_argument("--host-only", action="store_true", help="the same as --archs none")
    build.add_argument("-j", "--jobs", type=int, help="default: KVIT_JOBS, else as many as cores")
    build.set_defaults(run=_build)

    library = commands.add_parser("library", help="compile the host library alone, for the system that CXX is for")
    library.add_argument("build", type=Path, help="kept between runs of one compiler; the library is in its out/")
    library.add_argument("-j", "--jobs", type=int, help="default: KVIT_JOBS, else as many as cores")
    library.set_defaults(run=_library)

    table = commands.add_parser("table", help="write the tables of README.md and docs/quantisation.md")
    table.add_argument("root", nargs="?", type=Path, default=ROOT, help="of these pages; default: this tree")
    table.set_defaults(run=_table)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except BuildError as error:
        print(f"codegen: {error}", file=sys.stderr)
        return 1
    return 0


def _build(options: argparse.Namespace) -> None:
    archs = "none" if options.host_only else options.archs
    version = project_version(ROOT)
    index = build_kernels(ROOT / "kernels", options.build, options.out, version=version, archs=archs, jobs=options.jobs)
    print(f"wrote {index}")


def _library(options: argparse.Namespace) -> None:
    print(f"wrote {build_host_library(ROOT / 'kernels', options.build.resolve(), jobs=options.jobs)}")


def _table(options: argparse.Namespace) -> None:
    manifest = load_manifest(ROOT / "kernels" / "manifest.toml")
    for page, table, begin in (
        ("README.md", support_table(manifest), BEGIN),
        ("docs/quantisation.md", pairs_table(manifest), BEGIN_PAIRS),
    ):
        path = options.root / page
        path.write_text(replace_table(path.read_text(encoding="utf-8"), table, begin), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
