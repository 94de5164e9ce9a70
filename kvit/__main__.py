"""The command line, `kvit` or `python -m kvit`: what is installed, whether it is right, and what is fastest here."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from kvit._cli import draw, info, kernels, selfcheck, tune
from kvit.errors import KvitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 1 for a failed check, a KvitError, or output that cannot be
    written, which are told without a traceback.
    """
    try:
        try:
            return _run(arguments)
        finally:  # after --help and --version too, which leave by SystemExit
            if sys.stdout is not None:
                sys.stdout.flush()
    except KvitError as error:
        print(f"kvit: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough: `kvit kernels | head`
        _write_no_more()
        return 1
    except OSError as error:  # a full disk behind stdout, foremost
        _write_no_more()
        what = "the output cannot be written" if error.filename is None else f"{error.filename} cannot be used"
        print(f"kvit: {what}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kvit: interrupted", file=sys.stderr)
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="kvit", description="What this installation of kvit is and can do.")
    parser.add_argument("--version", action=info.Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(metavar="command", required=True)
    for command in (info, kernels, selfcheck, tune, draw):
        command.add_to(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def _write_no_more() -> None:
    """Send what is still in stdout's buffer nowhere, or the interpreter would try again at its end and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
