"""What docs/frameworks.md shows of JAX runs as it stands."""

import re

import pytest

pytest.importorskip("jax", reason="needs pip install '.[test-interop]'")

from support import ROOT

pytestmark = pytest.mark.interop


def test_the_block_runs_and_attends():
    text = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "kvit.jax" in block)
    names = {}
    exec(compile(code, "docs/frameworks.md", "exec"), names)
    assert names["out"].shape == (2, 8, 64)
    # The second sequence has one token: what attends to it alone is its value, for the heads of each KV head.
    out, v, cache = names["out"], names["v"], names["cache"]
    assert (out[1, :4] == v[1, 0]).all() and (out[1, 4:] == v[1, 1]).all()
    assert (cache.v[5, 0] == v[1]).all() and (cache.v[3, 1] == v[0]).all()
