"""kernels/iterator/: what Load, Save and Prefetch do besides the common case, on the kernels of family probe."""

import numpy as np
import pytest

from kvit.iterators import ProbeInput, ProbeSpec, predict, probe
from support.probes import assert_same, make_pools, scattered_table, used_tokens

PAGE_SIZE = 16
ELEMENTS = ["f16", "u8", "u4"]
# 192: three accesses along a row. 64 in 4 bits with 32 tokens: warps without tokens.
SM80 = [ProbeSpec("sm80", element, head_dim, 32, 3, "paged") for element in ELEMENTS for head_dim in (64, 192)]
SM70 = [ProbeSpec("sm70", element, 128, 64, 1, "paged") for element in ELEMENTS]


def name(spec):
    return f"{spec.loader}-{spec.element}-d{spec.head_dim}"


def make_input(rng, spec, length, **which):
    table = scattered_table(rng, lengths=[length], pages=12, page_size=PAGE_SIZE)
    pools = make_pools(rng, spec, pages=12, page_size=PAGE_SIZE, heads=1, lengths=used_tokens(table, PAGE_SIZE))
    return ProbeInput(pools, table, **which)


def test_int4_at_head_dim_64_loads_aligned(device, rng):
    # The shape that ends in "misaligned address" in the system this one starts from.
    spec = ProbeSpec("sm80", "u4", 64, 64, 3, "paged")
    for stage in range(3):
        given = make_input(rng, spec, length=64, stage=stage)
        assert_same(probe(spec, given, device=device), predict(spec, given))


@pytest.mark.parametrize("max_s", [0, 1, 17, 31, 32])
@pytest.mark.parametrize("spec", [*SM80, *SM70], ids=name)
def test_rows_from_max_s_on_are_zeros_though_their_tokens_exist(spec, max_s, device, rng):
    given = make_input(rng, spec, length=64, max_s=max_s)
    found = probe(spec, given, device=device)
    assert_same(found, predict(spec, given))
    if max_s == 0:
        assert not found.fragments.any()


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("spec", SM80, ids=name)
def test_a_tile_fills_its_own_ring_slot_and_no_other(spec, stage, device, rng):
    given = make_input(rng, spec, length=32, stage=stage)
    found = probe(spec, given, device=device)
    assert_same(found, predict(spec, given))
    k = found.shared[: spec.data.tile_bytes * spec.stages].reshape(spec.stages, -1)
    assert [bool((slot != 0xFF).any()) for slot in k] == [slot == stage for slot in range(3)]


@pytest.mark.parametrize("spec", SM80, ids=name)
def test_slices_together_are_the_tile_and_none_writes_for_another(spec, device, rng):
    whole = make_input(rng, spec, length=30)
    iter_s = spec.data.thread_map.iter_s
    written = np.zeros(spec.shared_bytes, int)
    for begin in range(iter_s):
        given = ProbeInput(whole.pools, whole.table, s_slice=(begin, 1))
        found = probe(spec, given, device=device)
        assert_same(found, predict(spec, given))
        written += found.shared != 0xFF
    assert written.max() == 1
    # A slice that reaches past the last access stops there, and an empty one does nothing.
    given = ProbeInput(whole.pools, whole.table, s_slice=(0, iter_s + 5))
    everything = predict(spec, whole)
    assert_same(probe(spec, given, device=device), everything)
    given = ProbeInput(whole.pools, whole.table, s_slice=(iter_s, 1))
    assert (probe(spec, given, device=device).shared == 0xFF).all()


@pytest.mark.parametrize("spec", [*SM80, *SM70], ids=name)
def test_a_tile_of_no_tokens_is_zeros(spec, device, rng):
    given = make_input(rng, spec, length=0)
    found = probe(spec, given, device=device)
    assert_same(found, predict(spec, given))
    assert not found.fragments.any()
