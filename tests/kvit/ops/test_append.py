"""Append with all that it does on the way, bias, rotation, a prefix left alone, queries: the reference's bits."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.appends import COUNTS, Setup, rotation_of
from support.caches import BFLOAT16, FLOAT16, NO_PAGE, make_table, poisoned, to_device, view_like

PAIRS = [
    (None, None),
    ("int8", "int8"),
    ("int4", "int4"),
    ("float8_e4m3", "float8_e4m3"),
    ("float8_e5m2", "float8_e5m2"),
    ("int8", "int4"),
    ("float8_e4m3", "int4"),
    (None, "int8"),
]
EVEN_PAIRS = PAIRS[:4]  # those that are built for head_dim 256
SCALINGS = {
    "plain": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "ntk": {"rope_type": "ntk", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64, "length": 100},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("rotary_dim", [None, 32])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_rotated_rows_are_the_references_bit_for_bit(rng, device, pair, head_dim, interleaved, rotary_dim):
    if head_dim == 256 and pair not in EVEN_PAIRS:
        pytest.skip("not built")
    case = Setup(rng, pair, head_dim=head_dim, device=device)
    rope = kvit.Rope(head_dim, rotary_dim=rotary_dim, interleaved=interleaved)
    k, v = case.rows()
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope))
    case.append(k, v, rope=rope)
    case.assert_same()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_turns_as_the_reference_does_at_small_and_huge_positions(rng, device, scaling, dtype):
    # Positions whose float32 angle would have lost everything, the largest there are, and one below zero.
    case = Setup(rng, dtype=dtype, head_dim=128, device=device)
    rope = kvit.Rope(128, 500000.0, scaling=SCALINGS[scaling])
    k, v = case.rows()
    positions = rng.integers(0, 1 << 20, len(k)).astype(np.int32)
    positions[:6] = 0, 1, 1_000_000, 2**31 - 1, 2**24 + 1, -7
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope), positions=positions)
    case.append(k, v, rope=rope, positions=positions)
    case.assert_same()


@pytest.mark.parametrize("with_rope", [False, True])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 16, 100])
@pytest.mark.parametrize("pair", [(None, None), ("int8", "int4"), ("float8_e4m3", "float8_e4m3")], ids=str)
def test_biases_are_added_before_rows_turn(rng, device, pair, page_size, layout, with_rope):
    case = Setup(rng, pair, page_size=page_size, layout=layout, device=device)
    rope = kvit.Rope(64) if with_rope else None
    (k, v), biases = case.rows(), {name: case.random(3, 64) for name in ("k_bias", "v_bias")}
    rotation = rotation_of(rope) if with_rope else None
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation, **biases)
    case.append(k, v, rope=rope, **biases)
    case.assert_same()


@pytest.mark.parametrize("only", ["k_bias", "v_bias"])
def test_one_of_the_biases_may_be_absent(rng, device, only):
    case = Setup(rng, device=device)
    (k, v), bias = case.rows(), case.random(3, 64)
    reference.append(case.cache, case.table, k, v, COUNTS, **{only: bias})
    case.append(k, v, **{only: bias})
    case.assert_same()


@pytest.mark.parametrize("head_dim, query_heads, heads", [(64, 24, 3), (64, 3, 3), (128, 32, 8), (256, 7, 1)])
@pytest.mark.parametrize("in_place", [False, True])
def test_slices_of_one_packed_tensor_of_queries_keys_and_values_go_in_as_they_are(
    rng, device, in_place, head_dim, query_heads, heads
):
    # More heads than a warp takes at once, and fewer; between the rows of a token lie the other slices.
    case = Setup(rng, heads=heads, head_dim=head_dim, device=device)
    rope = kvit.Rope(head_dim)
    tokens = sum(COUNTS)
    packed = poisoned((tokens, query_heads + 2 * heads + 1, head_dim), BFLOAT16)  # and a head that is nobody's
    packed[:, :-1] = case.random(tokens, query_heads + 2 * heads, head_dim)
    q, k, v = np.split(packed[:, :-1], [query_heads, query_heads + heads], axis=1)
    bias = case.random(query_heads, head_dim)
    positions = reference.token_positions(case.table, COUNTS)
    turned = reference.rotate(q, positions, rotation_of(rope), bias)
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation_of(rope))

    on_device = case.up(packed)
    slices = [view_like(on_device, packed, part) for part in (q, k, v)]
    out = None if in_place else case.up(np.zeros_like(q))
    case.append(*slices[1:], rope=rope, q=slices[0], q_out=out, q_bias=bias)
    case.assert_same()
    expected = packed.copy()
    if in_place:
        expected[:, :query_heads] = turned
    else:
        np.testing.assert_array_equal(out.numpy().view(np.uint16), turned.view(np.uint16))
    np.testing.assert_array_equal(on_device.numpy().view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("with_rope", [False, True])
def test_tokens_below_the_prefix_are_not_written_nor_their_pages_looked_at(rng, device, with_rope):
    # Of sequences with 5, 3, 0 and 20 new tokens: the first 2, all, none (of none), and the first 17, a whole page.
    case = Setup(rng, device=device)
    rope = kvit.Rope(64) if with_rope else None
    prefix = np.array([34, 3, 9, 17], np.int32)
    case.table.pages[3][0] = NO_PAGE  # whole page of the prefix: not asked for
    case.page_table = make_table(case.table.pages, case.table.lengths, "dense", device)
    k, v = case.rows()
    rotation = rotation_of(rope) if with_rope else None
    reference.append(case.cache, case.table, k, v, COUNTS, rotation=rotation, prefix_lengths=prefix)
    q = case.random(sum(COUNTS), 5, 64)
    options = {"q": case.up(q)} if with_rope else {}
    case.append(k, v, rope=rope, prefix_lengths=prefix, **options)
    case.assert_same()
    if with_rope:  # queries of skipped tokens turn all the same
        turned = reference.rotate(q, reference.token_positions(case.table, COUNTS), rotation)
        np.testing.assert_array_equal(options["q"].numpy().view(np.uint16), turned.view(np.uint16))


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("pair", [(None, None), ("int8", "int4"), ("float8_e4m3", "float8_e4m3")], ids=str)
def test_warps_that_move_their_heads_in_several_passes_miss_none(rng, device, pair, passes):
    # Nine heads of 128 are three passes: so many tokens that warps have one each, two and one, or all three.
    probe = kvit.Append(Setup(rng, pair, heads=9, head_dim=128, device=device).view)
    home = kvit.Device.of(device)
    tokens = home.num_sms * probe.kernel.min_ctas * probe.kernel.facts["warps"] * passes // 3 - 1
    case = Setup(rng, pair, heads=9, head_dim=128, lengths=[tokens], device=device)
    rope = kvit.Rope(128)
    k, v = case.rows([tokens])
    q = case.random(tokens, 18, 128)  # three passes too, of twice as many heads: then warps have more of everything
    reference.append(case.cache, case.table, k, v, [tokens], rotation=rotation_of(rope))
    case.append(k, v, [tokens], rope=rope)
    case.assert_same()
    queries = case.up(q)
    case.append(k, v, [tokens], rope=rope, q=queries)
    case.assert_same()
    turned = reference.rotate(q, reference.token_positions(case.table, [tokens]), rotation_of(rope))
    np.testing.assert_array_equal(queries.numpy().view(np.uint16), turned.view(np.uint16))


@pytest.mark.parametrize("sequences", [1, 2, 33, 1100])
def test_rows_find_their_sequence_among_any_number(rng, device, sequences):
    # The search asks 32 places at a time; sequences without new tokens make runs of equal offsets.
    counts = rng.integers(0, 3, sequences).tolist()
    counts[-1] = 1
    lengths = [count + int(more) for count, more in zip(counts, rng.integers(0, 2, sequences), strict=True)]
    case = Setup(rng, (None, None), heads=1, page_size=2, lengths=lengths, device=device)
    k, v = case.rows(counts)
    reference.append(case.cache, case.table, k, v, counts)
    case.append(k, v, counts)
    case.assert_same()


def test_a_query_without_a_position_comes_out_as_nan_and_with_one_given_as_it_should(rng, device):
    case = Setup(rng, lengths=[4, 2], page_size=4, device=device)
    rope = kvit.Rope(64)
    k, v = case.rows([4, 4])
    q = case.random(8, 2, 64)
    lengths = reference.Table(case.table.pages, [4, 2])  # of 4 new tokens of the second sequence, 2 have no place
    append = kvit.Append(case.view, rope=rope)
    rotation = rotation_of(rope)
    for positions in (None, np.arange(8, dtype=np.int32)):
        out = case.up(np.zeros_like(q))
        given = {} if positions is None else {"positions": case.up(positions)}
        append(case.up(k), case.up(v), case.view, case.page_table, q=case.up(q), q_out=out, **given)
        with pytest.raises(kvit.PageTableError, match="length 2"):
            append.check()
        places = reference.token_positions(lengths, [4, 4]) if positions is None else positions
        turned = reference.rotate(q, places, rotation)
        turned[places < 0] = np.nan
        np.testing.assert_array_equal(out.numpy().astype(np.float32), turned.astype(np.float32))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("codec", ["float8_e4m3", "float8_e5m2"])
def test_every_16_bit_number_becomes_the_references_float8(device, rng, codec, dtype):
    # GPUs convert in hardware from sm_89 on: all numbers, subnormal, too large, infinite and NaN, by scales that are
    # powers of two and not.
    case = Setup(rng, (codec, codec), head_dim=128, dtype=dtype, heads=2, page_size=64, lengths=[256], device=device)
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(256, 2, 128)
    reference.append(case.cache, case.table, numbers, numbers[::-1], [256])
    case.append(numbers, numbers[::-1].copy(), [256])
    case.assert_same()


def test_a_cache_with_a_rope_turns_keys_and_queries_to_their_places(rng, device):
    rope = kvit.Rope(64, rotary_dim=32)
    cache = kvit.PagedCache(8, 4, 2, 64, rope=rope, device=device)
    seqs = [cache.sequence(), cache.sequence()]
    rotation, turned = rotation_of(rope), []
    for first, counts in (([0, 0], [3, 7]), ([3, 7], [2, 1])):
        k, v = rng.standard_normal((2, sum(counts), 2, 64)).astype(BFLOAT16)
        q = to_device(rng.standard_normal((sum(counts), 6, 64)).astype(BFLOAT16), device)
        places = np.concatenate([start + np.arange(count) for start, count in zip(first, counts, strict=True)])
        wanted = reference.rotate(q.numpy(), places, rotation)
        turned.append(reference.rotate(k, places, rotation))
        cache.append(seqs, to_device(k, device), to_device(v, device), counts, q=q)
        np.testing.assert_array_equal(q.numpy(), wanted)
    held = cache.gather(seqs)[0].numpy()
    first, second = turned
    np.testing.assert_array_equal(held, np.concatenate([first[:3], second[:2], first[3:], second[2:]]))


def test_a_captured_append_turns_to_where_its_tokens_are_when_it_is_launched(rng, device):
    # A decode step of two sequences: one token each, at lengths that are rewritten between launches.
    case = Setup(rng, ("int8", "int8"), lengths=[40, 30], device=device)
    rope = kvit.Rope(64)
    stream, append = kvit.Stream(device), kvit.Append(case.view, rope=rope)
    k, v = (case.up(x) for x in case.rows([1, 1]))
    q, out = case.up(case.random(2, 6, 64)), case.up(np.zeros((2, 6, 64), BFLOAT16))
    bias = case.random(3, 64)
    on_device = case.up(bias)
    with kvit.Graph.capture(stream) as graph:
        append(k, v, case.view, case.page_table, q=q, q_out=out, k_bias=on_device, stream=stream)
    for lengths in ([40, 30], [17, 1]):
        case.page_table.lengths.copy_from(np.array(lengths, np.int32))
        graph.launch()
        append.check(stream)
        table = reference.Table(case.table.pages, lengths)
        rotation = rotation_of(rope)
        reference.append(case.cache, table, k.numpy(), v.numpy(), k_bias=bias, rotation=rotation)
        case.assert_same()
        turned = reference.rotate(q.numpy(), reference.token_positions(table, [1, 1]), rotation)
        np.testing.assert_array_equal(out.numpy().view(np.uint16), turned.view(np.uint16))
