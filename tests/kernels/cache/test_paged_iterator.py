"""kernels/cache/paged_iterator.cuh: rows found through page tables of any kind; bad ones are reported, not followed."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvit.errors import HostBackendError
from kvit.iterators import Fault, FaultKind, ProbeInput, ProbeSpec, Table, predict, probe
from support.host_program import ALL_MEMORY
from support.probes import assert_same, make_pools, page_spans, scattered_table, used_tokens

F16 = ProbeSpec("sm80", "f16", 128, 64, 3, "paged")
U4 = ProbeSpec("sm80", "u4", 64, 32, 3, "paged")  # all four pools, warps without tokens
BOTH = pytest.mark.parametrize("spec", [F16, U4], ids=["f16", "u4"])


def check(spec, given, device, spans=None):
    found = probe(spec, given, device=device, spans=spans)
    assert_same(found, predict(spec, given))
    return found


@BOTH
@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_heads_may_lie_inside_or_outside_of_tokens(spec, order, device, rng):
    table = scattered_table(rng, lengths=[90], pages=10, page_size=16)
    pools = make_pools(rng, spec, 10, 16, 3, order=order, lengths=used_tokens(table, 16))
    for head in range(3):
        spans = page_spans(pools, table, 0, head)
        check(spec, ProbeInput(pools, table, head=head, tile=1), device, spans)


@BOTH
def test_pools_may_be_parts_of_one_allocation(spec, rng):
    # Blocks as TurboMind lays them out: in every page, each head's K, then its V, then the parameters.
    pages, page_size, heads = 6, 16, 2
    sizes = [page_size * iterator.row_bytes for iterator in spec.iterators]
    head_bytes = sum(sizes)
    whole = rng.integers(0, 256, (pages, heads, head_bytes), np.uint8)
    pools, first = {}, 0
    for name, size, iterator in zip(("k", "v", "k_params", "v_params"), sizes, spec.iterators, strict=False):
        block = whole[:, :, first : first + size].reshape(pages, heads, page_size, iterator.row_bytes)
        assert np.shares_memory(block, whole)
        pools[name] = block.transpose(0, 2, 1, 3)
        first += size
    table = scattered_table(rng, lengths=[80], pages=pages, page_size=page_size)
    check(spec, ProbeInput(pools, table, head=1), "host", page_spans(pools, table, 0, 1))


@BOTH
@pytest.mark.parametrize("advances", [1, 3])
def test_advancing_reaches_the_same_tile_as_setting_it(spec, advances, device, rng):
    table = scattered_table(rng, lengths=[250], pages=20, page_size=16)
    pools = make_pools(rng, spec, 20, 16, 1, lengths=used_tokens(table, 16))
    set_at_once = check(spec, ProbeInput(pools, table, tile=3), device)
    advanced = check(spec, ProbeInput(pools, table, tile=3, advances=advances), device)
    np.testing.assert_array_equal(advanced.shared, set_at_once.shared)


@BOTH
def test_ragged_tables_begin_where_indptr_says(spec, device, rng):
    pages = np.array([5, 2, 0, 4, 1], np.int32)
    table = Table(pages, np.array([30, 0, 41], np.int32), np.array([0, 2, 2, 5], np.int32))
    pools = make_pools(rng, spec, 6, 16, 1)
    for sequence in range(3):
        check(spec, ProbeInput(pools, table, sequence=sequence), device)


def test_a_kernel_that_may_not_read_a_row_it_needs_is_caught(rng):
    table = scattered_table(rng, lengths=[64], pages=4, page_size=16)
    pools = make_pools(rng, F16, 4, 16, 1)
    with pytest.raises(HostBackendError):
        probe(F16, ProbeInput(pools, table), spans=page_spans(pools, table, 0, 0)[1:])


@BOTH
@pytest.mark.parametrize("page", [-1, 8, 2**31 - 1, -(2**31)], ids=["negative", "one-too-many", "largest", "smallest"])
def test_a_page_that_does_not_exist_is_zeros_and_a_fault(spec, page, device, rng):
    table = Table(np.array([[3, page, 1, 0]], np.int32), np.array([60], np.int32))
    pools = make_pools(rng, spec, 8, 16, 1, lengths={3: 16, 1: 16, 0: 12})
    spans = page_spans(pools, Table(np.array([[3]], np.int32), np.array([16], np.int32)), 0, 0)
    spans += page_spans(pools, Table(np.array([[1, 0]], np.int32), np.array([28], np.int32)), 0, 0)
    found = check(spec, ProbeInput(pools, table), device, spans)
    assert found.faults == {Fault(FaultKind.PAGE, 0, 1, page)}


def test_a_bad_page_of_another_tile_or_sequence_is_nobodys_fault(device, rng):
    # Slot 4 begins with token 64: the second tile's. It is read ahead, and must not be reported for the first.
    table = Table(np.array([[0, 1, 2, 3, 99], [99, 99, 99, 99, 99]], np.int32), np.array([80, 80], np.int32))
    pools = make_pools(rng, F16, 4, 16, 1)
    assert not check(F16, ProbeInput(pools, table), device).faults


@BOTH
@pytest.mark.parametrize("length", [-1, 33, 2**31 - 1, -(2**31)])
def test_a_length_that_the_table_cannot_hold_is_clamped_and_a_fault(spec, length, device, rng):
    table = Table(np.array([[1, 0]], np.int32), np.array([length], np.int32))
    pools = make_pools(rng, spec, 2, 16, 1)
    found = check(spec, ProbeInput(pools, table), device)
    assert found.faults == {Fault(FaultKind.LENGTH, 0, 0, length)}


@pytest.mark.parametrize(
    ("indptr", "slot", "value"),
    [([0, -2, 3], 1, -2), ([0, 2, 1], 2, 1), ([0, 2, 9], 2, 9), ([0, 9, 9], 1, 9)],
    ids=["negative", "falling", "past-the-end", "begin-past-the-end"],
)
def test_offsets_outside_the_table_are_a_fault_and_read_nothing(indptr, slot, value, device, rng):
    table = Table(np.array([0, 1, 0], np.int32), np.array([16, 16], np.int32), np.array(indptr, np.int32))
    pools = make_pools(rng, F16, 2, 16, 1)
    found = check(F16, ProbeInput(pools, table, sequence=1), device, spans=[])
    assert found.faults == {Fault(FaultKind.INDPTR, 1, slot, value)}
    assert not found.fragments.any()


# One warp for a tile of 64 tokens: its lanes look up two rows each, and a warp access of two rows shares a round.
FIND_ROWS_OF_ONE_WARP = """
  using Map = RakedThreadMap<128, 64, 8, 1>;
  KvitCache cache = {};
  cache.pool[0] = {reinterpret_cast<void*>(1 << 20), 1000, 10, 0};
  cache.num_pages = int(std::size(pages));
  cache.page_size = 3;
  const KvitPageTable table = {pages, nullptr, lengths, cache.num_pages, 1, cache.num_pages};
  PagedIterator<1u, Map> tiles(cache, table);
  tiles.SetSequence(0, 0);
  tiles.SetTile(1);
  const Coord first = Map::Offset(0, LaneIndex());
  for (int i = 0; i < Map::kIterS; ++i) {
    const int s = first.s + i * Map::kDeltaS;
    const char* row = tiles.OffsetPtr<0>(s, first.c);
    StoreGlobal(params.output + (s * 16 + first.c / 8) * 8, reinterpret_cast<int64_t>(row));
  }
