"""The command line, `kvit` or `python -m kvit`: what is installed, which kernels there are, whether they are right."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from kvit._cli import info, kernels, selfcheck
from kvit.errors import KvitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 1 for a failed check or a KvitError, told without a traceback."""
    parser = argparse.ArgumentParser(prog="kvit", description="What this installation of kvit is and can do.")
    parser.add_argument("--version", action=info.Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(metavar="command", required=True)
    for command in (info, kernels, selfcheck):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KvitError as error:
        print(f"kvit: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough: `kvit kernels | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("kvit: interrupted", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
