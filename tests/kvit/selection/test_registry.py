"""kvit/selection/registry.py: finding kernels, choosing the file for a GPU, saying what exists where nothing fits."""

import json

import pytest

from kvit.errors import KernelMissing
from kvit.selection import registry
from kvit.selection.registry import Registry, best_target


def kernel(dtype, head_dim, archs=("sm_80", "sm_90a", "compute_80")):
    return {
        "symbol": f"kvit_scale__{dtype}_d{head_dim}",
        "family": "scale",
        "unit": dtype,
        "axes": {"dtype": dtype, "head_dim": head_dim},
        "params": "KvitScaleParams",
        "params_bytes": 64,
        "threads": 128,
        "shared_bytes": 1024,
        "min_ctas": 1,
        "facts": {"stages": 3},
        "archs": list(archs),
    }


@pytest.fixture
def built(tmp_path):
    """Two axes with one combination left out: f16 at 128."""
    kernels = [kernel("f16", 64), kernel("bf16", 64), kernel("bf16", 128)]
    index = {
        "version": 1,
        "kvit": "1.2.3",
        "cuda": "13.0",
        "ptxas": "12.9",
        "archs": ["sm_80", "sm_90a", "compute_80"],
        "drivers": {"sm_80": [12, 0], "sm_90a": [12, 0], "compute_80": [13, 0]},
        "kernels": kernels,
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    return Registry(tmp_path)


def test_find_gives_the_kernel_at_a_point_of_the_axes(built, tmp_path):
    entry = built.find("scale", dtype="bf16", head_dim=128)
    assert (entry.symbol, entry.threads, entry.facts["stages"]) == ("kvit_scale__bf16_d128", 128, 3)
    assert entry.file("sm_90a") == tmp_path / "sm_90a" / "scale_bf16.cubin.xz"
    assert entry.file("compute_80") == tmp_path / "compute_80" / "scale_bf16.ptx.xz"


def test_a_kernel_knows_the_oldest_driver_of_each_of_its_targets(built):
    entry = built.find("scale", dtype="bf16", head_dim=128)
    assert dict(entry.drivers) == dict(built.drivers) == {"sm_80": (12, 0), "sm_90a": (12, 0), "compute_80": (13, 0)}
    assert (built.cuda, built.ptxas) == ("13.0", "12.9")


def wide(head_dim, takes_fewer=1, shares_kv=0):
    row = kernel("bf16", head_dim)
    return {**row, "facts": {"takes_fewer": takes_fewer, "shares_kv": shares_kv}}


@pytest.fixture
def widths(tmp_path):
    """Kernels that take rows of fewer channels, one that does not, and one whose rows of V are in those of K."""
    kernels = [wide(64), wide(128), wide(128, takes_fewer=0), wide("192x128"), wide(256), wide("576x512", shares_kv=1)]
    for number, row in enumerate(kernels):
        row["symbol"] += f"_{number}"
    index = {"version": 1, "kvit": "1.2.3", "cuda": None, "ptxas": None, "archs": [], "drivers": {}}
    (tmp_path / "index.json").write_text(json.dumps(index | {"kernels": kernels}))
    return Registry(tmp_path)


@pytest.mark.parametrize(
    ("head_dim", "serving"),
    [
        (64, [64]),
        (128, [128, 128]),  # those that are built for it, whether they take fewer or not
        (8, [64]),
        (72, [128]),
        ("72x64", [128]),
        ("136x128", ["192x128"]),  # less room than 256
        ("192x128", ["192x128"]),
        ("192x136", [256]),
        (256, [256]),
        (264, []),
        ("576x512", ["576x512"]),
        ("568x512", []),  # rows of V that lie in those of K are asked for by their own width alone
        (100, []),  # no multiple of 8
    ],
)
def test_rows_that_no_kernel_is_built_for_get_the_one_with_the_least_room(widths, head_dim, serving):
    assert [entry.axes["head_dim"] for entry in widths.serving("scale", head_dim, dtype="bf16")] == serving


@pytest.mark.parametrize(
    ("head_dim", "line"),
    [
        (100, "Pad the rows of q and K with zeros to 104 channels, those of V to 104, and give scale=100 ** -0.5."),
        ("60x41", "Pad the rows of q and K with zeros to 64 channels, those of V to 48, and give scale=60 ** -0.5."),
        (264, ""),
    ],
)
def test_a_width_that_no_kernel_serves_is_told_what_would_do(widths, head_dim, line):
    with pytest.raises(KernelMissing) as raised:
        widths.serves("scale", head_dim, dtype="bf16")
    _, limits, *rest = str(raised.value).split("\n")
    assert limits == "  Kernels serve rows of any multiple of 8 channels up to 256."
    assert [x.strip() for x in rest] == [line] * bool(line)
    if line:
        widths.serves("scale", {100: 104, "60x41": "64x48"}[head_dim], dtype="bf16")  # does not raise


def test_find_refuses_to_choose_among_several(built):
    with pytest.raises(TypeError, match="2 kernels agree with scale dtype=bf16; give head_dim too"):
        built.find("scale", dtype="bf16")


def test_candidates_agree_with_the_axes_given_in_the_order_of_the_manifest(built):
    assert [entry.symbol for entry in built.candidates("scale", head_dim=64)] == [
        "kvit_scale__f16_d64",
        "kvit_scale__bf16_d64",
    ]
    assert built.candidates("scale", dtype="f16", head_dim=128) == ()
    assert built.candidates("scale") == built.all()


def test_an_axis_that_the_family_does_not_have_is_a_mistake_of_the_caller(built):
    with pytest.raises(TypeError, match="scale has no axis 'rows'; its axes are dtype, head_dim"):
        built.candidates("scale", rows=8)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (  # no kernel takes other rows than its own, and who adds one must know what it costs
            {"dtype": "bf16", "head_dim": 32},
            "scale dtype=bf16 head_dim=32; built head_dims are 64, 128.",
        ),
        (
            {"dtype": "f32", "head_dim": 32},
            "scale dtype=f32 head_dim=32; built dtypes are f16, bf16; built head_dims are 64, 128.\n"
            "  Add f32 to [scale] axes.dtype in kernels/manifest.toml and reinstall.",
        ),
        (
            {"dtype": "f16", "head_dim": 128},
            "scale dtype=f16 head_dim=128; "
            "with head_dim=128 built dtypes are bf16; with dtype=f16 built head_dims are 64.\n"
            "  The `skip` rows of [scale] in kernels/manifest.toml say why it is left out.",
        ),
    ],
)
def test_a_missing_kernel_s_error_says_what_exists_nearby(built, axes, message):
    with pytest.raises(KernelMissing) as raised:
        built.find("scale", **axes)
    assert str(raised.value) == message


