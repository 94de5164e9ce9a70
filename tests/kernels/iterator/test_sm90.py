"""kernels/iterator/sm90.cuh: what Prefetch and Clear do besides the common case, on the kernels of probe_boxes."""

import numpy as np
import pytest

from kvit.errors import HostBackendError
from kvit.iterators import BoxProbeSpec, Fault, FaultKind, ProbeInput, Table, predict, probe
from support.probes import assert_same, make_pools, page_spans, scattered_table

# One swizzle each, and the row of several chunks: 32, 64, 128 and 512 bytes.
SPECS = [
    BoxProbeSpec("u4", 64, 64, 2),
    BoxProbeSpec("u8", 64, 64, 2),
    BoxProbeSpec("u8", 128, 64, 2),
    BoxProbeSpec("f16", 256, 16, 2),
]
ALL = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.element}-d{spec.head_dim}")
PAGE_SIZE = 16


def make_input(rng, spec, length, **which):
    table = scattered_table(rng, lengths=[length], pages=20, page_size=PAGE_SIZE)
    return ProbeInput(make_pools(rng, spec, pages=20, page_size=PAGE_SIZE, heads=1), table, **which)


def check(spec, given, device, spans=None):
    found = probe(spec, given, device=device, spans=spans)
    assert_same(found, predict(spec, given))
    return found


def rows_of(spec, found, stage=0):
    """K's tile as it was before the swizzle."""
    return spec.data.rows(found.shared, stage)


@pytest.mark.parametrize("stage", [0, 1])
@ALL
def test_a_tile_fills_its_own_ring_slot_and_no_other(spec, stage, box_device, rng):
    given = make_input(rng, spec, 64, stage=stage)
    for pool in given.pools.values():
        pool[pool == 0xFF] = 0  # what is left of the poison, nobody has written
    k, v = check(spec, given, box_device).shared.reshape(2, spec.stages, -1)
    for side in (k, v):
        assert (side[stage] != 0xFF).all() and (side[1 - stage] == 0xFF).all()


