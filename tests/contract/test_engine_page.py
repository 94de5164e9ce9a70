"""What docs/engine.md shows runs as it stands: the engine, and the comparison that the page makes."""

import re

from support import ROOT


def test_the_engine_gives_in_a_small_cache_what_each_request_gives_alone():
    text = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 2
    for code in blocks:
        exec(compile(code, "docs/engine.md", "exec"), names)
    # More pages were wanted than there are: somebody had to give way, and none is lost.
    needed = [-(-len(request.tokens) // 16) for request in names["requests"]]
    assert sum(needed) > names["engine"].cache.num_pages == names["engine"].cache.num_free_pages == 12
    assert all(
        len(request.tokens) == len(prompt) + 20
        for request, prompt in zip(names["requests"], names["prompts"], strict=True)
    )