"""


def test_a_band_of_more_than_32_tokens_is_looked_up_in_rounds(host_programs):
    # Pages of 3 tokens, 1000 bytes apart, tokens 10: nothing divides the band. Tile 1 is tokens 64..127 of 100.
    pages = [(slot * 7 + 5) % 34 for slot in range(34)]
    outcome = host_programs.run(
        FIND_ROWS_OF_ONE_WARP,
        output_bytes=64 * 16 * 8,
        includes=f"""#include "cache/paged_iterator.cuh"
            const int32_t pages[] = {{{", ".join(map(str, pages))}}};
            const int32_t lengths[] = {{100}};""",
        spans=f"{ALL_MEMORY}, {{pages, sizeof pages, 0, 0}}, {{lengths, sizeof lengths, 0, 0}}",
    )
    assert not outcome.error
    found = np.frombuffer(outcome.output, np.int64).reshape(64, 16)
    for s in range(64):
        token = 64 + s
        if token < 100:
            row = (1 << 20) + pages[token // 3] * 1000 + token % 3 * 10
            assert found[s].tolist() == [row + 8 * access for access in range(16)]
        else:
            assert not found[s].any()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=st.sampled_from([F16, U4]),
    page_size=st.integers(1, 130),
    length=st.integers(0, 200),
    tile=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_page_size_and_length(spec, page_size, length, tile, seed):
    rng = np.random.default_rng(seed)
    pages = -(-length // page_size) + 1
    table = scattered_table(rng, [length], pages, page_size)
    pools = make_pools(rng, spec, pages, page_size, 1, lengths=used_tokens(table, page_size))
    check(spec, ProbeInput(pools, table, tile=tile), "host", page_spans(pools, table, 0, 0))