@ALL
def test_boxes_together_are_the_tile_and_none_writes_for_another(spec, box_device, rng):
    whole = make_input(rng, spec, 59)
    for pool in whole.pools.values():
        pool[pool == 0xFF] = 0
    everything, written = predict(spec, whole), np.zeros(spec.image_bytes, int)
    for box in range(spec.tile // 8):
        given = ProbeInput(whole.pools, whole.table, s_slice=(box, 1), box_tokens=8)
        found = check(spec, given, box_device)
        came = found.shared != 0xFF
        np.testing.assert_array_equal(found.shared[came], everything.shared[came])
        written += came
    assert written.max() == 1 and written.sum() == 2 * spec.data.tile_bytes
    # A slice that reaches past the last box stops there, and one that begins there waits for nothing.
    given = ProbeInput(whole.pools, whole.table, s_slice=(0, 99))
    assert_same(probe(spec, given, device=box_device), everything)
    given = ProbeInput(whole.pools, whole.table, s_slice=(spec.tile // 8, 1), box_tokens=8)
    assert (check(spec, given, box_device).shared == 0xFF).all()


@ALL
def test_a_box_that_begins_in_the_sequence_comes_whole_and_the_next_ones_are_zeros(spec, box_device, rng):
    # 11 tokens: the second box of 8 has 3 of them, and 5 rows that are the page's.
    given = make_input(rng, spec, 11, box_tokens=8)
    spans = page_spans(given.pools, given.table, 0, 0, box_tokens=8)
    rows = rows_of(spec, check(spec, given, box_device, spans))
    page = given.pools["k"][int(given.table.pages[0, 0]), :, 0]
    np.testing.assert_array_equal(rows[:16], page)
    assert not rows[16:].any()


def test_a_box_reads_its_rows_and_nothing_else_on_the_host(rng):
    spec = SPECS[0]
    given = make_input(rng, spec, 64)
    with pytest.raises(HostBackendError, match="tensor copy from global memory"):
        probe(spec, given, spans=page_spans(given.pools, given.table, 0, 0)[1:])


@pytest.mark.parametrize("max_s", [-1, 0, 1, 7, 13, 15, 16])
@ALL
def test_clear_zeroes_the_rows_from_a_token_on_and_no_others(spec, max_s, box_device, rng):
    whole = make_input(rng, spec, 64)
    given = ProbeInput(whole.pools, whole.table, max_s=max_s, stage=1)
    found = check(spec, given, box_device)
    rows, kept = rows_of(spec, found, 1), max(max_s, 0)
    assert not rows[kept:].any()
    np.testing.assert_array_equal(rows[:kept], rows_of(spec, predict(spec, whole))[:kept])
    k, v = found.shared.reshape(2, spec.stages, -1)
    assert (k[0] == 0xFF).all() and (v[0] == 0xFF).all()


@pytest.mark.parametrize("max_s", [None, 5])
@pytest.mark.parametrize("advances", [1, 2, 3])
@ALL
def test_a_slot_is_used_again_after_its_wait_and_its_zeros_do_not_outlive_the_next_copy(
    spec, advances, max_s, box_device, rng
):
    # Phases 0, 1, 0, ... of one barrier; where a tile is cleared, the next one's copies write over the zeros.
    given = make_input(rng, spec, 4 * spec.tile, tile=3, max_s=max_s, advances=advances)
    again = check(spec, given, box_device)
    once = predict(spec, ProbeInput(given.pools, given.table, tile=3, max_s=max_s))
    np.testing.assert_array_equal(again.shared, once.shared)


@ALL
def test_a_slice_leaves_the_boxes_of_the_tile_before_where_it_copies_none(spec, box_device, rng):
    # Only the first box of each tile comes: the others stay poison, tile after tile.
    given = make_input(rng, spec, 2 * spec.tile, tile=1, advances=1, s_slice=(0, 1), box_tokens=8)
    rows = rows_of(spec, check(spec, given, box_device))
    assert (rows[8:] == 0xFF).all()


@pytest.mark.parametrize("page", [-1, 8, 2**31 - 1, -(2**31)], ids=["negative", "one-too-many", "largest", "smallest"])
@ALL
def test_a_page_that_does_not_exist_is_zeros_and_a_fault(spec, page, box_device, rng):
    # The first tile of 64 has its third page bad, the third tile of 16 is that page.
    table = Table(np.array([[3, 1, page, 0]], np.int32), np.array([60], np.int32))
    pools = make_pools(rng, spec, 8, PAGE_SIZE, 1)
    spans = page_spans(pools, Table(np.array([[3, 1, 0]], np.int32), np.array([48], np.int32)), 0, 0)
    given = ProbeInput(pools, table, tile=32 // spec.tile)
    found = check(spec, given, box_device, spans)
    assert found.faults == {Fault(FaultKind.PAGE, 0, 2, page)}
    first = 32 % spec.tile
    assert not rows_of(spec, found)[first : first + PAGE_SIZE].any()


@pytest.mark.parametrize("length", [-1, 33, 2**31 - 1, -(2**31)])
@ALL
def test_a_length_that_the_table_cannot_hold_is_clamped_and_a_fault(spec, length, box_device, rng):
    table = Table(np.array([[1, 0]], np.int32), np.array([length], np.int32))
    found = check(spec, ProbeInput(make_pools(rng, spec, 2, PAGE_SIZE, 1), table), box_device)
    assert found.faults == {Fault(FaultKind.LENGTH, 0, 0, length)}


@ALL
def test_ragged_tables_begin_where_indptr_says(spec, box_device, rng):
    pages = np.array([5, 2, 0, 4, 1], np.int32)
    table = Table(pages, np.array([30, 0, 41], np.int32), np.array([0, 2, 2, 5], np.int32))
    pools = make_pools(rng, spec, 6, PAGE_SIZE, 1)
    for sequence in range(3):
        check(spec, ProbeInput(pools, table, sequence=sequence), box_device)
    bad = Table(pages, table.lengths, np.array([0, 2, 2, 9], np.int32))
    found = check(spec, ProbeInput(pools, bad, sequence=2), box_device, spans=[])
    assert found.faults == {Fault(FaultKind.INDPTR, 2, 3, 9)}
    assert not found.fragments.any()


@ALL
def test_k_and_v_have_maps_of_their_own(spec, box_device, rng):
    # K in HND beside V in NHD, on the host with gaps between its heads: nothing of one map would find the other's rows.
    k = make_pools(rng, spec, 6, PAGE_SIZE, 2, order="HND")["k"]
    wide = make_pools(rng, spec, 6, PAGE_SIZE, 6)["v"]
    pools = {"k": k, "v": wide[:, :, ::3]}
    table = scattered_table(rng, [90], 6, PAGE_SIZE)
    given = ProbeInput(pools, table, head=1)
    check(spec, given, box_device, page_spans(pools, table, 0, 1, PAGE_SIZE))
