"""What docs/layers.md shows runs as it stands, block after block."""

import re

from support import ROOT


def test_the_blocks_run_one_after_the_other(capsys):
    text = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(code, "docs/layers.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    # 30 and 17 tokens in 2 + 2 of 64 pages; then 21 steps; 600 tokens more take 37 + 37 pages, and 57 are free.
    assert printed[0] == "30 17 60"
    assert printed[1].startswith("8 CacheLayer(3 of 8, CacheView(64 pages of 16 tokens, 1 KV heads, head_dim 128")
    assert printed[2] == f"{64 * 16 * 576 * 2} (30, 1, 576) (30, 1, 512) (1, 16, 512)"
    assert printed[3] == "51 38"
    assert printed[4] == "74 38"
    assert printed[5] == "[(2, 3)] [(0, 1, 3), (0, 1, 2)]"
    assert printed[6] == "(0, 1, 3) 8 61"
