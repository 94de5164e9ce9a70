"""Reads kernels as they were compiled: which are in a file, and what the loop around a kernel's products does."""

import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .tools import find_tool

# Floating-point work besides the matrix instructions: arithmetic, comparisons, conversions.
ARITHMETIC = frozenset(
    {
        *("FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2", "HADD2", "HMUL2", "HFMA2", "MUFU"),
        *("FMNMX", "FSEL", "FSET", "FSETP", "HMNMX2", "HSET2", "HSETP2"),
        *("F2F", "F2FP", "F2I", "I2F", "I2FP", "FRND"),
    }
)
MATRIX = frozenset({"HMMA"})

_LABEL = re.compile(r"\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;")
_GUARD = re.compile(r"@!?U?P\w+\s+")
_TARGET = re.compile(r"\((\.L_\w+)\)")
_LEAVES = ("BRA", "BRX", "JMP", "JMX", "EXIT", "RET")


class Loop(NamedTuple):
    """Instructions of one round, by name."""

    always: Counter  # on every way from the loop's first instruction to its last
    sometimes: Counter  # behind a branch


class Code(NamedTuple):
    """A kernel's instructions, and where each may go on."""

    instructions: list[str]
    successors: list[list[int]]


def tool(name: str) -> str:
    """A program of the CUDA toolkit: of the Python environment, PATH or the usual place. Fails where there is none."""
    packaged = shutil.which(name, path=os.pathsep.join(f"{entry}/nvidia/cu13/bin" for entry in sys.path))
    usual = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    found = packaged or find_tool(name) or shutil.which(name, path=usual)
    assert found is not None, f"{name} is missing; run: pip install '.[test]'"
    return found


def run(name: str, *arguments: object, **options) -> str:
    """What the program printed."""
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout


def image_of(path: Path) -> bytes:
    """The cubin or PTX in a file of kvit/_kernels."""
    return lzma.decompress(path.read_bytes())


def entries_of(path: Path) -> set[str]:
    """The symbols of the kernels in a file, be it of a cubin or of PTX."""
    if path.name.endswith(".ptx.xz"):
        return set(re.findall(r"\.entry (\w+)\(", image_of(path).decode()))
    with unpacked(path) as cubin:
        return set(re.findall(r"\b(?:STO_)?ENTRY\s+(\w+)", run("cuobjdump", "-symbols", cubin)))  # 13.5 says ENTRY


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A file with the image alone, while the context is open."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.cubin")
        image.write_bytes(image_of(path))
        yield image


@cache
def disassemble(path: Path) -> dict[str, Code]:
    """The kernels of a file with a cubin, by symbol."""
    with unpacked(path) as cubin:
        text = run("nvdisasm", "-c", "-ndf", cubin)
    sections = re.split(r"^\.text\.(\w+):$", text, flags=re.M)
    return {symbol: parse(text) for symbol, text in zip(sections[1::2], sections[2::2], strict=True)}


def parse(text: str) -> Code:
    """The code of one kernel, as nvdisasm prints it."""
    instructions: list[str] = []
    labels = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.match(line):
            instructions.append(instruction[1])
    successors = []
    for index, instruction in enumerate(instructions):
        words = _GUARD.sub("", instruction)
        target = _TARGET.search(words)
        nexts = [labels[target[1]]] if target and words.startswith(("BRA", "CALL")) else []
        # A guard, or a predicate among the operands (BRA.DIV UR4, ...; BRA !P0, ...), lets it go on.
        leaves = words.startswith(_LEAVES) and words == instruction and not re.match(r"BRA\S*\s+!?U?[PR]\w+,", words)
        if not leaves and index + 1 < len(instructions):
            nexts.append(index + 1)
        successors.append(nexts)
    return Code(instructions, successors)


