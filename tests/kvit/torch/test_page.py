"""What docs/frameworks.md shows of PyTorch runs as it stands."""

import re

import pytest

pytest.importorskip("torch", reason="needs pip install '.[test-interop]'")

from support import ROOT

pytestmark = pytest.mark.interop


def test_the_block_runs_and_attends():
    text = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "kvit.torch" in block)
    names = {}
    exec(compile(code, "docs/frameworks.md", "exec"), names)
    assert names["out"].shape == (2, 8, 64)
    # The second sequence has one token: what attends to it alone is its value, for the heads of each KV head.
    assert names["out"][1, :4].eq(names["v"][1, 0]).all() and names["out"][1, 4:].eq(names["v"][1, 1]).all()
    assert names["cache"].v[5, 0].eq(names["v"][1]).all() and names["cache"].v[3, 1].eq(names["v"][0]).all()
