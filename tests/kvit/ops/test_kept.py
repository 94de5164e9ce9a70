"""Operations that are kept by configuration: found again, one for each stream, bounded, and safe with graphs."""

import numpy as np
import pytest

import kvit
from kvit.ops.kept import KeptOperations, words_of_rope
from support.caches import make_case, to_device
from support.quantised import Quantised


@pytest.fixture
def kept():
    return KeptOperations(most=4)


@pytest.fixture
def view(rng, device):
    return make_case(rng, [20, 7], device=device).view


def test_an_operation_is_found_again_by_all_that_it_was_made_for(kept, view, rng, device):
    stream = kvit.Stream(device)
    one = kept.attention(view, 4, stream, softcap=2.0)
    assert kept.attention(view, 4, stream, softcap=2.0) is one
    other_memory = make_case(rng, [3, 3], device=device).view
    assert kept.attention(other_memory, 4, stream, softcap=2.0) is one
    assert kept.attention(view, 4, stream, softcap=3.0) is not one
    assert kept.attention(view, 8, stream, softcap=2.0) is not one
    assert kept.attention(view, 4, kvit.Stream(device), softcap=2.0) is not one  # which may run beside it


def test_views_of_other_kinds_have_operations_of_their_own(kept, view, rng, device):
    stream = kvit.Stream(device)
    one = kept.append(view, stream)
    assert kept.append(make_case(rng, [3], page_size=5, device=device).view, stream) is not one
    assert kept.append(make_case(rng, [3], kv_heads=1, device=device).view, stream) is not one
    assert kept.append(make_case(rng, [3], dtype=np.dtype("float16"), device=device).view, stream) is not one
    assert kept.append(view, stream) is one


def test_codes_and_codes_of_the_transform_have_operations_of_their_own(kept, rng, device):
    # One kernel serves both, so that a key of kernels does not tell them apart.
    stream = kvit.Stream(device)
    views = [Quantised((name, name), [3], rng=rng, device=device).view for name in ("int4", "int4_hadamard")]
    for find in (kept.append, kept.gather, lambda view, stream: kept.attention(view, 4, stream)):
        one, other = (find(view, stream) for view in views)
        assert one is not other and one.codecs == views[0].codecs and other.codecs == views[1].codecs


def test_arrays_count_by_their_address_and_their_numbers_are_read_afresh(kept, rng, device):
    case = make_case(rng, [20, 7], device=device)
    stream = kvit.Stream.default(device)
    sinks, same = (to_device(np.zeros(4, np.float32), device) for _ in range(2))
    one = kept.attention(case.view, 4, stream, sinks=sinks)
    assert kept.attention(case.view, 4, stream, sinks=sinks) is one
    assert kept.attention(case.view, 4, stream, sinks=same) is not one
    q = to_device(case.queries(rng, 2, 4), device)
    before = one(q, case.view, case.page_table).numpy()
    sinks.copy_from(np.full(4, 50, np.float32))
    assert np.abs(one(q, case.view, case.page_table).numpy()).max() < 1e-6 < np.abs(before).max()


def test_no_more_are_kept_than_it_says_and_the_oldest_use_goes_first(kept, view, device):
    stream = kvit.Stream(device)
    first, second = (kept.attention(view, 4, stream, softcap=cap) for cap in (1.0, 2.0))
    kept.gather(view, stream)
    assert kept.attention(view, 4, stream, softcap=1.0) is first
    for by in range(2):
        kept.append(view, stream, norm_eps=1.0 + by)
    assert len(kept) == 4
    assert kept.attention(view, 4, stream, softcap=1.0) is first
    assert kept.attention(view, 4, stream, softcap=2.0) is not second


def test_a_rope_in_words_is_the_rope(kept, view, device):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    rope = kvit.Rope(64, 5000.0, 32, True, scaling)
    words = words_of_rope(rope)
    operation = kept.append(view, kvit.Stream(device), rope=words)
    assert vars(operation.rope) == vars(rope)
    assert kept.append(view, kvit.Stream(device), rope=words_of_rope(kvit.Rope(64))).rope.base == 10000.0


def test_a_stream_that_is_captured_makes_nothing_and_says_what_to_do(kept, view, device):
    stream = kvit.Stream(device)
    said = "first Attention of its configuration.*once before the capture"
    with pytest.raises(kvit.DriverError, match=said), kvit.Graph.capture(stream):
        kept.attention(view, 4, stream)


def test_a_captured_operation_stays_with_its_graph(kept, rng, device):
    # Captures run on streams of their own: they take the operation over that was made before, for good.
    case = make_case(rng, [20, 7], device=device)
    usual, captured = kvit.Stream.default(device), kvit.Stream(device)
    made = kept.attention(case.view, 4, usual)
    q, out = (to_device(case.queries(rng, 2, 4), device) for _ in range(2))
    with kvit.Graph.capture(captured) as graph:
        found = kept.attention(case.view, 4, captured)
        found(q, case.view, case.page_table, out=out, stream=captured)
    assert found is made
    assert kept.attention(case.view, 4, usual) is not made  # whose workspace the graph uses
    for cap in range(1, 6):
        kept.attention(case.view, 4, usual, softcap=float(cap))
    with kvit.Graph.capture(captured):
        assert kept.attention(case.view, 4, captured) is made
    graph.launch(captured)
    captured.synchronize()
    want = kept.attention(case.view, 4, usual)(q, case.view, case.page_table)
    np.testing.assert_array_equal(out.numpy(), want.numpy())


def test_check_finds_the_faults_of_every_operation(kept, rng, device):
    case = make_case(rng, [20, 7], device=device)
    stream = kvit.Stream(device)
    wrong = kvit.PageTable(to_device(np.array([[0, 1], [77, 0]], np.int32), device), lengths=case.page_table.lengths)
    rows = to_device(case.queries(rng, 2, 2), device)
    kept.append(case.view, stream)(rows, rows, case.view, wrong, stream=stream)
    kept.attention(case.view, 4, stream)
    with pytest.raises(kvit.PageTableError, match="77"):
        kept.check()
    kept.check()


def test_float8_without_scales_has_those_that_were_made_first(kept, device):
    pool = kvit.Buffer.empty((2, 16, 2, 64), "float8_e4m3fn", device)
    views = [kept.view(pool, pool) for _ in range(2)]
    assert views[0].k_params is views[1].k_params is views[0].v_params
    np.testing.assert_array_equal(views[0].k_params.numpy(), np.ones(2, np.float32))
    assert kept.view(pool, pool, layout="HND").k_params.shape == (16,)


def test_clear_lets_all_of_them_go(kept, view, device):
    one = kept.gather(view, kvit.Stream.default(device))
    kept.clear()
    assert len(kept) == 0 and kept.gather(view, kvit.Stream.default(device)) is not one
