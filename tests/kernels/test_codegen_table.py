"""kernels/codegen/table.py, and the table that README.md shows."""

import pytest

from codegen.errors import BuildError
from codegen.manifest import parse_manifest
from codegen.table import BEGIN, BEGIN_PAIRS, CODEC_WORDS, END, pairs_table, replace_table, support_table
from kvit.codecs import PLAIN
from support import ROOT
from support.manifest import the_manifest

MANIFEST = """
[scale]
header = "entry/scale.cuh"
type = "ScaleKernel<{dtype}, {n}>"
params = "KvitScaleParams"
symbol = "{dtype}_n{n}"
unit = "all"
archs = ["sm_80", "compute_80"]
axes.dtype = ["f16", "bf16"]
axes.n = [1, 2]
skip = [{ when = { dtype = "f16", n = 2 }, reason = "one at a time is enough" }]
"""


def test_a_family_is_a_row_that_counts_what_is_built():
    assert support_table(parse_manifest(MANIFEST)).splitlines() == [
        "| family | kernels | axes | targets |",
        "| --- | --- | --- | --- |",
        "| scale | 3 | dtype f16, bf16; n 1, 2 | host, sm_80, compute_80 |",
    ]


def test_the_table_promises_what_a_plain_build_makes_and_names_points_with_fewer_targets():
    targets = '[targets]\ndefault = ["sm_80", "sm_90", "sm_90a"]\nall = ["sm_80", "sm_90", "sm_90a", "sm_100"]\n'
    only = 'only = [{ when = { n = 2 }, archs = ["sm_90a", "sm_100"], reason = "needs sm_90" }]\n'
    text = MANIFEST.replace('archs = ["sm_80", "compute_80"]\n', only).replace('unit = "all"', 'unit = "n{n}"')
    assert support_table(parse_manifest(targets + text)).splitlines()[2] == (
        "| scale | 3 | dtype f16, bf16; n 1, 2 | host, sm_80, sm_90; n 2: sm_90a |"
    )


@pytest.mark.parametrize(
    ("archs", "words"),
    [
        ('"sm_80", "sm_90"', ""),  # as the others: nothing to say
        ('"sm_75"', "; n 2: with `KVIT_ARCHS=sm_75`"),
        ("", "; n 2: the host alone"),
    ],
)
def test_points_that_a_plain_build_leaves_out_say_how_to_get_them(archs, words):
    targets = '[targets]\ndefault = ["sm_80", "sm_90"]\nall = ["sm_75", "sm_80", "sm_90"]\n'
    only = f'only = [{{ when = {{ n = 2 }}, archs = [{archs}], reason = "others have better ones" }}]\n'
    text = MANIFEST.replace('archs = ["sm_80", "compute_80"]\n', only).replace('unit = "all"', 'unit = "n{n}"')
    assert support_table(parse_manifest(targets + text)).splitlines()[2] == (
        f"| scale | 3 | dtype f16, bf16; n 1, 2 | host, sm_80, sm_90{words} |"
    )


def test_the_table_replaces_what_stands_between_its_marks_and_nothing_else():
    text = f"above\n{BEGIN}\n| an old row |\n{END}\nbelow\n"
    assert replace_table(text, "| new |") == f"above\n{BEGIN}\n| new |\n{END}\nbelow\n"


def test_a_page_without_the_marks_is_an_error_that_names_them():
    with pytest.raises(BuildError, match="no place for the table"):
        replace_table("above\nbelow\n", "| new |")


def test_the_readme_shows_the_table_of_the_manifest():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replace_table(text, support_table(the_manifest())) == text, "run: cd kernels && python -m codegen table"


PAIRS = """
[targets]
default = ["sm_80"]
all = ["sm_75", "sm_80"]

[decode]
header = "entry/decode.cuh"
type = "DecodeKernel<{kv}, {head_dim}, {variant}>"
params = "KvitDecodeParams"
symbol = "{kv}_d{head_dim}_{variant}"
unit = "{kv}_{head_dim}_{variant}"
axes.kv = ["b16", "i8_i4", "e5m2"]
axes.head_dim = [64, "192x128"]
axes.variant = ["plain", "general"]
skip = [{ when = { kv = "i8_i4", head_dim = "192x128" }, reason = "few" }]
asked = [{ when = { variant = "general", kv = "b16" }, reason = "long to compile" }]
only = [{ when = { kv = "e5m2" }, archs = ["sm_75"], reason = "for older GPUs" }]

[prefill]
header = "entry/prefill.cuh"
type = "PrefillKernel<{kv}, {head_dim}, {variant}>"
params = "KvitDecodeParams"
symbol = "{kv}_d{head_dim}_{variant}"
unit = "{kv}_{variant}"
axes.kv = ["b16"]
axes.head_dim = [64]
axes.variant = ["plain", "general"]
"""


def test_a_pair_is_a_row_that_says_what_attention_has_of_each_width():
    assert pairs_table(parse_manifest(PAIRS)).splitlines() == [
        "| K / V | 64 | 192 / 128 |",
        "| --- | --- | --- |",
        "| 16 bits / 16 bits | D (O) P Q | D (O) |",
        "| int8 / int4 | D O |  |",
    ]


def test_codecs_have_the_names_that_users_give():
    names = {codec.short: codec.name for codec in PLAIN if codec.short != "b16"}
    assert {**names, "b16": "16 bits"} == CODEC_WORDS


def test_the_page_of_codecs_shows_the_table_of_the_manifest():
    text = (ROOT / "docs" / "quantisation.md").read_text(encoding="utf-8")
    table = pairs_table(the_manifest())
    assert replace_table(text, table, BEGIN_PAIRS) == text, "run: cd kernels && python -m codegen table"
