"""kernels/entry/probe_boxes.cuh: every specialisation of the manifest, every byte, against the model."""

import pytest

from kvit.iterators import BoxProbeSpec, ProbeInput, box_sizes, predict, probe, spec_of
from kvit.selection.registry import candidates
from support.manifest import manifest
from support.probes import assert_same, make_pools, page_spans, scattered_table

SPECS = [BoxProbeSpec(**spec.axes) for spec in manifest("probe_boxes")]


def name(spec):
    return f"{spec.element}-d{spec.head_dim}-t{spec.tile}-s{spec.stages}"


# 24: boxes of 8 alone, three a page. 256: a tile is a part of a page.
@pytest.mark.parametrize("order", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [8, 16, 24, 64, 256])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_a_tile_lands_where_the_model_says(spec, page_size, order, box_device, rng):
    # The last tile of 75 tokens ends inside a box, whatever its size; the one before it is full.
    table = scattered_table(rng, lengths=[130, 75], pages=30, page_size=page_size)
    pools = make_pools(rng, spec, pages=30, page_size=page_size, heads=2, order=order)
    last = 75 // spec.tile
    for box_tokens in box_sizes(page_size, spec.tile):
        spans = page_spans(pools, table, 1, 1, box_tokens)
        for tile in (last - 1, last):
            given = ProbeInput(pools, table, sequence=1, head=1, tile=tile, stage=1, box_tokens=box_tokens)
            assert_same(probe(spec, given, device=box_device, spans=spans), predict(spec, given))


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_model_knows_the_size_of_every_kernel(spec):
    (entry,) = candidates("probe_boxes", **vars(spec))
    assert entry.threads == spec.threads
    assert entry.shared_bytes == spec.shared_bytes
    assert entry.facts["fragment_bytes"] == spec.fragment_bytes
    assert entry.facts["tile_tokens"] == spec.tile
    assert spec_of(entry.symbol) == spec


def test_every_swizzle_and_every_number_of_chunks_of_decode_is_probed():
    decode = [entry.axes for entry in candidates("decode", copies="tma")]
    bits = {"b16": 16, "i8": 8, "e4m3": 8, "i4": 4}
    sides = {(side, axes["head_dim"]) for axes in decode for side in bits if axes["kv"] == side}
    assert {head_dim * bits[side] // 8 for side, head_dim in sides} == {spec.row_bytes for spec in SPECS}