def cache_kernel(kv, head_dim=64):
    row = kernel("bf16", head_dim)
    return row | {"symbol": f"kvit_keep__{kv}_d{head_dim}", "family": "keep", "axes": row["axes"] | {"kv": kv}}


@pytest.fixture
def caches(tmp_path):
    """A family that stores K and V; one pair is left out at head_dim 128."""
    kernels = [cache_kernel(kv) for kv in ("b16", "i8", "i4", "i8_i4")] + [
        cache_kernel(kv, 128) for kv in ("b16", "i8")
    ]
    index = {"version": 1, "kvit": "1.2.3", "cuda": None, "ptxas": None, "archs": [], "drivers": {}}
    (tmp_path / "index.json").write_text(json.dumps(index | {"kernels": kernels}))
    return Registry(tmp_path)


def test_a_missing_pair_s_error_names_the_nearest_pair_in_the_words_of_the_user(caches):
    with pytest.raises(KernelMissing) as raised:
        caches.find("keep", dtype="bf16", kv="i4_i8", head_dim=64)
    assert str(raised.value) == (
        "keep dtype=bf16 kv=i4_i8 head_dim=64; built kvs are b16, i8, i4, i8_i4.\n"
        "  The nearest pair that is built is k='int8', v='int8' (32 bytes more per token and head).\n"
        "  Add i4_i8 to [keep] axes.kv, its C++ types to [types] where it has none there, in kernels/manifest.toml "
        "and reinstall."
    )
    with pytest.raises(KernelMissing, match=r"(?s)The nearest .* k='int8', v='int8' \(64 bytes more .*`skip` rows"):
        caches.find("keep", dtype="bf16", kv="i8_i4", head_dim=128)


def test_no_pair_is_named_where_another_pair_would_not_help(caches):
    for axes in ({"kv": "i8", "head_dim": 96}, {"kv": "i8", "head_dim": 64, "dtype": "f32"}, {"kv": "zzz"}):
        with pytest.raises(KernelMissing) as raised:
            caches.find("keep", **axes)
        assert "nearest" not in str(raised.value)


def test_an_unknown_family_s_error_lists_the_families(built):
    with pytest.raises(KernelMissing, match="no kernel family shift; built families are scale"):
        built.find("shift")


def test_a_folder_without_an_index_says_how_to_build_one(tmp_path):
    with pytest.raises(KernelMissing, match=r"no kernels are built: .*index\.json(?s:.*)pip install"):
        Registry(tmp_path)


