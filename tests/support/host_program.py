"""Small kernels, written in a test and compiled with the host backend into programs: what it catches, and what not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support import KERNELS

MAIN = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "abi/params.h"
#include "platform/platform.cuh"
{includes}

namespace kvit {{
// input: bytes 0, 1, 2, ...; output: poisoned.
struct CaseParams {{ char *input, *output; }};
struct Case {{
  using Params = CaseParams;
  static constexpr int kThreads = {threads}, kSharedBytes = {shared_bytes}, kMinCtas = 1;
  static constexpr KvitFact kFacts[] = {{{{"overlaps", {overlaps}}}}};
  static void Run([[maybe_unused]] const Params& params, [[maybe_unused]] char* shared) {{
{body}
  }}
}};
}}  // namespace kvit

KVIT_KERNEL(case_kernel, kvit::Case)

int main(int, char** argv) {{
  constexpr int kBytes = {memory_bytes};
  // Not std::aligned_alloc, which Windows lacks.
  constexpr std::align_val_t kPage{{4096}};
  const auto give_back = [](char* memory) {{ ::operator delete(memory, kPage); }};
  const std::unique_ptr<char, decltype(give_back)> memory[] = {{
      {{static_cast<char*>(::operator new(kBytes, kPage)), give_back}},
      {{static_cast<char*>(::operator new(kBytes, kPage)), give_back}}}};
  char *const input = memory[0].get(), *const output = memory[1].get();
  for (int i = 0; i < kBytes; ++i) input[i] = char(i);
  std::memset(output, 0xFF, kBytes);
  const kvit::CaseParams params = {{input, output}};
  const KvitSpan spans[] = {{ {spans} }};
  const KvitHostKernel* const* kernels;
  kvit_host_kernels(&kernels);
  constexpr int kSpans = sizeof spans / sizeof spans[0];
  const KvitHostLaunch launch = {{kernels[0], &params, spans, {grid}, kSpans, std::atoi(argv[1]), 0, {seed}}};
  if (kvit_host_launch(&launch) != 0) {{
    std::printf("error: %s\\n", kvit_host_error());
    return 1;
  }}
  for (int i = 0; i < {output_bytes}; ++i) std::printf("%d ", output[i] & 0xFF);
}}
"""

SCHEDULERS = {"fibers": "0", "threads": "1"}
ALL_MEMORY = "{input, kBytes, 0, 0}, {output, kBytes, 1, 0}"


@dataclass
class Outcome:
    """What a program did: `output` bytes if it ended well, else `error`; `race` is ThreadSanitizer's report."""

    output: bytes
    error: str
    race: str


class HostPrograms:
    """Compiles into a folder of its own. The backend itself is compiled once per set of flags."""

    def __init__(
        self, folder: Path, *, compiler: str | None = None, launcher: Sequence[str] = (), suffix: str = ""
    ) -> None:
        """Another compiler than CXX or g++, what its programs' names end with, and the command that runs them."""
        self._folder = folder
        self._compiler = compiler or os.environ.get("CXX", "g++")
        self._launcher = launcher
        self._suffix = suffix
        self._count = 0

    def run(
        self,
        body: str,
        *,
        scheduler: str = "fibers",
        sanitize: bool = False,
        threads: int = 32,
        grid: int = 1,
        shared_bytes: int = 4096,
        memory_bytes: int = 65536,
        output_bytes: int = 0,
        spans: str = ALL_MEMORY,
        includes: str = "",
        overlaps: int = 0,
        seed: int = 0,
    ) -> Outcome:
        """Run `body` (the inside of a kernel's Run, in namespace kvit) on every thread of the grid."""
        source = MAIN.format(**{k: v for k, v in locals().items() if k not in ("self", "scheduler", "sanitize")})
        program = self.build(source, ["-fsanitize=thread", "-g"] if sanitize else [])
        # Without address randomisation: ThreadSanitizer of GCC 12 does not start under the widest one of newer kernels.
        command = [*self._launcher, *(["setarch", "-R"] if sanitize else []), str(program)]
        done = subprocess.run([*command, SCHEDULERS[scheduler]], capture_output=True, text=True, timeout=300)
        race = done.stderr if "ThreadSanitizer" in done.stderr else ""
        assert race or done.returncode in (0, 1), f"exit status {done.returncode}: {done.stdout}{done.stderr}"
        error = done.stdout.removeprefix("error: ").strip() if done.stdout.startswith("error: ") else ""
        return Outcome(b"" if error else bytes(int(word) for word in done.stdout.split()), error, race)

    def build(self, source: str, flags: list[str]) -> Path:
        """A program of this source and the backend."""
        self._count += 1
        program = self._folder / f"case_{self._count}{self._suffix}"
        self._compile(["-x", "c++", "-", "-x", "none", *self._backend(flags), "-o", str(program)], flags, source)
        return program

    def _backend(self, flags: list[str]) -> list[str]:
        objects = []
        for source in sorted((KERNELS / "platform").glob("*.cpp")):
            target = self._folder / f"{source.stem}{'_sanitized' if flags else ''}.o"
            if not target.exists():
                self._compile(["-c", str(source), "-o", str(target)], flags)
            objects.append(str(target))
        return objects

    def _compile(self, what: list[str], flags: list[str], source: str | None = None) -> None:
        command = [
            self._compiler,
            "-std=c++20",
            "-O1",
            "-U_FORTIFY_SOURCE",
            "-pthread",
            f"-I{KERNELS}",
            *flags,
            *what,
        ]
        done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
