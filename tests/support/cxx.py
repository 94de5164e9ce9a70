"""Compiles and runs small C++ programs against the headers of kernels/, with g++ alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from support import KERNELS


class Cxx:
    """A compiler with a folder of its own, which keeps what it built: the same program is compiled once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: dict[str, Path] = {}
        self._compiler = os.environ.get("CXX", "g++")

    def numbers(self, headers: list[str], body: str) -> list[int]:
        """The integers that `body`, the inside of main in namespace kvit, prints. Its headers need no platform."""
        source = _source(headers, f"int main() {{\n  using namespace kvit;\n{body}\n}}\n")
        program = self._programs.get(source)
        if program is None:
            program = self._folder / f"program_{len(self._programs)}"
            done = self._compile(source, "-O1", "-o", str(program))
            assert done.returncode == 0, done.stderr
            self._programs[source] = program
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
        return [int(word) for word in done.stdout.split()]

    def refusal(self, headers: list[str], declaration: str) -> str:
        """Why the compiler refuses `declaration`, in namespace kvit. Fails if it does not."""
        done = self._check(headers, declaration)
        assert done.returncode != 0, f"this should not compile:\n{declaration}"
        return done.stderr

    def accept(self, headers: list[str], declaration: str) -> None:
        """Fails, with the compiler's words, unless `declaration` compiles in namespace kvit."""
        done = self._check(headers, declaration)
        assert done.returncode == 0, done.stderr

    def _check(self, headers: list[str], declaration: str) -> subprocess.CompletedProcess[str]:
        return self._compile(_source(headers, f"namespace kvit {{\n{declaration}\n}}\n"), "-fsyntax-only")

    def _compile(self, source: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [self._compiler, "-std=c++20", "-Wall", "-Wextra", f"-I{KERNELS}", *options, "-x", "c++", "-"]
        return subprocess.run(command, input=source, capture_output=True, text=True, timeout=300)


def _source(headers: list[str], text: str) -> str:
    includes = "".join(f'#include "{header}"\n' for header in headers)
    return f"#include <cstdio>\n#include <initializer_list>\n{includes}namespace kvit {{}}\n{text}"
