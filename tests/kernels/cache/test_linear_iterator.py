"""kernels/cache/linear_iterator.cuh: rows of contiguous tokens."""

import numpy as np
import pytest

from kvit.iterators import Fault, FaultKind, ProbeInput, ProbeSpec, Table, predict, probe
from support.probes import assert_same, make_pools

SPECS = [ProbeSpec("sm80", element, 128, 64, 1, "linear") for element in ("f16", "u4")]
EACH = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.element)


@EACH
@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_dense_sequences_begin_at_multiples_of_the_row_stride(spec, order, device, rng):
    table = Table(np.zeros((3, 100), np.int32), np.array([100, 70, 0], np.int32))
    pools = make_pools(rng, spec, pages=1, page_size=300, heads=2, order=order)
    for sequence in range(3):
        for tile in range(2):
            given = ProbeInput(pools, table, sequence=sequence, head=1, tile=tile, advances=tile)
            assert_same(probe(spec, given, device=device), predict(spec, given))


@EACH
def test_nothing_past_the_sequence_is_read(spec, rng):
    table = Table(np.zeros((1, 100), np.int32), np.array([70], np.int32))
    pools = make_pools(rng, spec, pages=1, page_size=100, heads=1)
    spans = [(pool.__array_interface__["data"][0], 70 * pool.shape[3]) for pool in pools.values()]
    given = ProbeInput(pools, table, tile=1)
    assert_same(probe(spec, given, spans=spans), predict(spec, given))


@EACH
def test_a_length_past_the_next_sequence_is_clamped_and_a_fault(spec, device, rng):
    table = Table(np.zeros(100, np.int32), np.array([31, 70], np.int32), np.array([0, 30, 100], np.int32))
    pools = make_pools(rng, spec, pages=1, page_size=100, heads=1)
    found = probe(spec, ProbeInput(pools, table), device=device)
    assert_same(found, predict(spec, ProbeInput(pools, table)))
    assert found.faults == {Fault(FaultKind.LENGTH, 0, 0, 31)}
