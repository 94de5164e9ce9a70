"""docs/iterators.md: its blocks of Python run one after the other, and print what their comments say."""

import contextlib
import io
import re

from support import ROOT


def test_the_page_prints_what_it_says():
    text = (ROOT / "docs" / "iterators.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 3 and "probe_own" in blocks[1]
    said = []
    for block in blocks:
        for line, after in zip(block.split("\n"), block.split("\n")[1:], strict=False):
            if line.startswith("print("):
                said.append(line.split("# ")[1] if "# " in line else after.removeprefix("# "))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        names = {}
        for block in blocks:
            exec(compile(block, "docs/iterators.md", "exec"), names)
    assert output.getvalue().split("\n")[:-1] == said
