"""Programs of the Python environment that runs the tests, whether or not a shell has activated it."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def folders() -> list[str]:
    """Where the environment keeps its programs: beside its interpreter, and where pip puts them."""
    return list(dict.fromkeys([str(Path(sys.executable).parent), sysconfig.get_path("scripts")]))


def find_tool(name: str) -> str | None:
    """The path of a program: of the environment, else of PATH. None if it is in neither."""
    return shutil.which(name, path=os.pathsep.join(folders())) or shutil.which(name)


def environment() -> dict[str, str]:
    """Variables of an activated environment: its programs find each other, as cython-lint needs pycodestyle."""
    path = os.pathsep.join([*folders(), *filter(None, [os.environ.get("PATH")])])
    return {**os.environ, "PATH": path}
