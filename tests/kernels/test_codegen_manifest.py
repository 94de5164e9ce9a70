"""kernels/codegen/manifest.py and emit.py: rows to kernels, and wrong rows to errors that name them."""

import pytest

from codegen.emit import units_of, write_units
from codegen.errors import ManifestError
from codegen.manifest import load_manifest, parse_manifest

# Two axes with different kinds of value, one spelled differently in C++, one unit per dtype.
GOOD = """
[types]
bf16 = "Bfloat16"

[scale]
header = "entry/scale.cuh"
type = "ScaleKernel<{dtype}, {n}>"
params = "KvitScaleParams"
symbol = "{dtype}_n{n}"
unit = "{dtype}"
archs = ["sm_80", "compute_80"]
axes.dtype = ["bf16", "float"]
axes.n = [1, 2, 4]
skip = [
  { when = { dtype = "float", n = [2, 4] }, reason = "one float at a time is enough" },
]
"""


def with_row(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


def test_axes_are_multiplied_out_in_the_order_of_the_manifest_and_skip_rows_taken_away():
    specs = parse_manifest(GOOD).specs()
    assert [spec.symbol for spec in specs] == [
        "kvit_scale__bf16_n1",
        "kvit_scale__bf16_n2",
        "kvit_scale__bf16_n4",
        "kvit_scale__float_n1",
    ]
    assert [dict(spec.axes) for spec in specs][:2] == [{"dtype": "bf16", "n": 1}, {"dtype": "bf16", "n": 2}]


# An axis whose second value needs what newer targets have, in a unit of its own.
NARROWED = """
[targets]
default = ["sm_80", "sm_90"]
all = ["sm_80", "sm_90", "sm_90a", "sm_100"]

[load]
header = "entry/load.cuh"
type = "LoadKernel<{loader}, {n}>"
params = "KvitLoadParams"
symbol = "{loader}_n{n}"
unit = "{loader}_n{n}"
axes.loader = ["sm80", "sm90"]
axes.n = [1, 2]
only = [
  { when = { loader = "sm90" }, archs = ["sm_90", "sm_90a", "sm_100"], reason = "bulk copies came with sm_90" },
  { when = { n = 2 }, archs = ["sm_80", "sm_90a"], reason = "two at a time is not tuned elsewhere" },
]
"""


def test_only_rows_leave_the_targets_that_all_of_them_name():
    targets = {spec.symbol: spec.archs for spec in parse_manifest(NARROWED).specs()}
    assert targets == {
        "kvit_load__sm80_n1": ("sm_80", "sm_90", "sm_100"),
        "kvit_load__sm80_n2": ("sm_80", "sm_90a"),
        "kvit_load__sm90_n1": ("sm_90", "sm_90a", "sm_100"),
        "kvit_load__sm90_n2": ("sm_90a",),
    }


ASKED = GOOD.replace("skip = [", 'asked = [\n  { when = { n = 4 }, reason = "few want four" },\n]\nskip = [')


def test_kernels_that_few_want_have_files_of_their_own_and_targets_where_they_are_asked_for():
    manifest = parse_manifest(ASKED)
    for with_asked in (True, False):
        archs = {spec.symbol: (spec.unit, spec.archs) for spec in manifest.specs(with_asked)}
        assert archs["kvit_scale__bf16_n2"] == ("bf16", ("sm_80", "compute_80"))
        assert archs["kvit_scale__bf16_n4"] == ("bf16_asked", ("sm_80", "compute_80") if with_asked else ())


def test_asked_rows_are_checked_as_others_are():
    with pytest.raises(ManifestError, match=r"\[scale\] asked\[0\] when: axes.n has no 5; it has 1, 2, 4"):
        parse_manifest(ASKED.replace("n = 4 }", "n = 5 }"))
    with pytest.raises(ManifestError, match=r"\[scale\] asked\[0\] reason: say why"):
        parse_manifest(ASKED.replace("few want four", ""))


def test_a_family_without_archs_has_all_targets_but_those_with_a_letter_and_a_plain_build_makes_the_default():
    manifest = parse_manifest(NARROWED)
    assert manifest.default_archs == ("sm_80", "sm_90")
    assert manifest.families[0].archs == ("sm_80", "sm_90", "sm_100")
    assert manifest.archs == ("sm_80", "sm_90", "sm_90a", "sm_100")
    assert parse_manifest(GOOD).default_archs == ("sm_80", "compute_80")  # no [targets]: what families list


NARROWED_WRONG = {
    "kernels of a file for different targets": (
        'unit = "{loader}_n{n}"',
        'unit = "n{n}"',
        "[load] unit: n1 has kvit_load__sm80_n1 for sm_80, sm_90, sm_100 and kvit_load__sm90_n1 for sm_90, sm_90a, sm_",
    ),
    "only for a target outside the family": (
        '"sm_100"], reason = "bulk',
        '"sm_120"], reason = "bulk',
        "[load] only[0] archs: the family is not built for sm_120, but for sm_80, sm_90, sm_90a, sm_100",
    ),
    "only rows that leave nothing": (
        'n = 2 }, archs = ["sm_80", "sm_90a"]',
        'n = 2 }, archs = ["sm_80"]',
        "[load] only: the rows about {'loader': 'sm90', 'n': 2} have no target in common",
    ),
    "only without targets": ('archs = ["sm_80", "sm_90a"], reason', "reason", "[load] only[1]: "),
    "only without a reason": ('"bulk copies came with sm_90"', '""', "[load] only[0] reason: say why"),
    "only of an unknown value": ("n = 2 }", "n = 3 }", "[load] only[1] when: axes.n has no 3; it has 1, 2"),
    "default outside all": ('default = ["sm_80"', 'default = ["sm_75"', "[targets] default: sm_75 is not in all: "),
    "targets without all": ("all = [", "most = [", "[targets]: give `default`"),
    "no targets at all": (
        NARROWED.partition("[load]")[0],
        "",
        "[load]: archs is missing, and there is no [targets] all",
    ),
}


@pytest.mark.parametrize("fault", NARROWED_WRONG)
def test_a_wrong_target_is_named_by_the_error(fault):
    old, new, words = NARROWED_WRONG[fault]
    assert old in NARROWED
    with pytest.raises(ManifestError) as raised:
        parse_manifest(NARROWED.replace(old, new))
    assert str(raised.value).startswith(words)


def test_axis_values_are_spelled_as_cpp_in_types_and_as_themselves_in_symbols():
    spec = parse_manifest(GOOD).specs()[0]
    assert spec.cpp_type == "ScaleKernel<Bfloat16, 1>"
    assert (spec.family, spec.params, spec.unit, spec.archs) == (
        "scale",
        "KvitScaleParams",
        "bf16",
        ("sm_80", "compute_80"),
    )


def test_a_family_without_axes_is_one_kernel():
    text = """
    [noop]
    header = "entry/noop.cuh"
    type = "NoopKernel"
    params = "KvitNoopParams"
    symbol = "all"
    unit = "all"
    archs = ["sm_90a"]
    axes = {}
    """
    assert [spec.symbol for spec in parse_manifest(text).specs()] == ["kvit_noop__all"]


def test_a_unit_holds_its_kernels_and_includes_their_header():
    units = units_of(parse_manifest(GOOD).specs())
    assert [unit.stem for unit in units] == ["scale_bf16", "scale_float"]
    assert units[1].text == (
        '#include "entry/scale.cuh"\n\nKVIT_KERNEL(kvit_scale__float_n1, kvit::ScaleKernel<float, 1>)\n'
    )


def test_units_that_did_not_change_keep_their_time_stamps_and_foreign_files_go(tmp_path):
    units = units_of(parse_manifest(GOOD).specs())
    write_units(units, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "scale_f16.cu").write_text("a unit of an earlier manifest")
    write_units(units, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


# Each row of the manifest that can be wrong: what is replaced, by what, and the words that must point at it.
WRONG = {
    "unknown field": ('unit = "{dtype}"', 'unit = "{dtype}"\ncolour = 1', "[scale] colour: no such field"),
    "missing field": ('params = "KvitScaleParams"', "", "[scale]: params is missing"),
    "field of the wrong kind": ('params = "KvitScaleParams"', "params = 3", "[scale] params: 3"),
    "pattern with an unknown axis": ('"{dtype}_n{n}"', '"{dtype}_m{m}"', "[scale] symbol"),
    "pattern that does not close": ("ScaleKernel<{dtype}, {n}>", "ScaleKernel<{dtype", "[scale] type"),
    "symbol that is no name": ('"{dtype}_n{n}"', '"{dtype}-n{n}"', "[scale] symbol: 'bf16-n1'"),
    "two kernels of one symbol": ('"{dtype}_n{n}"', '"{dtype}"', "[scale] symbol: "),
    "axis without values": ("[1, 2, 4]", "[]", "[scale] axes.n: []"),
    "axis with a value twice": ("[1, 2, 4]", "[1, 2, 4, 2]", "[scale] axes.n: [1, 2, 4, 2]"),
    "axis of fractions": ("[1, 2, 4]", "[1.5]", "[scale] axes.n: 1.5"),
    "axis of truths": ("[1, 2, 4]", "[true]", "[scale] axes.n: True"),
    "unknown target": ('"sm_80"', '"sm80"', "[scale] archs: 'sm80'"),
    "target twice": ('"sm_80"', '"compute_80"', "[scale] archs: "),
    "skip without a reason": ('reason = "one float at a time is enough"', 'reason = ""', "[scale] skip[0] reason"),
    "skip of an unknown axis": ("n = [2, 4] }", "m = 2 }", "[scale] skip[0] when: no axis m"),
    "skip of an unknown value": ("[2, 4] }", "[2, 8] }", "[scale] skip[0] when: axes.n has no 8; it has 1, 2, 4"),
    "type that is no text": ('"Bfloat16"', "16", "[types] bf16: 16"),
    "no TOML": ('"sm_80", ', '"sm_80" ', ""),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_row_is_named_by_the_error(fault, tmp_path):
    old, new, words = WRONG[fault]
    path = tmp_path / "manifest.toml"
    path.write_text(with_row(old, new))
    with pytest.raises(ManifestError) as raised:
        load_manifest(path)
    assert str(raised.value).startswith(f"{path}: {words}")


def test_two_families_cannot_share_a_file():
    # [scale] unit "x_all" and [scale_x] unit "all" would both be scale_x_all.
    first = with_row('unit = "{dtype}"', 'unit = "x_all"')
    second = GOOD.partition("[scale]")[2].replace('unit = "{dtype}"', 'unit = "all"')
    with pytest.raises(ManifestError, match=r"\[scale_x\] unit: scale_x_all is a unit of \[scale\] too"):
        parse_manifest(f"{first}\n[scale_x]\n{second}")
