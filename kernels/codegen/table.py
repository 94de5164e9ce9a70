"""The support table of README.md, made from the manifest so that it cannot promise what is not built."""

from __future__ import annotations

import re

from codegen.errors import BuildError
from codegen.family import Family
from codegen.manifest import Manifest

BEGIN = "<!-- support table: python -m codegen table -->"
END = "<!-- end -->"


def support_table(manifest: Manifest) -> str:
    """A Markdown table with one row per family: over which values of its axes it is built, and for which targets where
    KVIT_ARCHS does not say otherwise."""
    rows = ["| family | kernels | axes | targets |", "| --- | --- | --- | --- |"]
    kernels = manifest.specs()
    for family in manifest.families:
        count = sum(spec.family == family.name for spec in kernels)
        rows.append(f"| {family.name} | {count} | {_axes(family)} | {_targets(family, manifest.default_archs)} |")
    return "\n".join(rows)


def replace_table(text: str, table: str) -> str:
    """`text` with `table` between the BEGIN and END lines. Raises BuildError where they are missing."""
    pattern = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.S)
    if not pattern.search(text):
        raise BuildError(f"no place for the support table: write the lines\n{BEGIN}\n{END}")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def _axes(family: Family) -> str:
    return "; ".join(f"{axis} {', '.join(map(str, values))}" for axis, values in family.axes.items()) or "none"


def _targets(family: Family, default: tuple[str, ...]) -> str:
    everywhere = [arch for arch in family.archs if arch in default]
    texts = [", ".join(["host", *everywhere])]
    for only in family.onlys:
        when = ", ".join(f"{axis} {', '.join(map(str, values))}" for axis, values in only.points.when.items())
        archs = [arch for arch in only.archs if arch in default]
        if archs != everywhere:
            asked = f"with `KVIT_ARCHS={only.archs[0]}`" if only.archs else "the host alone"
            texts.append(f"{when}: {', '.join(archs) or asked}")
    for points in family.asked:
        when = ", ".join(f"{axis} {', '.join(map(str, values))}" for axis, values in points.when.items())
        texts.append(f"{when}: with `KVIT_KERNELS=all`")
    return "; ".join(texts)