# What runs where: CUDA C++ Programming Guide, binary and PTX compatibility.
@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((9, 0), "sm_90a"),  # its own, with the letter
        ((8, 0), "sm_80"),
        ((8, 6), "sm_80"),  # a cubin runs on later minor versions of its major version
        ((8, 9), "sm_80"),
        ((8, 7), "compute_80"),  # but not on the embedded part
        ((10, 0), "compute_80"),  # sm_90a runs on 9.0 alone, so PTX is all that is left
        ((12, 0), "compute_80"),
        ((7, 5), None),  # PTX does not run on what is older than it
    ],
)
def test_a_gpu_gets_the_best_target_that_it_can_run(capability, target):
    assert best_target(capability, ["compute_80", "sm_80", "sm_90a"]) == target


def test_nearer_targets_come_first():
    assert best_target((8, 9), ["sm_80", "sm_86", "compute_80"]) == "sm_86"
    assert best_target((8, 6), ["sm_80", "sm_89", "compute_80"]) == "sm_80"
    assert best_target((9, 0), ["sm_90", "sm_90a"]) == "sm_90a"
    assert best_target((12, 1), ["compute_80", "compute_90", "compute_90a"]) == "compute_90"
    assert best_target((12, 0), ["sm_120", "compute_90"]) == "sm_120"
    assert best_target((7, 5), ["sm_75", "sm_80", "compute_75"]) == "sm_75"
    assert best_target((9, 0), ["sm_75", "compute_75"]) == "compute_75"  # Turing's kernels on a newer GPU


def test_a_gpu_that_can_run_nothing_is_told_what_was_built(built):
    entry = built.find("scale", dtype="f16", head_dim=64)
    words = (
        r"on sm_75; built targets are sm_80, sm_90a, compute_80\.\n  .*copies=registers, where KVIT_ARCHS names sm_75"
    )
    with pytest.raises(KernelMissing, match=words):
        entry.target((7, 5))
    with pytest.raises(KernelMissing, match=r"on sm_70; .*\n  Kernels need compute capability 7.5"):
        entry.target((7, 0))
    with pytest.raises(KernelMissing, match=r"for sm_75; built targets are .*\.\n  Name sm_75 in KVIT_ARCHS"):
        entry.file("sm_75")
    without_ptx = entry._replace(archs=("sm_80", "sm_90a"))
    with pytest.raises(KernelMissing, match=r"on sm_120; built .*\.\n  Name sm_120 in KVIT_ARCHS, or compute_90"):
        without_ptx.target((12, 0))
    with pytest.raises(KernelMissing, match=r"on sm_87; built .*\.\n  Name sm_87 in KVIT_ARCHS, or compute_80"):
        without_ptx.target((8, 7))


def test_a_gpu_without_the_kernels_that_few_want_is_told_how_to_get_them(built):
    entry = built.find("scale", dtype="f16", head_dim=64)._replace(archs=(), unit="all_asked")
    with pytest.raises(KernelMissing, match=r"built targets are the host alone\.\n  .* set KVIT_KERNELS=all"):
        entry.target((9, 0))


def test_the_installed_kernels_are_found_by_their_own_axes():
    for entry in registry.all():
        assert registry.find(entry.family, **entry.axes) is entry
        assert entry in registry.candidates(entry.family)


@pytest.mark.parametrize(
    ("capability", "archs", "expected"),
    [
        ((9, 0), ("sm_80", "sm_90a", "compute_80"), True),
        ((10, 0), ("sm_80", "sm_90a", "compute_80"), False),  # compiles the PTX, which knows no grid dependency
        ((10, 0), ("sm_80", "sm_90", "compute_80", "compute_90"), True),
        ((12, 0), ("sm_80", "sm_90a", "sm_120", "compute_80"), True),
        ((9, 0), ("sm_80", "compute_80"), False),
        ((8, 6), ("sm_80", "sm_90a"), False),
    ],
)
def test_a_launch_is_early_only_where_the_image_that_is_loaded_waits(tmp_path, capability, archs, expected):
    row = kernel("bf16", 128, archs)
    for overlaps in (0, 1):
        row["facts"]["overlaps"] = overlaps
        index = {"version": 1, "kvit": "1", "cuda": "13.0", "ptxas": "12.9", "archs": list(archs)}
        index |= {"drivers": {}, "kernels": [row]}
        (tmp_path / "index.json").write_text(json.dumps(index))
        (found,) = Registry(tmp_path).all()
        assert found.overlaps(capability) == (expected and overlaps == 1)
