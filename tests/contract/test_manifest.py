"""kernels/manifest.toml, the tree and what was built agree."""

import json
import re
from pathlib import Path

import pytest

from codegen import images
from kvit.selection import registry
from support import KERNELS
from support.manifest import manifest, the_manifest
from support.sass import entries_of, image_of


def test_every_kernel_of_the_manifest_is_in_the_index_and_nothing_else_is():
    built = {entry.symbol: (entry.family, dict(entry.axes), entry.unit, entry.params) for entry in registry.all()}
    assert built == {spec.symbol: (spec.family, dict(spec.axes), spec.unit, spec.params) for spec in manifest()}


def test_every_kernel_is_built_for_the_targets_of_its_family_that_were_asked_for():
    # KVIT_KERNELS, of which the index says nothing, chose between these two.
    archs = registry.installed().archs
    default, whole = (
        {spec.symbol: tuple(arch for arch in archs if arch in spec.archs) for spec in the_manifest().specs(with_asked)}
        for with_asked in (False, True)
    )
    built = {entry.symbol: entry.archs for entry in registry.all()}
    assert built == (default if built == default else whole)


def test_every_file_that_the_index_promises_exists_and_holds_its_kernels():
    promised = {}
    for entry in registry.all():
        for arch in entry.archs:
            promised.setdefault(entry.file(arch), set()).add(entry.symbol)
    assert {path: entries_of(path) for path in promised} == promised


def test_every_image_is_one_that_the_drivers_which_the_index_names_take():
    # The index says 12.0 where ptxas of CUDA 12 made the cubins: version 7 of the ELF ABI, and 8 of CUDA 13.
    installed = registry.installed()
    assert set(installed.drivers) == set(installed.archs)
    files = {entry.file(arch): arch for entry in registry.all() for arch in entry.archs}
    for path, arch in files.items():
        image = image_of(path)
        needed = images.oldest_cuda(image, arch)
        assert needed <= installed.drivers[arch], path
        if installed.ptxas is not None and installed.ptxas.startswith("12.") and arch.startswith("sm_"):
            assert image[8] == 7, path
        if arch.startswith("compute_"):
            assert needed == (12, 0), path
    if not files:
        pytest.skip("needs kernels for a GPU: KVIT_ARCHS was none")


def test_sm_75_gets_what_it_runs_where_it_is_asked_for_and_never_by_default():
    # It has neither cp.async nor TMA nor warp groups.
    assert "sm_75" in the_manifest().archs and "sm_75" not in the_manifest().default_archs
    for spec in manifest():
        needs_newer = spec.axes.get("copies", "registers") != "registers" or spec.axes.get("loader") == "sm80"
        needs_newer = needs_newer or spec.family == "probe_boxes"
        assert ("sm_75" in spec.archs) == ("compute_75" in spec.archs) == (not needs_newer), spec.symbol


def test_nothing_lies_beside_the_files_that_the_index_promises():
    promised = {entry.file(arch) for entry in registry.all() for arch in entry.archs}
    promised |= {registry.KERNELS / "index.json", registry.KERNELS / "libkvit_host.so"}
    assert {path for path in registry.KERNELS.rglob("*") if path.is_file()} == promised


def test_the_index_has_the_fields_that_its_page_names():
    index = json.loads((registry.KERNELS / "index.json").read_text())
    assert index["version"] == 1
    assert set(index) == {"version", "kvit", "cuda", "ptxas", "archs", "drivers", "kernels"}
    fields = {"symbol", "family", "unit", "axes", "params", "params_bytes", "threads", "shared_bytes", "min_ctas"}
    assert {frozenset(kernel) for kernel in index["kernels"]} == {frozenset(fields | {"facts", "archs"})}


@pytest.mark.parametrize("family", the_manifest().families, ids=lambda family: family.name)
def test_a_family_names_a_header_and_a_launch_struct_that_exist(family):
    assert (KERNELS / family.header).is_file()
    headers = (KERNELS / "abi" / name for name in ("params.h", "probe_params.h"))
    assert sum(f"}} {family.params};" in header.read_text() for header in headers) == 1


def test_every_entry_header_belongs_to_a_family():
    # A header may have parts, named after it: kernels that differ in more than a template's argument.
    entries = {path.relative_to(KERNELS).as_posix() for path in (KERNELS / "entry").iterdir()}
    headers = {family.header for family in the_manifest().families}
    parts, found = set(headers), set()
    while parts - found:
        header = (parts - found).pop()
        found.add(header)
        stem = Path(header).stem
        names = re.findall(rf'#include "entry/({stem}_\w+\.cuh)"', (KERNELS / header).read_text())
        parts |= {f"entry/{name}" for name in names}
    assert entries == parts


def test_every_kernel_is_one_that_a_gpu_can_launch():
    for entry in registry.all():
        assert 0 < entry.threads <= 1024 and entry.threads % 32 == 0, entry  # CUDA: at most 1024; kvit: whole warps
        assert 0 <= entry.shared_bytes <= 227 * 1024, entry  # what sm_90 lets one CTA have
        assert entry.min_ctas >= 1, entry
        assert 0 < entry.params_bytes <= 4096, entry  # what every GPU takes as parameters
