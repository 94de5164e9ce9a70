"""Text that the model cannot have seen: what this project's own pages say, which were written after its training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pages() -> list[Path]:
    """The pages of the project, in the order of their names."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]


def prose(text: str) -> str:
    """Headings and paragraphs of a page in Markdown, lists among them; no code, drawings, tables and comments."""
    text = re.sub(r"^```.*?^```\n|<!--.*?-->\n?", "", text.replace("\r\n", "\n"), flags=re.MULTILINE | re.DOTALL)
    lines = (line for line in text.splitlines() if not line.startswith(("|", "    ")))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def read(paths: Iterable[Path]) -> str:
    """The prose of pages (.md), and all of other files, end to end. Raises FileNotFoundError, UnicodeDecodeError."""
    texts = ((path, path.read_text(encoding="utf-8")) for path in paths)
    return "\n".join(prose(text) if path.suffix == ".md" else text for path, text in texts)
