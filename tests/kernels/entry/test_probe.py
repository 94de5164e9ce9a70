"""kernels/entry/probe.cuh: every specialisation of the manifest, every byte, against the model."""

import ctypes

import numpy as np
import pytest

from kvit.iterators import ProbeInput, ProbeSpec, Table, _params, predict, probe, spec_of
from kvit.selection.registry import candidates
from support.manifest import manifest
from support.probes import assert_same, make_pools, page_spans, scattered_table, used_tokens

SPECS = [ProbeSpec(**spec.axes) for spec in manifest("probe")]
PAGED = [spec for spec in SPECS if spec.source == "paged"]
LINEAR = [spec for spec in SPECS if spec.source == "linear"]


def name(spec):
    return f"{spec.loader}-{spec.element}-d{spec.head_dim}-t{spec.tile}-s{spec.stages}-{spec.source}"


@pytest.mark.parametrize("page_size", [1, 16, 64, 100])
@pytest.mark.parametrize("spec", PAGED, ids=name)
def test_a_paged_tile_lands_where_the_model_says(spec, page_size, device, rng):
    # The second tile of 75 tokens: part full in tiles of 64, and in pages of 16, 64 and 100.
    table = scattered_table(rng, lengths=[130, 75], pages=220, page_size=page_size)
    pools = make_pools(rng, spec, pages=220, page_size=page_size, heads=2, lengths=used_tokens(table, page_size))
    given = ProbeInput(pools, table, sequence=1, head=1, tile=1, stage=spec.stages - 1)
    spans = page_spans(pools, table, sequence=1, head=1)
    assert_same(probe(spec, given, device=device, spans=spans), predict(spec, given))


@pytest.mark.parametrize("spec", LINEAR, ids=name)
def test_a_linear_tile_lands_where_the_model_says(spec, device, rng):
    pools = make_pools(rng, spec, pages=1, page_size=300, heads=2)
    # Sequences follow each other without a gap; the second ends inside its second tile.
    table = Table(np.zeros(300, np.int32), np.array([100, 75, 125], np.int32), np.array([0, 100, 175, 300], np.int32))
    given = ProbeInput(pools, table, sequence=1, head=1, tile=1)
    assert_same(probe(spec, given, device=device), predict(spec, given))


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_model_knows_the_size_of_every_kernel(spec):
    (entry,) = candidates("probe", **vars(spec))
    assert entry.threads == spec.threads
    assert entry.shared_bytes == spec.shared_bytes
    assert entry.facts["fragment_bytes"] == spec.fragment_bytes
    assert entry.facts["tile_tokens"] == spec.tile
    assert spec_of(entry.symbol) == spec


@pytest.mark.parametrize("struct", ["KvitPool", "KvitCache", "KvitPageTable", "KvitTensorMap", "KvitProbeParams"])
def test_the_structs_of_the_model_are_those_of_the_header(cxx, struct):
    mirror = getattr(_params, struct)
    names = [field for field, *_ in mirror._fields_]
    offsets = " ".join(f'printf("%zu ", offsetof({struct}, {field}));' for field in names)
    expected = [ctypes.sizeof(mirror), *(getattr(mirror, field).offset for field in names)]
    assert cxx.numbers(["stddef.h", "abi/probe_params.h"], f'printf("%zu ", sizeof({struct})); {offsets}') == expected
