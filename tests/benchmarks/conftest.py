"""Puts benchmarks/ on the path, where its modules find each other when one of them is run as a program."""

import sys

from support import ROOT

sys.path.append(str(ROOT / "benchmarks"))
