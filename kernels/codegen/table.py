"""The tables of README.md and docs/quantisation.md, made from the manifest so that they promise nothing else."""

from __future__ import annotations

import re

from codegen.errors import BuildError
from codegen.family import Family
from codegen.manifest import Manifest

BEGIN = "<!-- support table: python -m codegen table -->"
BEGIN_PAIRS = "<!-- table of pairs: python -m codegen table -->"
END = "<!-- end -->"

# Words of the axis `kv`, as users say them.
CODEC_WORDS = {"b16": "16 bits", "i8": "int8", "i4": "int4", "e4m3": "float8_e4m3", "e5m2": "float8_e5m2"}


def support_table(manifest: Manifest) -> str:
    """A Markdown table with one row per family: over which values of its axes it is built, and for which targets where
    KVIT_ARCHS does not say otherwise."""
    rows = ["| family | kernels | axes | targets |", "| --- | --- | --- | --- |"]
    kernels = manifest.specs()
    for family in manifest.families:
        count = sum(spec.family == family.name for spec in kernels)
        rows.append(f"| {family.name} | {count} | {_axes(family)} | {_targets(family, manifest.default_archs)} |")
    return "\n".join(rows)


def pairs_table(manifest: Manifest) -> str:
    """A Markdown table with one row per pair of codecs and a column per width of rows: what attention has kernels for.

    D plain decode, O decode with options and for rows of fewer channels, P plain prompts, Q prompts with options; in
    brackets what GPUs get with KVIT_KERNELS=all alone.
    """
    marks: dict[tuple[str, str], set[str]] = {}
    widths: dict[str, None] = {}
    plain_build = {spec.symbol for spec in manifest.specs(False) if set(spec.archs) & set(manifest.default_archs)}
    for spec in manifest.specs():
        variants = {"decode": {"plain": "D", "general": "O"}, "prefill": {"plain": "P", "general": "Q"}}
        if spec.family not in variants or not set(spec.archs) & set(manifest.default_archs):
            continue  # of other GPUs than those of a plain build
        mark = variants[spec.family][str(spec.axes["variant"])]
        width = str(spec.axes["head_dim"]).replace("x", " / ")
        widths[width] = None
        found = marks.setdefault((str(spec.axes["kv"]), width), set())
        found.add(mark if spec.symbol in plain_build else f"({mark})")
    rows = ["| K / V | " + " | ".join(widths) + " |", "| --- |" + " --- |" * len(widths)]
    for pair in dict.fromkeys(pair for pair, _ in marks):
        k, _, v = pair.partition("_")
        cells = [_in_words(marks.get((pair, width), set())) for width in widths]
        rows.append(f"| {CODEC_WORDS[k]} / {CODEC_WORDS[v or k]} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _in_words(marks: set[str]) -> str:
    return " ".join(mark if mark in marks else f"({mark})" for mark in "DOPQ" if mark in marks or f"({mark})" in marks)


def replace_table(text: str, table: str, begin: str = BEGIN) -> str:
    """`text` with `table` between the `begin` and END lines. Raises BuildError where they are missing."""
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(END)})", re.S)
    if not pattern.search(text):
        raise BuildError(f"no place for the table: write the lines\n{begin}\n{END}")
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
