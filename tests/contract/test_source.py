"""How every file is written: formatters and linters agree, files are short, and each says what it is for."""

import re
import subprocess

import pytest

from support import ROOT
from support.sources import sources
from support.tools import environment, find_tool

CPP = (".h", ".cuh", ".hpp", ".cpp", ".cu")
CYTHON = (".pyx", ".pxd")
MAX_LINES = 400  # at 300 a file is discussed; this is where the discussion ends


def run_tool(name, *arguments):
    """Run a tool of the test environment; what it printed, or None where it is content. A missing tool is a failure."""
    tool = find_tool(name)
    assert tool is not None, f"{name} is missing; run: pip install '.[test]'"
    command = [tool, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment())
    return None if done.returncode == 0 else done.stdout + done.stderr


def check_with(name, *arguments):
    complaint = run_tool(name, *arguments)
    if complaint is not None:
        pytest.fail(f"{name} {arguments[0]}\n{complaint}", pytrace=False)


def test_python_is_linted():
    check_with("ruff", "check", "--no-cache", ".")


def test_python_is_formatted():
    check_with("ruff", "format", "--no-cache", "--check", ".")


def test_cpp_is_formatted():
    check_with("clang-format", "--dry-run", "-Werror", *sources(*CPP))


def test_cython_is_linted():
    check_with("cython-lint", *sources(*CYTHON))


@pytest.mark.parametrize("name", ["ruff", "clang-format", "cython-lint"])
def test_a_tool_works_where_nobody_activated_the_environment(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # `path/to/venv/bin/python -m pytest`: PATH knows nothing of the venv
    arguments = sources(".pxd")[:1] if name == "cython-lint" else ["--version"]
    assert run_tool(name, *arguments) is None


def test_no_file_is_longer_than_anyone_reads():
    paths = sources(".py", ".pyi", ".toml", ".c", *CPP, *CYTHON)
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("path", sources(".py", ".pyi", ".toml", ".c", *CPP, *CYTHON), ids=str)
def test_a_file_opens_with_a_sentence_on_what_it_is_for(path):
    lines = [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if lines and lines[0].startswith("#!"):
        lines = lines[1:]
    if not lines:
        assert path.name == "__init__.py", f"{path} is empty"
        return
    # Directives to a compiler must stand first; the sentence follows them.
    while lines[0].startswith(("# cython:", "# distutils:")):
        lines = lines[1:]
    first = lines[0].strip()
    opening = next((mark for mark in ('"""', "//", "/*", "#") if first.startswith(mark)), None)
    assert opening is not None and not first.startswith(("#include", "#pragma", "#if", "#define")), (
        f"{path} opens with {first!r}; open it with one sentence on what it is for"
    )
    words = first.removeprefix(opening).strip(' /*"').split()
    assert len(words) >= 3, f"{path} opens with {first!r}; say in a sentence what the file is for"


@pytest.mark.parametrize("path", sources(".pyx"), ids=str)
def test_cython_gives_nothing_back_twice_where_memory_is_short(path):
    # What Cython 3.3 makes of a comprehension gives an item that could not be appended back twice; and of a `return` in
    # an except clause, a traceback that there may have been no memory for. Loops and a variable for the result do not.
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    found, clauses = [], []
    for number, line in enumerate(lines, 1):
        code = line.split("#")[0]
        indent = len(code) - len(code.lstrip())
        if code.strip():
            clauses = [clause for clause in clauses if clause < indent]
        if (
            re.search(r"[\[(].*\S.* for \w+(, \w+)* in |^\s+for .* in .*[\])]$", code) and "{" not in code
        ):  # a dict is right
            found.append(f"{number}: {line.strip()}")
        if clauses and code.strip().startswith("return"):
            found.append(f"{number}: {line.strip()}")
        if re.match(r"\s+except\b.*:$", code):
            clauses.append(indent)
    assert found == []