def matrix_loop(code: Code) -> Loop:
    """The innermost loop that holds the first matrix instruction, one way through it.

    A loop may hold the code of its step twice, where a rare kind of step is compiled by itself: what is told here is of
    the shortest of them, and what is only on the ways through the others is left out.
    """
    names = [_name(instruction) for instruction in code.instructions]
    first = next(index for index, name in enumerate(names) if name in MATRIX)
    edges = [(begin, end) for end, nexts in enumerate(code.successors) for begin in nexts if begin <= first <= end]
    assert edges, "no loop goes around the matrix instructions"
    begin, end = min(edges, key=lambda edge: edge[1] - edge[0])
    body = _body(code, begin, end)
    ways = []
    products = {index for index in body if names[index] in MATRIX}
    while products:
        one = min(products)
        always = _on_every_way(code, body, begin, one) | _on_every_way(code, body, one, end)
        # What can come before this product in a round, and what can come after it.
        whole = _reach(code, body, one, end) | (_body(code, begin, one) & body)
        ways.append((always, whole))
        products -= whole
    always, whole = min(ways, key=lambda way: len(way[0]))
    counted = {index: names[index] for index in whole if not _is_constant(code.instructions[index])}
    return Loop(
        Counter(name for index, name in counted.items() if index in always),
        Counter(name for index, name in counted.items() if index not in always),
    )


def count(instructions: Counter, names: frozenset[str]) -> int:
    return sum(instructions[name] for name in names)


def _name(instruction: str) -> str:
    full = _GUARD.sub("", instruction).split()[0]
    # Two fp8 codes as two f16, exactly: bits that find their place, as PRMT and LOP3 do for other codes.
    return "UNPACK" if full.startswith("F2FP") and ".UNPACK" in full else full.split(".")[0]


def _is_constant(instruction: str) -> bool:
    """HFMA2 of zeros plus a constant: how the compiler loads one when the integer units are busy."""
    return "-RZ, RZ" in instruction


def _body(code: Code, begin: int, end: int) -> set[int]:
    """What lies between: all from which `end` is reached without passing `begin`."""
    before: dict[int, list[int]] = {}
    for index, nexts in enumerate(code.successors):
        for following in nexts:
            before.setdefault(following, []).append(index)
    body, waiting = {begin, end}, [end]
    while waiting:
        for index in before.get(waiting.pop(), ()):
            if index not in body:
                body.add(index)
                waiting.append(index)
    return body


def _reach(code: Code, body: set[int], begin: int, end: int) -> set[int]:
    """What of `body` can come from `begin` on, until `end`."""
    found, waiting = {begin}, [begin]
    while waiting:
        index = waiting.pop()
        for following in code.successors[index] if index != end else ():
            if following in body and following not in found:
                found.add(following)
                waiting.append(following)
    return found


def _on_every_way(code: Code, body: set[int], begin: int, end: int) -> set[int]:
    """The instructions without which `end` cannot be reached: the dominators of `end`, from `begin` on."""
    order, seen = [], {begin}
    waiting = [(begin, iter(code.successors[begin]))]
    while waiting:  # depth first, without recursion: loops have thousands of instructions
        index, nexts = waiting[-1]
        following = next((n for n in nexts if n in body and n != begin and n not in seen), None)
        if following is None:
            order.append(index)
            waiting.pop()
        else:
            seen.add(following)
            waiting.append((following, iter(code.successors[following])))
    order.reverse()
    rank = {index: place for place, index in enumerate(order)}
    before: dict[int, list[int]] = {index: [] for index in order}
    for index in order:
        for following in code.successors[index]:
            if following in rank and following != begin:
                before[following].append(index)
    # Cooper, Harvey and Kennedy, A Simple, Fast Dominance Algorithm, 2001.
    nearest = {begin: begin}
    changed = True
    while changed:
        changed = False
        for index in order[1:]:
            known = [other for other in before[index] if other in nearest]
            common = known[0]
            for other in known[1:]:
                while common != other:
                    if rank[common] > rank[other]:
                        common = nearest[common]
                    else:
                        other = nearest[other]
            if nearest.get(index) != common:
                nearest[index] = common
                changed = True
    found = {end}
    while end != begin:
        end = nearest[end]
        found.add(end)
    return found
