"""What the README shows must run, and CI must run what the README says."""

import re
import subprocess
import sys

from support import ROOT
from support.processes import run_idle

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_example_runs_as_it_stands():
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # Shape of the output; tokens of the fork; 64 pages less the 19 + 2 that hold 300 and 17 tokens, 16 to a page.
    assert done.stdout.split() == ["(2,", "8,", "64)", "300", "43"]


def test_the_first_example_runs_on_a_gpu_when_its_device_is_one(tmp_path):
    code = blocks("python")[0]
    assert code.count('"host"') == 1 and 'or "cuda:0"' in code
    code = code.replace('"host"', '"cuda:0"').replace("print(", "found.append(")
    code = code.replace("found.append(out.shape", "found.extend([out.shape").replace("free_pages)", "free_pages])")
    # On a driver that returns at once, so no GPU is needed and nothing is computed: what is refused is refused.
    assert run_idle(tmp_path, code) == [[2, 8, 64], 300, 43]


def test_ci_runs_the_readmes_test_command():
    test_command = next(line for line in blocks("sh")[0].splitlines() if "pytest" in line).split("#")[0].strip()
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(re.search(rf"^{re.escape(step)}", ci.replace("--disable-pip-version-check ", ""), re.MULTILINE)
               for step in test_command.split(" && "))  # fmt: skip


def test_every_path_that_the_readme_links_to_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)
